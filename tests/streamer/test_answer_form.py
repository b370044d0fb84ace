"""The form of an answer, from the command line and the API to the job."""

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from fastapi.testclient import TestClient
from typer.testing import CliRunner

from nvila_core.resolution.policy import Measures
from streamer.answer_form import MAX_SCHEMA, AnswerForm
from streamer.api.app import create_app
from streamer.cli.app import app
from streamer.client import Client
from streamer.domain import ClipRequest, Watch
from streamer.errors import ErrorCode, StreamerError
from streamer.jobs import QUERIES
from streamer.settings import Settings
from streamer.validation import validated
from tests.support.installation import Up
from tests.support.videos import write_video

SCHEMA = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
CAMERA = "rtsp://192.0.2.1/door"


@pytest.fixture
def client(settings: Settings) -> Iterator[Client]:
    with Client(settings) as opened:
        yield opened


@pytest.fixture
def api(client: Client) -> Iterator[TestClient]:
    with TestClient(create_app(client), base_url="http://127.0.0.1:8080") as opened:
        yield opened


def queued(client: Client, query_id: str) -> ClipRequest:
    """The request that a worker will get."""
    job = client.jobs._queues[QUERIES].fetch_job(query_id)
    assert job is not None
    return ClipRequest.model_validate(job.args[0])


def add_frame(client: Client, stream_id: str) -> None:
    jpeg = cv2.imencode(".jpg", np.zeros((24, 32, 3), np.uint8))[1].tobytes()
    measures = Measures(32, 24, change=0.0)
    client.frames.put(stream_id, jpeg, measures, time=time.time(), pts=0.0, decode_ms=1.0)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"output": "choice"}, "the output 'choice' takes choices"),
        ({"choices": ["a"]}, "the output 'text' takes neither choices nor json_schema"),
        ({"output": "json", "choices": ["a"]}, "the output 'json' takes json_schema"),
        ({"output": "choice", "choices": ["a"], "json_schema": {}}, "takes choices"),
        ({"output": "alert"}, "'output': Input should be 'text', 'choice' or 'json'"),
        ({"output": "json", "json_schema": {"title": "x" * MAX_SCHEMA}}, "is longer than 65536"),
        ({"output": "choice", "choices": [str(i) for i in range(257)]}, "at most 256"),
    ],
)
def test_what_does_not_go_together_is_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(StreamerError, match=message) as caught:
        validated(Watch, prompt="?", **fields)

    assert caught.value.code is ErrorCode.INVALID_REQUEST
    assert len(caught.value.message.splitlines()) == 1


def test_an_empty_schema_means_any_json() -> None:
    form = AnswerForm(output="json", json_schema={})

    assert Watch(prompt="?", **form.form).json_schema == {}
    assert form.read("[1, 2]") == {"json": [1, 2]}


@pytest.mark.parametrize(
    ("form", "message"),
    [
        (AnswerForm(output="choice", choices=["yes", " no"]), "white space around it"),
        (AnswerForm(output="json", json_schema={"not": {}}), "cannot be followed"),
    ],
)
def test_a_form_that_cannot_be_kept_is_refused_at_once(
    client: Client, form: AnswerForm, message: str
) -> None:
    stream = client.attach(CAMERA, "door", watches=[], probe=False)
    add_frame(client, stream.id)
    for refused in (
        lambda: client.watch("?", form=form),
        lambda: client.ask("?", "door", form=form),
        lambda: client.analyze("clip.mp4", "?", form=form, probe=False),
    ):
        with pytest.raises(StreamerError, match=message) as caught:
            refused()
        assert caught.value.code is ErrorCode.INVALID_REQUEST
    assert client.queries() == []


def test_the_api_passes_the_form_on(api: TestClient, client: Client) -> None:
    # given a stream that is asked for a choice, window after window
    choice = {"type": "choice", "choices": ["open", "closed"]}
    watch = {"prompt": "Is the door open?", "response_format": choice}
    body = {"url": CAMERA, "name": "door", "probe": False, "watches": [watch]}
    made = api.post("/v1/streams", json=body).json()
    assert made["watches"][0]["output"] == "choice"
    assert made["watches"][0]["choices"] == ["open", "closed"]
    add_frame(client, made["id"])
    # when it is asked for JSON
    wanted = {"type": "json_schema", "json_schema": SCHEMA}
    asked = api.post("/v1/queries", json={"prompt": "How many?", "response_format": wanted})
    # then the worker is told so
    assert asked.status_code == 202
    request = queued(client, asked.json()["id"])
    assert (request.output, request.json_schema) == ("json", SCHEMA)
    free = api.post("/v1/queries", json={"prompt": "What?", "response_format": {"type": "text"}})
    assert queued(client, free.json()["id"]).output == "text"


