"""`streamer summarize`, with the results of a real database and answers through a real Redis."""

import json
import threading
import time
from datetime import timedelta

import pytest
from rq.job import Job
from rq.serializers import JSONSerializer
from typer.testing import CliRunner

from streamer.cli.app import app
from streamer.domain.result import Result
from streamer.domain.summaries import clock_time
from streamer.domain.survey import SurveyRequest
from streamer.domain.timestamp import utc_now


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


def test_the_model_sums_up_what_was_recorded(run, client, captions, monkeypatch, tmp_path):
    # given a worker that sums up what is in the queue
    monkeypatch.setattr("streamer.service.Service.require_worker", lambda self: None)
    stopping = threading.Event()
    asked = []

    def answer() -> None:
        while not stopping.is_set():
            for query in client.queries():
                if query.result is None:
                    job = Job.fetch(
                        query.id, connection=client.connections.main, serializer=JSONSerializer
                    )
                    survey = SurveyRequest.read(job.args[0])
                    asked.append(survey)
                    for block in survey.blocks:
                        block.text = "Six numbers."
                    blocks = [each.model_dump(mode="json") for each in survey.blocks]
                    client.queue.publish(
                        Result.answering(survey, text="It began.", data={"blocks": blocks}),
                        owner_id=None,
                    )
            time.sleep(0.05)

    thread = threading.Thread(target=answer)
    thread.start()
    try:
        done = run("lobby", "--since", "-1h", "--json", "--report", str(tmp_path / "report.md"))
    finally:
        stopping.set()
        thread.join(60)
    # then it was given every caption, and its texts are in the summary and in the report
    assert done.exit_code == 0, done.output
    summary = json.loads(done.stdout)
    assert (summary["text"], summary["results"]) == ("It began.", 6)
    assert summary["blocks"][0]["text"] == "Six numbers."
    (survey,) = asked
    lines = [line.text for block in survey.blocks for line in block.lines]
    assert lines == [each.text for each in captions]
    report = (tmp_path / "report.md").read_text()
    assert "It began." in report
    assert "Six numbers." in report


def test_a_range_that_is_no_time_is_said_without_a_server(run):
    done = run("lobby", "--since", "yesterday")
    assert done.exit_code == 2
    assert "'yesterday' is not a time" in done.stderr
