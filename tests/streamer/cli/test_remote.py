"""Commands on a machine that reaches the service only by its API: STREAMER_API_URL is set."""

import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs
from typer.testing import CliRunner

from nvila_core.resolution.policy import Measures
from streamer.cli.app import app
from streamer.domain.question import Question
from streamer.domain.result import Result
from streamer.domain.timestamp import utc_now
from streamer.service import Service
from tests.support.api_server import ApiServer
from tests.support.fork_server import run_python
from tests.support.videos import write_video

Run = Callable[..., Any]
CAMERA = "rtsp://me:hunter2@192.0.2.1/door"


@pytest.fixture
def here(api_server: ApiServer) -> Service:
    """The installation, as its own machine sees it."""
    return api_server.client


@pytest.fixture
def run(api_server: ApiServer, monkeypatch: pytest.MonkeyPatch) -> Iterator[Run]:
    monkeypatch.setenv("STREAMER_API_URL", api_server.url)
    monkeypatch.setenv("STREAMER_REDIS_URL", "redis://127.0.0.1:1")  # nobody is there
    with capture_logs():  # the server's, which would be in the output of the commands
        yield lambda *arguments: CliRunner().invoke(app, arguments)


def records(done: Any) -> list[dict[str, Any]]:
    assert done.exit_code == 0, done.output
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_a_stream_is_attached_changed_and_detached(run: Run, here: Service) -> None:
    options = ["--prompt", "Is it open?", "--window", "5", "--no-probe", "--json"]

    (stream,) = records(run("attach", CAMERA, "--name", "door", *options))

    (watch,) = here.stream("door").watches
    assert (watch.prompt, watch.window) == ("Is it open?", 5)
    assert watch.max_frames == here.settings.max_frames
    assert [each["id"] for each in records(run("streams", "--json"))] == [stream["id"]]
    assert "door" in run("streams", "door").stdout
    assert records(run("edit", "door", "--pause", "--name", "gate", "--json"))[0]["paused"]
    assert run("detach", "gate").exit_code == 0
    assert here.streams() == []


def test_a_stream_and_a_watch_go_back_to_the_default_model(run: Run, here: Service) -> None:
    here.jobs.served.note("eye")
    watch = here.watch("Is it open?", model="eye")
    here.attach(CAMERA, "door", watches=[watch], probe=False, model="eye")
    others = ("edit", "door", "--resume"), ("watch", "edit", "door", watch.id, "--window", "4")

    for command in others:
        assert records(run(*command, "--json"))[0]["model"] == "eye"
    for command in others:
        assert records(run(*command, "--model", "default", "--json"))[0]["model"] is None


def test_what_is_missing_there_is_said(run: Run) -> None:
    attached = run("attach", CAMERA, "--no-probe", "--name", "door")
    listed = run("streams")
    asked = run("ask", "door", "Is it open?")

    assert "No ingest worker is running" in attached.stderr
    assert "No ingest worker is running" in listed.stderr
    assert asked.exit_code == 1
    assert "No model worker is running" in asked.stderr


def test_watches_are_added_changed_and_removed(run: Run, here: Service) -> None:
    here.attach(CAMERA, "door", watches=[], probe=False)

    (watch,) = records(run("watch", "add", "door", "Is it open?", "--choice", "yes", "--json"))
    (alert,) = records(run("watch", "add", "door", "Is there smoke?", "--alert", "--json"))
    changed = run("watch", "edit", "door", watch["id"], "--window", "3", "--json")

    assert records(changed)[0]["window"] == 3
    assert alert["alert"]["severity"] == "warning"
    assert len(records(run("watch", "list", "door", "--json"))) == 2
    assert run("watch", "remove", "door", watch["id"]).exit_code == 0
    assert [w.id for w in here.stream("door").watches] == [alert["id"]]


def test_a_question_is_asked_shown_and_cancelled(run: Run, here: Service) -> None:
    stream = here.attach(CAMERA, "door", watches=[], probe=False)
    here.frames.put(stream.id, b"jpeg", Measures(32, 24, change=0.0), time=time.time(), pts=0.0)

    (query,) = records(run("ask", "door", "Is it open?", "--stale-ok", "--no-wait", "--json"))

    assert query["status"] == "queued"
    answer = Result(
        request_id=query["id"],
        kind="answer",
        stream_id=stream.id,
        stream_name="door",
        prompt="Is it open?",
        text="It is open.",
    )
    here.queue.publish(answer, owner_id=None)
    assert "It is open." in run("query", query["id"], "--wait").stdout
    (past,) = records(run("ask", "door", "And before?", "--since=-5m", "--no-wait", "--json"))
    assert "cancelled" in run("query", past["id"], "--cancel").stdout


def test_results_are_listed_and_followed(run: Run, here: Service) -> None:
    def caption(number: int) -> Result:
        return Result(
            request_id=f"req_{number}",
            kind="caption",
            stream_id="str_1",
            stream_name="door",
            prompt="?",
            text=f"Caption {number}.",
        )

    here.timeline.record([caption(n) for n in range(3)])
    assert len(records(run("results", "--stream", "door", "--json"))) == 3
    assert "Caption 1." in run("results", "--q", "Caption 1").stdout
    assert run("results", "--stream", "nowhere").exit_code == 1

    def publish() -> None:  # again and again, until one comes after the listener has begun
        number = 10
        while not ended.wait(0.05):
            here.queue.publish(caption(number), owner_id=None)
            number += 1

    ended = threading.Event()
    publisher = threading.Thread(target=publish)
    publisher.start()
    try:
        followed = records(run("results", "--follow", "--limit", "2", "--json"))
    finally:
        ended.set()
        publisher.join()
    assert [result["kind"] for result in followed] == ["caption", "caption"]


