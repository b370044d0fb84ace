"""The service accepts each example of the reference, and each one of docs/api.md."""

import json
import re
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import cv2
import numpy as np
import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from nvila_core.resolution.policy import Measures
from streamer.api.app import create_app
from streamer.api.examples import EXAMPLES
from streamer.api.schemas import DiscoveryBody
from streamer.domain.ids import new_id
from streamer.domain.result import Result
from streamer.domain.watch import Watch
from streamer.service import Service
from streamer.settings import Settings
from tests.streamer.incidents.conftest import Alert
from tests.support.api_server import ApiServer
from tests.support.videos import write_video

PAGE = (Path(__file__).parents[3] / "docs" / "api.md").read_text()

(FILE,) = {body["file"] for body in EXAMPLES["attach_stream"].values() if "file" in body}
(KEY,) = (body["key"] for body in EXAMPLES["sign_in"].values())

OTHERS = {"create_chat_completion", "discover_cameras"}
"""What needs a model, see test_openai.py, and what would send probes into the network."""


@pytest.fixture
def client(settings: Settings) -> Service:
    """The owner of the camera and the keys of the examples."""
    return Service(
        settings.model_copy(
            update={
                "api_keys": [KEY],
                "webhook_hosts": ["192.168.1.20"],
                "stale_after": 86_400,
                "frame_ttl": 86_400,
            }
        )
    )


@pytest.fixture
def api(client: Service) -> Iterator[TestClient]:
    with TestClient(create_app(client), headers={"Authorization": f"Bearer {KEY}"}) as opened:
        yield opened


def attach_camera(client: Service, name: str) -> None:
    """Attach a camera that has seen frames until now."""
    stream = client.attach(f"rtsp://camera.example/{name}", name, probe=False)
    jpeg = cv2.imencode(".jpg", np.zeros((24, 32, 3), np.uint8))[1].tobytes()
    now = time.time()
    for age in (3.0, 2.0, 1.0, 0.0):
        measures = Measures(32, 24, change=0.1)
        client.frames.put(stream.id, jpeg, measures, time=now - age, pts=now - age)


def store_video(client: Service, folder: Path) -> None:
    """Upload the file of the examples."""
    write_video(folder / "clip.mp4", seconds=0.5)
    content = (folder / "clip.mp4").read_bytes()
    client.files.append(client.files.begin("clip.mp4", len(content), FILE).id, 0, [content])


def test_each_body_has_examples(api: TestClient) -> None:
    # given
    paths = api.get("/openapi.json").json()["paths"]
    calls = [call for path in paths.values() for call in path.values()]
    bodies = {
        call["operationId"]: call["requestBody"]["content"]["application/json"]
        for call in calls
        if "application/json" in call.get("requestBody", {}).get("content", {})
    }
    # then
    assert bodies.keys() == EXAMPLES.keys()
    for body in bodies.values():
        assert all(example["value"] for example in body["examples"].values())


@pytest.mark.parametrize("operation", sorted(EXAMPLES.keys() - OTHERS))
def test_each_example_is_accepted(
    api: TestClient, client: Service, tmp_path: Path, operation: str
) -> None:
    # given what the examples are about
    ids: dict[str, str] = {}
    if operation == "attach_stream":
        store_video(client, tmp_path)
    else:
        attach_camera(client, "yard")
    match operation:
        case "ask_question":
            attach_camera(client, "gate")
            store_video(client, tmp_path)
        case "edit_stream" | "add_watch":
            ids["ref"] = client.stream("yard").id
        case "summarise_stream":
            ids["ref"] = "yard"
            stream = client.stream("yard")
            named = {"stream_id": stream.id, "stream_name": "yard"}
            seen = {"kind": "caption", "prompt": "Describe.", "text": "A gate.", **named}
            client.timeline.record([Result(request_id=new_id("req"), **seen)])
        case "edit_watch":
            ids["ref"] = client.stream("yard").id
            rule = EXAMPLES["add_watch"]["an alert"]
            ids["watch_id"] = api.post("/v1/streams/yard/watches", json=rule).json()["id"]
        case "edit_incident":
            Alert(client.timeline).see(0.9, 0.9)
            ids["incident_id"] = client.incidents.page().incidents[0].id
        case "edit_webhook":
            (webhook,) = EXAMPLES["add_webhook"].values()
            ids["webhook_id"] = api.post("/v1/webhooks", json=webhook).json()["id"]
    path = cast(FastAPI, api.app).url_path_for(operation, **ids)
    for name, body in EXAMPLES[operation].items():
        # when
        answer = api.request("PATCH" if operation.startswith("edit_") else "POST", path, json=body)
        # then
        assert answer.is_success, (name, answer.text)


@pytest.mark.parametrize("name", EXAMPLES["discover_cameras"])
def test_the_examples_of_a_search_for_cameras_are_valid(name: str) -> None:
    DiscoveryBody(**EXAMPLES["discover_cameras"][name])


def run(script: str, folder: Path) -> str:
    """Run a script of the page; each call of it must succeed."""
    strict = 'set -eu\ncurl() { command curl --fail-with-body --max-time 60 "$@"; echo; }\n'
    done = subprocess.run(
        ["bash", "-c", strict + script], cwd=folder, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, script + done.stdout + done.stderr
    return done.stdout


def test_the_examples_of_the_page_run(settings: Settings, tmp_path: Path) -> None:
    # given the service of the page: cameras, one with a watch, and a video beside
    settings = settings.model_copy(
        update={"stale_after": 86_400, "frame_ttl": 86_400, "allowed_dirs": [tmp_path]}
    )
    write_video(tmp_path / "evening.mp4", seconds=0.5)
    with ApiServer(settings) as server:
        client = server.client
        attach_camera(client, "yard")
        attach_camera(client, "gate")
        client.watches.add("yard", Watch(id="wch_0c1b7f6a2d94e853", prompt="Is the gate open?"))
        blocks = re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL)
        said = []
        for block in blocks:
            # when
            script = f"api={server.url}/v1\n{block}".replace("http://127.0.0.1:8080", server.url)
            script = script.replace("https://example.org", str(tmp_path))
            upload, names, rest = script.partition(f"# returns its id: {FILE}\n")
            if names:  # the lines after it name what it returned
                said.append(run(upload, tmp_path))
                script = upload.rpartition("curl")[0] + rest
            files = client.files.page(1)[0]
            said.append(run(script.replace(FILE, files[0].id if files else FILE), tmp_path))
        # then
        assert json.loads(said[0])["prompt"] == "Is the gate open?"
        names_of_streams = [stream.name for stream in client.streams()]
        assert names_of_streams[:3] == ["yard", "gate", "evening"]
        changed = [watch for watch in client.stream("yard").watches if watch.window == 5]
        assert [watch.prompt for watch in changed] == ["Is the gate open?"]
        # and an error looks as the page shows it
        (shown,) = re.findall(r"```json\n(\{\"error\".*?)```", PAGE, re.DOTALL)
        expected = json.loads(shown)["error"]
        watch = {"prompt": "Is the gate open?", "window": 0}
        body = json.dumps({"url": "rtsp://camera.example", "watches": [watch]})
        failed = subprocess.run(
            ["curl", "-s", f"{server.url}/v1/streams", "--json", body],
            capture_output=True,
            check=True,
        )
        error = json.loads(failed.stdout)["error"]
        assert error | {"request_id": ""} == expected | {"request_id": ""}
