"""The format of an answer, from the command line and the API to the job."""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from fastapi.testclient import TestClient
from rq.job import Job
from rq.serializers import JSONSerializer
from typer.testing import CliRunner

from nvila_core.generation.schema_limits import MAX_SCHEMA
from nvila_core.resolution.policy import Measures
from streamer import redis_keys
from streamer.cli.app import app
from streamer.domain.request import ClipRequest
from streamer.domain.watch import Watch
from streamer.errors import ErrorCode, StreamerError
from streamer.response_format import ChoiceFormat, JsonFormat, TextFormat
from streamer.service import Service
from streamer.settings import Settings
from streamer.validation import validated
from tests.support.installation import Up
from tests.support.videos import write_video

SCHEMA = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
CAMERA = "rtsp://192.0.2.1/door"


def queued(client: Service, query_id: str) -> ClipRequest:
    """Return the request that a worker will get."""
    job = Job.fetch(query_id, connection=client.connections.main, serializer=JSONSerializer)
    return ClipRequest.model_validate(job.args[0])


def add_frame(client: Service, stream_id: str) -> None:
    jpeg = cv2.imencode(".jpg", np.zeros((24, 32, 3), np.uint8))[1].tobytes()
    measures = Measures(32, 24, change=0.0)
    client.frames.put(stream_id, jpeg, measures, time=time.time(), pts=0.0, decode_ms=1.0)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"type": "choice"}, "choices': Field required"),
        ({"type": "choice", "choices": []}, "at least 1 item"),
        ({"type": "choice", "choices": [str(i) for i in range(257)]}, "at most 256"),
        ({"type": "choice", "choices": ["x" * 1001]}, "at most 1000"),
        ({"type": "choice", "choices": ["a"], "json_schema": {}}, "Extra inputs"),
        ({"type": "text", "choices": ["a"]}, "Extra inputs"),
        ({"type": "json_schema", "choices": ["a"]}, "json_schema': Field required"),
        ({"type": "json_schema", "json_schema": {"title": "x" * MAX_SCHEMA}}, "than 65536"),
        ({"type": "alert"}, "tags: 'text', 'choice', 'json_schema'"),
        ({"choices": ["a"]}, "Unable to extract tag"),
    ],
)
def test_what_is_no_format_is_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(StreamerError, match=message) as caught:
        validated(Watch, prompt="?", response_format=fields)

    assert caught.value.code is ErrorCode.INVALID_REQUEST
    assert len(caught.value.message.splitlines()) == 1


def test_an_empty_schema_means_any_json() -> None:
    anything = JsonFormat(json_schema={})

    assert Watch(prompt="?", response_format=anything).response_format == anything
    assert anything.parse("[1, 2]") == {"json": [1, 2]}


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        (ChoiceFormat(choices=["yes", " no"]), "white space around it"),
        (JsonFormat(json_schema={"not": {}}), "cannot be followed"),
    ],
)
def test_a_format_that_cannot_be_kept_is_refused_at_once(
    client: Service, wanted: ChoiceFormat | JsonFormat, message: str
) -> None:
    stream = client.attach(CAMERA, "door", watches=[], probe=False)
    add_frame(client, stream.id)
    for refused in (
        lambda: client.watch("?", response_format=wanted),
        lambda: client.ask("?", "door", response_format=wanted),
        lambda: client.analyze("clip.mp4", "?", response_format=wanted, probe=False),
    ):
        with pytest.raises(StreamerError, match=message) as caught:
            refused()
        assert caught.value.code is ErrorCode.INVALID_REQUEST
    assert client.queries() == []


def test_the_api_passes_the_format_on(api: TestClient, client: Service) -> None:
    # given a stream that is asked for a choice, window after window
    choice = {"type": "choice", "choices": ["open", "closed"]}
    watch = {"prompt": "Is the door open?", "response_format": choice}
    body = {"url": CAMERA, "name": "door", "probe": False, "watches": [watch]}
    made = api.post("/v1/streams", json=body).json()
    assert made["watches"][0]["response_format"] == choice
    add_frame(client, made["id"])
    # when it is asked for JSON
    wanted = {"type": "json_schema", "json_schema": SCHEMA}
    asked = api.post("/v1/queries", json={"prompt": "How many?", "response_format": wanted})
    # then the worker gets that format
    assert asked.status_code == 202
    request = queued(client, asked.json()["id"])
    assert request.response_format == JsonFormat(json_schema=SCHEMA)
    free = api.post("/v1/queries", json={"prompt": "What?", "response_format": {"type": "text"}})
    assert queued(client, free.json()["id"]).response_format == TextFormat()


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
def test_the_api_says_what_is_wrong_with_a_format(
    api: TestClient, client: Service, wanted: dict[str, Any], words: str
) -> None:
    stream = client.attach(CAMERA, "door", watches=[], probe=False)
    add_frame(client, stream.id)

    answer = api.post("/v1/queries", json={"prompt": "?", "response_format": wanted})

    assert answer.status_code == 422
    assert answer.json()["error"]["code"] == "INVALID_REQUEST"
    assert words in answer.json()["error"]["message"]


