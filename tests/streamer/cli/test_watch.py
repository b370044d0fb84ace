"""`streamer watch`, `streamer query` and `streamer streams NAME`, in this process."""

import json
import re
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from typer.testing import CliRunner

from nvila_core.resolution.policy import Measures
from streamer.cli.app import app
from streamer.domain.error_info import ErrorInfo
from streamer.domain.stream import StreamCounters, StreamState, StreamStatus
from streamer.domain.timestamp import utc_now
from streamer.errors import ErrorCode
from streamer.service import Service
from streamer.settings import Settings

Run = Callable[..., Any]
URL = "rtsp://me:hunter2@cam.invalid/a/long/path/live.sdp"


@pytest.fixture
def client(settings: Settings) -> Iterator[Service]:
    with Service(settings) as opened:
        opened.attach(URL, "yard", probe=False)
        yield opened


@pytest.fixture
def run(client: Service, monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.setenv("STREAMER_REDIS_URL", client.settings.redis_url or "")
    return lambda *arguments: CliRunner().invoke(app, arguments)


def records(done: Any) -> list[dict[str, Any]]:
    assert done.exit_code == 0, done.output
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_watches_are_added_listed_changed_and_removed(run: Run, client: Service) -> None:
    options = ["--window", "5", "--max-frames", "3", "--max-tokens", "9", "--json"]
    (added,) = records(run("watch", "add", "yard", "Is it open?", *options))
    assert (added["window"], added["max_frames"], added["max_tokens"]) == (5.0, 3, 9)
    listed = records(run("watch", "list", "yard", "--json"))
    assert [watch["prompt"] for watch in listed] == ["Describe the scene.", "Is it open?"]
    assert listed == records(run("watch", "list", "--json"))
    shown = run("watch", "list").stdout
    assert f"yard  {added['id']}  every 5 s, 3 frames  Is it open?" in shown

    (changed,) = records(
        run("watch", "edit", "yard", added["id"], "--choice", "yes", "--choice", "no", "--json")
    )
    assert changed["response_format"]["choices"] == ["yes", "no"]
    assert (changed["prompt"], changed["window"]) == ("Is it open?", 5.0)
    run("watch", "remove", "yard", added["id"])
    assert [watch.prompt for watch in client.stream("yard").watches] == ["Describe the scene."]


def test_an_alert_is_added_and_changed(run: Run, client: Service) -> None:
    question = "Is a car parked in front of the gate?"
    (added,) = records(run("watch", "add", "yard", question, "--alert", "--every", "5", "--json"))
    assert (added["window"], added["alert"]["severity"]) == (5.0, "warning")
    assert added["response_format"]["choices"] == ["yes", "no"]
    assert f"every 5 s, 16 frames, alert (warning)  {question}" in run("watch", "list").stdout
    options = ["--severity", "critical", "--raise", "0.8,3,5", "--clear", "0.2"]
    options += ["--label", "site=north", "--describe", "no", "--cooldown", "9", "--title", "Car"]
    (changed,) = records(run("watch", "edit", "yard", added["id"], *options, "--json"))
    assert changed["alert"] == added["alert"] | {
        "severity": "critical",
        "raise": {"probability": 0.8, "k": 3, "n": 5},
        "clear": {"probability": 0.2, "m": 3},
        "labels": {"site": "north"},
        "describe": False,
        "cooldown": 9.0,
        "title": "Car",
    }


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["watch", "add", "yard", "?", "--severity", "info"], 2, "need --alert"),
        (["watch", "add", "yard", "?", "--alert", "--raise", "often"], 2, "write a probability"),
        (["watch", "add", "yard", "?", "--alert", "--label", "x"], 2, "write NAME=VALUE"),
        (["watch", "add", "yard", "?", "--alert", "--raise", "0.8,9,3"], 2, "can never be"),
        (["watch", "add", "yard", "?", "--alert", "--choice", "a"], 2, "leave out"),
        (["watch", "list", "nobody"], 1, "no stream 'nobody'"),
        (["watch", "remove", "yard", "wch_x"], 1, "streamer watch list"),
        (["watch", "edit", "yard", "wch_x"], 2, "Nothing to change"),
        (["watch", "add", "yard", " "], 2, "The prompt is empty"),
        (["watch", "add", "yard", "?", "--window", "0"], 2, "--window"),
        (["query", "qry_x"], 1, "qry_x"),
        (["query", "qry_x", "--cancel", "--wait"], 2, "exclude each other"),
        (["streams", "nobody"], 1, "no stream 'nobody'"),
    ],
)
def test_what_cannot_be_done(run: Run, arguments: list[str], code: int, said: str) -> None:
    done = run(*arguments)
    assert done.exit_code == code
    assert said in " ".join(done.stderr.replace("│", " ").split())


def test_a_query_is_shown_and_cancelled(run: Run, client: Service) -> None:
    client.frames.put(
        client.stream("yard").id, b"jpeg", Measures(32, 24, change=0.0), time=time.time(), pts=0.0
    )
    (asked,) = records(run("ask", "yard", "Who?", "--no-wait", "--json"))
    assert f"query {asked['id']} is queued" in run("query", asked["id"]).stdout
    cancelled = run("query", asked["id"], "--cancel")
    assert cancelled.exit_code == 0
    assert "is cancelled" in cancelled.stdout
    (again,) = records(run("query", asked["id"], "--cancel", "--json"))
    assert again["status"] == "cancelled"
    assert run("query", asked["id"]).exit_code == 1, "it has no answer"


def test_one_stream_is_shown_whole(run: Run, client: Service) -> None:
    run("watch", "add", "yard", "Is it open?", "--window", "5")
    status = StreamStatus(
        state=StreamState.RUNNING,
        error=ErrorInfo(code=ErrorCode.STREAM_TIMEOUT, message="It sent nothing for 8 s."),
        warnings=[
            ErrorInfo(code=ErrorCode.STREAM_CLOCK_WRONG, message="Its clock stands still."),
            ErrorInfo(code=ErrorCode.STREAM_ENDED_EARLY, message="Some of it is missing."),
        ],
        last_frame_at=utc_now(),
        reported_at=utc_now(),
        worker="ingest-7",
        counters=StreamCounters(packets=1234, sampled=40, clips=7, reconnects=3),
    )
    client.registry.save_status(client.stream("yard").id, status)
    for listing in (run("streams", "yard").stdout, run("streams").stdout):
        for shown in ("STREAM_TIMEOUT  It sent", "Its clock stands", "Some of it", "Is it open?"):
            assert shown in listing
        assert listing.rstrip().endswith("rtsp://me:***@cam.invalid/a/long/path/live.sdp")
    whole = run("streams", "yard").stdout
    for shown in ("1234 packets", "ingest-7", "fps: 1 per second", "every 5 s", "reconnects 3"):
        assert shown in re.sub(" +", " ", whole)
    (record,) = records(run("streams", "yard", "--json"))
    assert [warning["code"] for warning in record["warnings"]] == [
        "STREAM_CLOCK_WRONG",
        "STREAM_ENDED_EARLY",
    ]