@pytest.mark.parametrize(
    ("wanted", "words"),
    [
        ({"type": "choice", "choices": []}, "at least 1 item"),
        ({"type": "choice"}, "choices"),
        ({"type": "yaml"}, "does not match any of the expected tags"),
        ({"type": "json_schema", "json_schema": {"type": "tree"}}, "Invalid type: tree"),
        ({"type": "json_schema", "json_schema": [1]}, "json_schema"),
        ({"type": "text", "choices": ["a"]}, "not a field of this request"),
    ],
)
def test_the_api_says_what_is_wrong_with_a_form(
    api: TestClient, client: Client, wanted: dict[str, Any], words: str
) -> None:
    stream = client.attach(CAMERA, "door", watches=[], probe=False)
    add_frame(client, stream.id)

    answer = api.post("/v1/queries", json={"prompt": "?", "response_format": wanted})

    assert answer.status_code == 422
    assert answer.json()["error"]["code"] == "INVALID_REQUEST"
    assert words in answer.json()["error"]["message"]


Run = Callable[..., Any]


@pytest.fixture
def run(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.setenv("STREAMER_REDIS_URL", settings.redis_url or "")
    monkeypatch.setenv("STREAMER_DATA_DIR", str(settings.data_dir))
    return lambda *arguments: CliRunner().invoke(app, arguments)


def test_the_command_line_passes_the_form_on(run: Run, client: Client, tmp_path: Path) -> None:
    file = tmp_path / "schema.json"
    file.write_text(json.dumps(SCHEMA))
    options = ("--no-probe", "--prompt", "Is it open?", "--choice", "yes", "--choice", "no")
    assert run("attach", CAMERA, "--name", "door", *options).exit_code == 0
    assert client.stream("door").watches[0].choices == ["yes", "no"]
    add_frame(client, client.stream("door").id)
    for schema in (str(file), file.read_text()):
        asked = run("ask", "How many?", "--no-wait", "--json", "--json-schema", schema)
        assert asked.exit_code == 0, asked.output
        assert queued(client, json.loads(asked.stdout)["id"]).json_schema == SCHEMA

    assert run("edit", "door", "--prompt", "Now?", "--choice", "maybe").exit_code == 0
    assert client.stream("door").watches[0].choices == ["maybe"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--choice", "a", "--json-schema", "{}"], "exclude each other"),
        (["--json-schema", "no-such-file.json"], "give a file, or the schema itself"),
        (["--json-schema", "{"], "is not valid JSON"),
        (["--json-schema", "[1]"], "should be a valid dictionary"),
        (["--json-schema", '{"type": "tree"}'], "Invalid type: tree"),
    ],
)
def test_the_command_line_says_what_is_wrong_with_a_form(
    run: Run, client: Client, options: list[str], words: str
) -> None:
    client.attach(CAMERA, "door", watches=[], probe=False)

    done = run("ask", "door", "What?", "--no-wait", *options)

    assert done.exit_code != 0
    assert words in " ".join(done.stderr.replace("│", " ").split())


def test_a_recording_is_judged_window_by_window(
    installation: Up, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STREAMER_DATA_DIR", str(installation.data_dir))
    video = tmp_path / "clip.mp4"
    write_video(video, seconds=4.0)
    form = ("--prompt", "Is it day?", "--choice", "day", "--choice", "night")

    done = CliRunner().invoke(app, ["analyze", str(video), "--window", "2", *form, "--json"])

    assert done.exit_code == 0, done.output
    results = [json.loads(line) for line in done.stdout.splitlines()]
    assert [result["data"]["media_start"] for result in results] == [0.0, 2.0]
    assert all(result["text"] in ("day", "night") for result in results)
    assert all(result["data"]["choice"] == result["text"] for result in results)
