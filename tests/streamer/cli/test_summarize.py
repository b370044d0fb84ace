"""`streamer summarize`, with the results of a real database and answers through a real Redis."""

import json
import threading
import time
from datetime import timedelta

import pytest
from typer.testing import CliRunner

from streamer.cli.app import app
from streamer.domain import Result, utc_now
from streamer.summaries import clock_time


@pytest.fixture
def run(settings, monkeypatch):
    monkeypatch.setenv("STREAMER_REDIS_URL", settings.redis_url or "")
    monkeypatch.setenv("STREAMER_DATA_DIR", str(settings.data_dir))
    return lambda *arguments: CliRunner().invoke(app, ["summarize", *arguments])


@pytest.fixture
def captions(client):
    """Six captions of the last minute."""
    now = utc_now()
    made = [
        Result(
            request_id=f"req_{number}",
            kind="caption",
            stream_id="str_1",
            stream_name="lobby",
            start=now - timedelta(seconds=60 - 10 * number),
            end=now - timedelta(seconds=50 - 10 * number),
            prompt="What is there?",
            text=f"Number {number}.",
        )
        for number in range(6)
    ]
    client.timeline.record(made)
    return made


def test_without_a_model_the_report_lists_the_captions(run, captions, tmp_path):
    report = tmp_path / "report.md"

    done = run("lobby", "--since", "-1h", "--no-model", "--report", str(report))

    assert done.exit_code == 0, done.output
    lines = report.read_text().splitlines()
    found = [line for line in lines if line.startswith("- [")]
    assert [line.rpartition("] ")[2] for line in found] == [each.text for each in captions]
    assert found[0].startswith(f"- [{clock_time(captions[0].start)}")


def test_a_model_that_is_missing_is_named(run, captions):
    done = run("lobby")

    assert done.exit_code == 1
    assert "No model worker is running" in done.stderr


def test_the_model_is_asked_without_pictures(run, client, captions, monkeypatch):
    # given a worker that answers what is in the queue
    monkeypatch.setattr("streamer.service.Service.require_worker", lambda self: None)
    stopping = threading.Event()
    asked = []

    def answer() -> None:
        while not stopping.is_set():
            for query in client.queries():
                if query.result is None:
                    asked.append(query.prompt)
                    text = f"It began at {query.prompt[:10]}."
                    common = {"kind": "answer", "stream_id": "", "stream_name": "", "prompt": ""}
                    client.queue.publish(
                        Result(request_id=query.id, text=text, **common), owner_id=None
                    )
            time.sleep(0.05)

    thread = threading.Thread(target=answer)
    thread.start()
    try:
        done = run("lobby", "--since", "-1h", "--json")
    finally:
        stopping.set()
        thread.join(60)
    # then its summary cites the first caption
    assert done.exit_code == 0, done.output
    summary = json.loads(done.stdout)
    assert summary["text"] == f"It began at [{clock_time(captions[0].start)}]."
    assert summary["results"] == 6
    assert len(asked) == 1
    assert all(each.text in asked[0] for each in captions)


def test_a_range_that_is_no_time_is_said_without_a_server(run):
    done = run("lobby", "--since", "yesterday")
    assert done.exit_code == 2
    assert "'yesterday' is not a time" in done.stderr