@pytest.mark.parametrize(
    "wanted",
    [
        {"type": "text"},
        {"type": "choice", "choices": ["open", "closed"]},
        {"type": "json_schema", "json_schema": SCHEMA},
        {"type": "json_schema", "json_schema": {}},
    ],
    ids=lambda wanted: wanted["type"],
)
def test_the_format_of_a_watch_that_was_got_can_be_sent_back(
    api: TestClient, client: Service, wanted: dict[str, Any]
) -> None:
    # given a watch as the API returns it
    client.attach(CAMERA, "door", watches=[], probe=False)
    place = "/v1/streams/door/watches"
    assert api.post(place, json={"prompt": "?", "response_format": wanted}).status_code == 201
    (watch,) = api.get(place).json()["watches"]
    # then its format is the one that was sent
    assert watch["response_format"] == wanted
    # when it is sent back to make another watch, to change one, and to ask a question
    fields = {key: watch[key] for key in watch if key != "id"}
    copy = api.post(place, json=fields).json()
    changed = api.patch(f"{place}/{watch['id']}", json=fields).json()
    listed = api.patch("/v1/streams/door", json={"watches": [fields]}).json()["watches"]
    add_frame(client, client.stream("door").id)
    asked = {"prompt": "?", "response_format": watch["response_format"]}
    query = api.post("/v1/queries", json=asked).json()
    # then nothing of it has changed
    assert copy == {**watch, "id": copy["id"]}
    assert changed == watch
    assert listed == [watch]
    assert queued(client, query["id"]).response_format.model_dump() == wanted


def test_the_reference_requires_the_type_of_a_format(api: TestClient) -> None:
    schemas = api.get("/openapi.json").json()["components"]["schemas"]
    assert schemas["TextFormat"]["required"] == ["type"]
    assert schemas["ChoiceFormat"]["required"] == ["type", "choices"]
    assert schemas["JsonFormat"]["required"] == ["type", "json_schema"]


def test_watches_stored_by_the_first_version_keep_their_format(client: Service) -> None:
    # given a stream in Redis whose watches were stored before `response_format`
    stream = client.attach(CAMERA, "door", watches=[], probe=False)
    old: list[dict[str, object]] = [
        {"output": "text", "choices": [], "json_schema": None},
        {"output": "choice", "choices": ["open", "closed"], "json_schema": None},
        {"output": "json", "choices": [], "json_schema": SCHEMA},
    ]
    common: dict[str, object] = {"prompt": "?", "window": 10.0, "max_frames": 16, "max_tokens": 128}
    raw = client.connections.main.hget(redis_keys.STREAMS, stream.id)
    assert isinstance(raw, bytes)
    spec = json.loads(raw)
    spec["watches"] = [{"id": f"wch_{n}"} | common | form for n, form in enumerate(old)]
    client.connections.main.hset(redis_keys.STREAMS, stream.id, json.dumps(spec))
    # then they are read
    assert [watch.response_format for watch in client.stream("door").watches] == [
        TextFormat(),
        ChoiceFormat(choices=["open", "closed"]),
        JsonFormat(json_schema=SCHEMA),
    ]
    # and one of them can be changed
    changed = client.watches.edit("door", "wch_1", prompt="Is the door open?")
    assert changed.response_format == ChoiceFormat(choices=["open", "closed"])


Run = Callable[..., Any]


@pytest.fixture
def run(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.setenv("STREAMER_REDIS_URL", settings.redis_url or "")
    monkeypatch.setenv("STREAMER_DATA_DIR", str(settings.data_dir))
    return lambda *arguments: CliRunner().invoke(app, arguments)


def test_the_command_line_passes_the_format_on(run: Run, client: Service, tmp_path: Path) -> None:
    file = tmp_path / "schema.json"
    file.write_text(json.dumps(SCHEMA))
    options = ("--no-probe", "--prompt", "Is it open?", "--choice", "yes", "--choice", "no")
    assert run("attach", CAMERA, "--name", "door", *options).exit_code == 0
    wanted = client.stream("door").watches[0].response_format
    assert wanted == ChoiceFormat(choices=["yes", "no"])
    add_frame(client, client.stream("door").id)
    for schema in (str(file), file.read_text()):
        asked = run("ask", "How many?", "--no-wait", "--json", "--json-schema", schema)
        assert asked.exit_code == 0, asked.output
        request = queued(client, json.loads(asked.stdout)["id"])
        assert request.response_format == JsonFormat(json_schema=SCHEMA)

    assert run("edit", "door", "--prompt", "Now?", "--choice", "maybe").exit_code == 0
    wanted = client.stream("door").watches[0].response_format
    assert wanted == ChoiceFormat(choices=["maybe"])


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
def test_the_command_line_says_what_is_wrong_with_a_format(
    run: Run, client: Service, options: list[str], words: str
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
    options = ("--prompt", "Is it day?", "--choice", "day", "--choice", "night")

    done = CliRunner().invoke(app, ["analyze", str(video), "--window", "2", *options, "--json"])

    assert done.exit_code == 0, done.output
    results = [json.loads(line) for line in done.stdout.splitlines()]
    assert [result["data"]["media_start"] for result in results] == [0.0, 2.0]
    assert all(result["text"] in ("day", "night") for result in results)
    assert all(result["data"]["choice"] == result["text"] for result in results)
