"""The largest requests: what reaches a limit passes each door, and one more does not."""

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

from nvila_core.generation.schema_limits import MAX_SCHEMA_DEPTH
from nvila_core.resolution.policy import Measures
from streamer.api.app import create_app
from streamer.cli.app import app
from streamer.domain.question import Question
from streamer.domain.watch import Watch
from streamer.errors import ErrorCode, StreamerError
from streamer.limits import (
    MAX_ANSWER_TOKENS,
    MAX_CHOICE,
    MAX_CHOICES,
    MAX_CHOICES_LENGTH,
    MAX_CLIP_FRAMES,
    MAX_PROMPT,
    MAX_SEARCH,
    MAX_SOURCE,
    MAX_WATCHES,
)
from streamer.service import Service
from streamer.settings import Settings

CAMERA = "rtsp://192.0.2.1/yard"


@pytest.fixture
def client(settings: Settings) -> Iterator[Service]:
    """An installation with a stream that has a frame."""
    with Service(settings) as opened:
        stream = opened.attach(CAMERA, "yard", watches=[], probe=False)
        jpeg = cv2.imencode(".jpg", np.zeros((24, 32, 3), np.uint8))[1].tobytes()
        opened.frames.put(stream.id, jpeg, Measures(32, 24, change=0.0), time=time.time(), pts=0.0)
        yield opened


@pytest.fixture
def api(client: Service) -> Iterator[TestClient]:
    served = create_app(client)
    with TestClient(
        served, base_url="http://127.0.0.1:8080", raise_server_exceptions=False
    ) as opened:
        yield opened


def choices(count: int, length: int) -> list[str]:
    """Return `count` different choices of `length` characters each."""
    return [f"{number:0{length}d}" for number in range(count)]


def deep(depth: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "string"}
    for _ in range((depth - 1) // 2):
        schema = {"type": "object", "properties": {"a": schema}}
    return schema


def choice(count: int, length: int) -> dict[str, Any]:
    return {"response_format": {"type": "choice", "choices": choices(count, length)}}


def schema(value: dict[str, Any]) -> dict[str, Any]:
    return {"response_format": {"type": "json_schema", "json_schema": value}}


EACH = MAX_CHOICES_LENGTH // MAX_CHOICES
LIMITS: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "prompt": ({"prompt": "x" * MAX_PROMPT}, {"prompt": "x" * (MAX_PROMPT + 1)}, "32,768"),
    "frames": (
        {"max_frames": MAX_CLIP_FRAMES},
        {"max_frames": MAX_CLIP_FRAMES + 1},
        str(MAX_CLIP_FRAMES),
    ),
    "tokens": (
        {"max_tokens": MAX_ANSWER_TOKENS},
        {"max_tokens": MAX_ANSWER_TOKENS + 1},
        str(MAX_ANSWER_TOKENS),
    ),
    "number of choices": (choice(MAX_CHOICES, 3), choice(MAX_CHOICES + 1, 3), "256"),
    "length of a choice": (choice(1, MAX_CHOICE), choice(1, MAX_CHOICE + 1), "1000"),
    "length of all choices": (choice(MAX_CHOICES, EACH), choice(MAX_CHOICES, EACH + 1), "65,536"),
    "depth of a schema": (
        schema(deep(MAX_SCHEMA_DEPTH - 1)),
        schema(deep(MAX_SCHEMA_DEPTH + 1)),
        "64 levels",
    ),
    "cost of a schema": (
        schema({"type": "integer", "multipleOf": 99}),
        schema({"type": "integer", "multipleOf": 99_999_999}),
        "64 MiB",
    ),
}


def ask(client: Service, fields: dict[str, Any]) -> None:
    given: dict[str, Any] = {"prompt": "What?", "stream": "yard", "stale_ok": True} | fields
    client.ask(**given)


def submit(client: Service, fields: dict[str, Any]) -> None:
    client.submit(Question(**{"prompt": "What?", "stream": "yard", "stale_ok": True} | fields))


def attach(client: Service, fields: dict[str, Any]) -> None:
    watch = Watch(**{"prompt": "What?"} | fields)  # not made by Service.watch, which checks it too
    client.attach(CAMERA, "gate", watches=[watch], probe=False)


def edit(client: Service, fields: dict[str, Any]) -> None:
    client.edit("yard", watches=[Watch(**{"prompt": "What?"} | fields)])


def add_watch(client: Service, fields: dict[str, Any]) -> None:
    client.watches.add("yard", Watch(**{"prompt": "What?"} | fields))


def edit_watch(client: Service, fields: dict[str, Any]) -> None:
    watch = client.watch("What?")
    client.watches.add("yard", watch)
    fields = json.loads(json.dumps(fields))
    if "response_format" in fields:
        fields["response_format"] = Watch(prompt="?", **fields).response_format
    client.watches.edit("yard", watch.id, **fields)


@pytest.mark.parametrize("door", [ask, submit, attach, edit, add_watch, edit_watch])
@pytest.mark.parametrize("limit", LIMITS)
def test_the_python_client_refuses_what_exceeds_a_limit(
    client: Service, door: Callable[[Service, dict[str, Any]], None], limit: str
) -> None:
    fits, exceeds, reason = LIMITS[limit]
    with pytest.raises((StreamerError, ValueError), match=reason) as caught:
        door(client, exceeds)
    if isinstance(caught.value, StreamerError):
        assert caught.value.code in (ErrorCode.INVALID_REQUEST, ErrorCode.PROMPT_TOO_LONG)
        assert len(caught.value.message) < 500
    door(client, fits)


