"""rq-dashboard, unmodified, on the queues of the service: as docs/operations.md starts it."""

import json
import re
import socket
import subprocess
import urllib.request
from pathlib import Path

import pytest

from streamer.domain.kinds import RequestKind
from streamer.domain.request import ClipRequest
from streamer.domain.timestamp import utc_now
from tests.support.client_venvs import python_with

pytestmark = pytest.mark.clients

PAGE = Path(__file__).parents[2] / "docs" / "operations.md"


@pytest.fixture
def dashboard(settings, eventually):
    """The address of a dashboard, started with the arguments of the page."""
    written = re.search(r"^rq-dashboard (.*)$", PAGE.read_text(), re.MULTILINE)
    assert written is not None
    words = written[1].replace('"$STREAMER_REDIS_URL"', settings.redis_url).split()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    python = python_with("rq-dashboard", "rq-dashboard", "six")
    program = [str(python.with_name("rq-dashboard")), *words, "--port", str(port)]
    process = subprocess.Popen(program, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    url = f"http://127.0.0.1:{port}"

    def answers() -> bool:
        try:
            return urllib.request.urlopen(url, timeout=5).status == 200
        except OSError:
            return False

    try:
        eventually(answers)
        yield url
    finally:
        process.kill()
        process.wait()


def test_it_shows_the_queues_and_what_waits_in_them(client, dashboard):
    now = utc_now()
    asked = ClipRequest(
        kind=RequestKind.QUERY,
        stream_id="str_1",
        stream_name="yard",
        start=now,
        end=now,
        prompt="Is the gate open?",
        frames=[],
    )
    client.jobs.submit(asked)

    with urllib.request.urlopen(f"{dashboard}/0/data/queues.json") as answer:
        queues = {each["name"]: each for each in json.load(answer)["queues"]}
    with urllib.request.urlopen(f"{dashboard}/0/data/job/{asked.id}.json") as answer:
        job = json.load(answer)

    assert queues["queries"]["count"] == 1
    assert job["status"] == "queued"
    assert "Is the gate open?" in json.dumps(job) or asked.id in job["description"]
