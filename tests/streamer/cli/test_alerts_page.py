"""The examples of docs/alerts.md run, as they stand there."""

import json
import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from typer.testing import CliRunner

from streamer.cli.app import app
from streamer.service import Service
from tests.streamer.incidents.conftest import Alert

PAGE = (Path(__file__).parents[3] / "docs" / "alerts.md").read_text()

Run = Callable[[str], Any]


def commands(heading: str) -> list[str]:
    """Return the lines of the shell block below a heading."""
    block = PAGE.split(f"## {heading}\n")[1].split("```sh\n")[1].split("```")[0]
    return block.splitlines()


@pytest.fixture
def run(client: Service, monkeypatch: pytest.MonkeyPatch) -> Run:
    client.attach("rtsp://cam.invalid/x", "lobby", probe=False)
    monkeypatch.setenv("STREAMER_REDIS_URL", client.settings.redis_url or "")
    monkeypatch.setenv("STREAMER_DATA_DIR", str(client.settings.data_dir))

    def invoke(line: str) -> Any:
        program, *arguments = shlex.split(line, comments=True)
        assert program == "streamer"
        done = CliRunner().invoke(app, arguments)
        assert done.exit_code == 0, (line, done.output)
        return done.stdout

    return invoke


def test_the_first_alert(run: Run, client: Service) -> None:
    for line in commands("A first alert"):
        run(line)
    alert = client.stream("lobby").watches[-1].alert
    assert alert is not None
    # and the defaults that the table of the rule names are those of the rule
    table = dict(re.findall(r"^\| `--(\w+)[^`]*` \|.*\| ([^|]+) \|$", PAGE, re.MULTILINE))
    rule = alert.raise_
    assert table["raise"] == f"{rule.probability:g}, {rule.k}, {rule.n}"
    assert table["clear"] == f"{alert.clear.probability:g}, {alert.clear.m}"
    assert table["cooldown"] == f"{alert.cooldown:g}"
    assert table["severity"] == f"`{alert.severity}`"
    assert table["describe"] == alert.summary_prompt


def test_a_rule_in_the_api(run: Run, api: TestClient) -> None:
    body = json.loads(PAGE.split("```json\n")[1].split("```")[0])
    made = api.post("/v1/streams/lobby/watches", json=body)
    assert made.status_code == 201, made.text
    assert made.json()["alert"]["schedule"]["days"] == ["sat", "sun"]


def test_what_people_do(run: Run, client: Service) -> None:
    alert = Alert(client.timeline)
    alert.see(0.9, 0.9)
    (incident,) = client.incidents.page().incidents
    for line in commands("What people do"):
        run(re.sub(r"\binc_\w+", incident.id, line))
    ended = client.incidents.get(incident.id)
    assert ended.acknowledged is not None
    assert ended.feedback is not None
    assert (ended.acknowledged.note, ended.feedback.verdict) == ("on my way", "wrong")
    assert ended.resolve_reason == "manual"


def test_silences(run: Run, client: Service, api: TestClient) -> None:
    for line in commands("Silences"):
        found = client.incidents.silences()
        run(re.sub(r"\bsil_\w+", found[0].id if found else "sil_0", line))
    assert client.incidents.silences() == []
    (body,) = re.findall(r'`(\{"matchers".*?\]\s*,.*?\})`', PAGE, re.DOTALL)
    assert api.post("/v1/silences", json=json.loads(body)).status_code == 201