DOORS: dict[str, tuple[str, str, Callable[[dict[str, Any]], dict[str, Any]]]] = {
    "query": ("POST", "/v1/queries", lambda fields: {"stream": "yard", **fields}),
    "attach": (
        "POST",
        "/v1/streams",
        lambda fields: {"url": CAMERA, "probe": False, "watches": [fields]},
    ),
    "edit": ("PATCH", "/v1/streams/yard", lambda fields: {"watches": [fields]}),
    "watch": ("POST", "/v1/streams/yard/watches", lambda fields: fields),
}


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("limit", LIMITS)
def test_the_api_refuses_what_exceeds_a_limit(api: TestClient, door: str, limit: str) -> None:
    method, path, body = DOORS[door]
    fits, exceeds, reason = LIMITS[limit]

    refused = api.request(method, path, json=body({"prompt": "What?"} | exceeds))
    accepted = api.request(method, path, json=body({"prompt": "What?"} | fits))

    assert refused.status_code == 422, refused.text
    assert refused.json()["error"]["code"] in ("INVALID_REQUEST", "PROMPT_TOO_LONG")
    assert reason in refused.json()["error"]["message"]
    assert len(refused.text) < 1000
    assert accepted.status_code in (200, 201, 202), accepted.text


def test_the_api_refuses_a_changed_watch_that_exceeds_a_limit(api: TestClient) -> None:
    watch = api.post("/v1/streams/yard/watches", json={"prompt": "What?"}).json()
    path = f"/v1/streams/yard/watches/{watch['id']}"
    for fits, exceeds, reason in LIMITS.values():
        refused = api.patch(path, json=exceeds)
        assert refused.status_code == 422
        assert reason in refused.json()["error"]["message"]
        assert api.patch(path, json=fits).status_code == 200


def test_a_stream_has_a_limit_of_watches_and_of_its_source(
    client: Service, api: TestClient
) -> None:
    many = [{"prompt": str(n)} for n in range(MAX_WATCHES + 1)]
    body = {"url": CAMERA, "probe": False}
    assert api.post("/v1/streams", json={**body, "watches": many}).status_code == 422
    assert api.post("/v1/streams", json={**body, "watches": many[1:]}).status_code == 201

    long = f"{CAMERA}?{'x' * (MAX_SOURCE - len(CAMERA) - 1)}"
    assert api.post("/v1/streams", json={**body, "url": long + "x"}).status_code == 422
    assert api.post("/v1/streams", json={**body, "url": long}).status_code == 201
    for door in (
        lambda: client.attach(long + "x", probe=False),
        lambda: client.edit("yard", source=long + "x", probe=False),
    ):
        with pytest.raises(StreamerError, match="4,096"):
            door()


@pytest.mark.parametrize("name", ["q", "stream"])
def test_parameters_of_a_list_have_a_limit(api: TestClient, name: str) -> None:
    refused = api.get("/v1/results", params={name: "x" * (MAX_SEARCH + 1)})

    assert refused.status_code == 422
    assert f"at most {MAX_SEARCH} characters" in refused.json()["error"]["message"]


@pytest.mark.parametrize(
    ("command", "limit"),
    [
        (command, limit)
        for command in ("ask", "attach", "watch")
        for limit in LIMITS
        if (command, limit) != ("attach", "tokens")  # it has no option for it
    ],
)
def test_the_command_line_refuses_what_exceeds_a_limit(
    client: Service, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, command: str, limit: str
) -> None:
    monkeypatch.setenv("STREAMER_REDIS_URL", client.settings.redis_url or "")
    monkeypatch.setenv("STREAMER_DATA_DIR", str(client.settings.data_dir))
    fits, exceeds, reason = LIMITS[limit]

    def run(fields: dict[str, Any]) -> Any:
        prompt = fields.get("prompt", "What?")
        words = {
            "ask": ["ask", "yard", prompt, "--no-wait"],
            "attach": ["attach", CAMERA, "--no-probe", "--prompt", prompt],
            "watch": ["watch", "add", "yard", prompt],
        }[command]
        return CliRunner().invoke(app, [*words, *_options(fields, tmp_path)])

    refused, accepted = run(exceeds), run(fits)

    assert refused.exit_code != 0
    shown = " ".join((refused.output + str(refused.exception)).replace("\u2502", " ").split())
    assert reason in shown
    assert accepted.exit_code == 0, accepted.output


def _options(fields: dict[str, Any], folder: Path) -> list[str]:
    options = []
    for name in ("max_frames", "max_tokens"):
        if name in fields:
            options += [f"--{name.replace('_', '-')}", str(fields[name])]
    form = fields.get("response_format", {})
    for one in form.get("choices", []):
        options += ["--choice", one]
    if "json_schema" in form:
        path = folder / "schema.json"
        path.write_text(json.dumps(form["json_schema"]))
        options += ["--json-schema", str(path)]
    return options
