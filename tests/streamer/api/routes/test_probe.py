"""`POST /v1/probe`: each step as it is taken, then the report."""

import asyncio
import json
import socket
from pathlib import Path

import pytest
from anyio import CapacityLimiter
from fastapi.testclient import TestClient

from streamer.api.routes import probe
from streamer.api.schemas import ProbeBody
from streamer.demo.loopback_camera import LoopbackCamera
from streamer.media.probe import prober
from streamer.service import Service
from tests.support.videos import write_video


def events(text: str) -> list[tuple[str, dict]]:
    """The events of a response, in order."""
    found = []
    for block in text.replace("\r\n", "\n").split("\n\n"):
        fields = dict(line.split(": ", 1) for line in block.splitlines() if ": " in line)
        if "event" in fields:
            found.append((fields["event"], json.loads(fields["data"])))
    return found


def test_each_step_is_sent_when_it_begins_and_when_it_has_ended(
    api: TestClient, tmp_path: Path
) -> None:
    write_video(tmp_path / "clip.mp4", pix_fmt="yuv420p")
    with LoopbackCamera(tmp_path / "clip.mp4") as camera:
        sent = events(api.post("/v1/probe", json={"url": camera.url}).text)

    kind, report = sent[-1]
    assert kind == "report"
    assert report["ok"]
    assert report["codec"] == "h264"
    steps = [data for name, data in sent if name == "step"]
    assert steps == report["steps"]
    assert [step["name"] for step in steps][:3] == ["name", "connect", "describe"]
    assert steps[-1]["name"] == "first picture"
    begun = [data["name"] for name, data in sent if name == "begun"]
    assert begun == [step["name"] for step in steps if step["name"] != "set up"]
    # a step begins before it ends
    assert sent.index(("begun", {"name": "connect"})) < sent.index(("step", steps[1]))


def test_the_step_that_fails_is_the_last_and_comes_with_advice(
    api: TestClient,
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    url = f"rtsp://viewer:s3cret@127.0.0.1:{port}/stream"
    response = api.post("/v1/probe", json={"url": url})

    report = events(response.text)[-1][1]
    assert not report["ok"]
    assert report["steps"][-1]["name"] == "connect"
    assert not report["steps"][-1]["ok"]
    assert report["error"]["code"] == "STREAM_CONNECTION_FAILED"
    assert report["advice"]
    assert "s3cret" not in response.text


@pytest.mark.parametrize(
    ("url", "status", "code"),
    [
        ("ftp://example.com/x", 403, "STREAM_URL_FORBIDDEN"),
        ("/etc/passwd", 403, "STREAM_URL_FORBIDDEN"),
        ("http://169.254.169.254/latest", 403, "STREAM_URL_FORBIDDEN"),
        ("", 422, "INVALID_REQUEST"),
    ],
)
def test_addresses_that_may_not_be_opened_are_refused(
    api: TestClient, url: str, status: int, code: str
) -> None:
    refused = api.post("/v1/probe", json={"url": url})
    assert (refused.status_code, refused.json()["error"]["code"]) == (status, code)


def test_a_caller_that_leaves_before_its_turn_opens_no_camera(client: Service) -> None:
    body = ProbeBody(url="rtsp://127.0.0.1:1/stream")
    opened: list[str] = []

    async def leave() -> None:
        running = object()
        await probe._limiter.acquire_on_behalf_of(running)
        try:
            events = probe.try_source(body, client)
            first = asyncio.ensure_future(anext(events))
            while not probe._limiter.statistics().tasks_waiting:
                await asyncio.sleep(0.01)
            first.cancel()
            await asyncio.gather(first, return_exceptions=True)
        finally:
            probe._limiter.release_on_behalf_of(running)
        while probe._limiter.borrowed_tokens or probe._limiter.statistics().tasks_waiting:
            await asyncio.sleep(0.01)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(probe, "_limiter", CapacityLimiter(1))
        patch.setattr(prober, "probe", lambda url, **_: opened.append(url))
        asyncio.run(leave())
    assert opened == []


def test_a_name_that_leads_to_this_machine_is_not_connected_to(api: TestClient) -> None:
    report = events(api.post("/v1/probe", json={"url": "http://localhost:1/x.mp4"}).text)[-1][1]
    assert report["error"]["code"] == "STREAM_URL_FORBIDDEN"
    assert [step["name"] for step in report["steps"]] == ["name"]
