"""An alert as its users meet it: a real camera, the real model, real programs that are killed."""

import json
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from streamer.events import Event, Events
from streamer.service import Service
from tests.support.installation import Up, has_demo_model
from tests.support.staged_camera import StagedCamera

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.skipif(not has_demo_model(), reason="the demo checkpoint has not been trained yet"),
]


def test_a_parked_car_is_one_incident_whatever_is_killed(
    installation: Up, street: StagedCamera, eventually: Callable[..., None]
) -> None:
    with Service(installation.settings) as client:
        events = Events(client.connections.main)
        seen: list[Event] = []
        position = events.position()

        def reported(type: str) -> list[dict[str, Any]]:
            """Return the incident of each event of a type about the camera."""
            seen.extend(events.read(seen[-1].id if seen else position))
            found = [event for event in seen if event.type == type]
            return [json.loads(event.data) for event in found if event.stream_name == "gate"]

        # given a camera with an alert
        arguments = ("attach", street.url, "--name", "gate", "--fps", "2")
        installation.records(*arguments)
        (watch,) = installation.records(
            "watch", "add", "gate", "Is there a car?", "--alert", "--every", "5", "--title", "Car"
        )
        # when a car parks, one incident opens, with a picture
        street.show("car")
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
        eventually(
            lambda: any(incident["summary"] for incident in reported("incident.updated")),
            timeout=300,
        )
        street.show("empty")
        eventually(lambda: reported("incident.resolved"), timeout=300)
        (ended,) = installation.records("incidents", "--stream", "gate")
        assert ended["id"] == opened["id"]
        assert "car" in ended["summary"]
        assert ended["version"] > opened["version"]
        told = [event for event in seen if event.type.startswith("incident.")]
        assert_told_in_order([event for event in told if event.stream_name == "gate"])
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
