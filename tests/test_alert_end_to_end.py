"""An alert as its users meet it: a real camera, the real model, real programs that are killed."""

import dataclasses
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from nvila_core.demo.video import StreetVideo, write_video
from nvila_core.demo.world import Actor
from streamer.demo.loopback_camera import LoopbackCamera
from streamer.events import Event, Events
from streamer.service import Service
from tests.support.installation import Up, has_demo_model

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.skipif(not has_demo_model(), reason="the demo checkpoint has not been trained yet"),
]

COMES, PARKS, LEAVES, GONE = 10.0, 14.0, 45.0, 49.0
SECONDS = 110.0


@pytest.fixture
def gate(tmp_path: Path) -> Iterator[str]:
    """The URL of a camera: an empty street, where a car comes, parks for a while, and leaves."""
    video = StreetVideo(3_000_000_017, SECONDS)
    path = ((COMES, -0.3, 0.6), (PARKS, 0.5, 0.6), (LEAVES, 0.5, 0.6), (GONE, 1.3, 0.6))
    video.scene = dataclasses.replace(video.scene, actors=(Actor("car", "red", 1.0, path),))
    write_video(tmp_path / "gate.mp4", video)
    with LoopbackCamera(tmp_path / "gate.mp4") as camera:
        yield camera.url


def test_a_parked_car_is_one_incident_whatever_is_killed(
    installation: Up, gate: str, eventually: Callable[..., None]
) -> None:
    with Service(installation.settings) as client:
        events = Events(client.connections.main)
        seen: list[Event] = []
        position = events.position()

        def reported(type: str) -> bool:
            found = events.read(seen[-1].id if seen else position)
            seen.extend(found)
            return any(event.type == type and event.stream_name == "gate" for event in seen)

        # given a camera with an alert
        arguments = ("attach", gate, "--name", "gate", "--fps", "2")
        installation.records(*arguments)
        (watch,) = installation.records(
            "watch", "add", "gate", "Is there a car?", "--alert", "--every", "5", "--title", "Car"
        )
        # when a car parks, one incident opens, with a picture
        eventually(lambda: reported("incident.opened"), timeout=300)
        (opened,) = installation.records("incidents", "--open", "--stream", "gate")
        assert (opened["watch_id"], opened["title"]) == (watch["id"], "Car")
        picture = httpx.get(installation.api_url + opened["snapshot"]["opened"], timeout=120)
        assert picture.content.startswith(b"\xff\xd8")
        # and recorder and model worker are killed meanwhile
        for program in ("workers.recorder", "workers.gpu"):
            for process in installation.find(program):
                process.kill()
        # then it is updated, with what the model says, and resolved when the car has left
        eventually(lambda: reported("incident.updated"), timeout=300)
        eventually(lambda: reported("incident.resolved"), timeout=300)
        (ended,) = installation.records("incidents", "--stream", "gate")
        assert ended["id"] == opened["id"]
        assert "car" in ended["summary"]
        assert ended["version"] > opened["version"]
        assert_told_in_order([event for event in seen if event.type.startswith("incident.")])
        video = httpx.get(installation.api_url + ended["clip"], timeout=120)
        assert video.headers["content-type"] == "video/mp4"
        installation.cli("detach", "gate")


def assert_told_in_order(events: list[Event]) -> None:
    """Each message is about the same incident and has a higher version than the one before."""
    reported: list[dict[str, Any]] = [json.loads(event.data) for event in events]
    assert len({incident["id"] for incident in reported}) == 1
    versions = [incident["version"] for incident in reported]
    assert versions == sorted(set(versions))
    kinds = [event.type for event in events if event.type != "incident.updated"]
    assert kinds[:2] == ["incident.opened", "incident.resolved"]