def test_what_is_followed_counts_from_the_clock_of_the_service(
    api_server: ApiServer, here: Service
) -> None:
    # given results of just now, and a machine of the user whose clock is an hour ahead
    for number in range(2):
        recent = Result(
            request_id=f"req_{number}",
            kind="caption",
            stream_id="str_1",
            stream_name="door",
            prompt="?",
            text=f"Caption {number}.",
        )
        here.timeline.record([recent])
        here.queue.publish(recent, owner_id=None)
    program = (
        "from streamer import clock\n"
        "from streamer.cli.app import app\n"
        "from tests.support.clocks import ShiftedClock\n"
        "clock.share(ShiftedClock(3600.0))\n"
        "app(['results', '--follow', '--since=-10m', '--limit', '2', '--json'])\n"
    )
    environment = {"STREAMER_API_URL": api_server.url, "PATH": os.environ["PATH"]}
    # when the user follows the results of the last ten minutes
    done = run_python(["-c", program], env=environment)
    # then they are those of the service's last ten minutes
    assert done.returncode == 0, done.stderr
    texts = [json.loads(line)["text"] for line in done.stdout.splitlines()]
    assert texts == ["Caption 0.", "Caption 1."]


def test_silences_and_incidents(run: Run, here: Service) -> None:
    (silence,) = records(run("silence", "add", "stream=door", "--for", "2h", "--json"))

    (kept,) = here.incidents.silences()
    assert kept.id == silence["id"]
    assert (kept.ends_at - kept.starts_at).total_seconds() == pytest.approx(7200)
    assert len(records(run("silence", "list", "--json"))) == 1
    assert run("silence", "end", silence["id"]).exit_code == 0
    assert "No incidents." in run("incidents").stdout
    assert "There is no incident" in run("incidents", "inc_1", "--ack").stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ["analyze", "film.mp4"],
        ["keys", "list"],
        ["doctor"],
        ["up"],
    ],
    ids=lambda arguments: arguments[0],
)
def test_what_needs_the_other_machine_says_so(run: Run, arguments: list[str]) -> None:
    done = run(*arguments)

    (line,) = done.stderr.strip().splitlines()
    assert done.exit_code == 2
    assert "does not work through the API" in line
    assert "STREAMER_API_URL" in line


def test_a_service_that_is_away_is_one_sentence(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STREAMER_API_URL", "http://127.0.0.1:1")

    done = run("streams")

    (line,) = done.stderr.strip().splitlines()
    assert done.exit_code == 1
    assert "http://127.0.0.1:1 cannot be reached" in line


def test_times_count_from_the_clock_of_the_service(run: Run, here: Service) -> None:
    # given a camera
    stream = here.attach(CAMERA, "door", watches=[], probe=False)
    here.frames.put(stream.id, b"jpeg", Measures(32, 24, change=0.0), time=time.time(), pts=0.0)
    # when
    asked = run("ask", "door", "What was there?", "--since", "-10m", "--no-wait", "--json")
    # then
    (query,) = records(asked)
    since = datetime.fromisoformat(query["since"])
    assert abs(since - (utc_now() - timedelta(minutes=10))) < timedelta(minutes=5)
    # because it travels as it was typed, unlike a moment
    typed = Question(prompt="?", since="-10m").as_asked
    assert (typed["since"], typed["until"]) == ("-10m", None)
    moment = Question(prompt="?", since=utc_now() - timedelta(minutes=10)).as_asked
    assert moment["since"].endswith("Z")


def test_a_file_and_several_cameras_are_asked(run: Run, here: Service, tmp_path: Path) -> None:
    write_video(tmp_path / "evening.mp4", seconds=1)
    for name in ("door", "gate"):
        here.attach(CAMERA, name, watches=[], probe=False)

    (about_file,) = records(
        run("ask", "Who?", "--file", str(tmp_path / "evening.mp4"), "--no-wait", "--json")
    )
    (about_both,) = records(
        run("ask", "Who?", "--stream", "door", "--stream", "gate", "--no-wait", "--json")
    )

    assert about_file["file"] == here.files.page()[0][0].id
    assert about_file["window"] is None
    assert about_both["streams"] == [here.stream(name).id for name in ("door", "gate")]


def test_a_range_is_summarised_from_so_many_results(
    run: Run, here: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    # given more captions than are summarised
    common = {"kind": "caption", "stream_id": "str_1", "stream_name": "door", "prompt": "?"}
    here.timeline.record(
        [Result(request_id=f"req_{n}", text=f"Number {n}.", **common) for n in range(3)]
    )
    monkeypatch.setattr("streamer.domain.summaries.MAX_SUMMARISED", 2)
    # when
    (summary,) = records(run("summarize", "door", "--since", "-1h", "--no-model", "--json"))
    # then the newest ones are
    lines = {line["text"] for line in summary["blocks"][0]["lines"]}
    assert lines == {"Number 1.", "Number 2."}
