"""Home Assistant, unmodified, at the same broker as the MQTT bridge.

Its integration `mqtt_statestream` publishes what its entities show, under `seen/`.
"""

import json
import os
import socket
import subprocess
from pathlib import Path

import pytest

from streamer.domain.stream import StreamState
from streamer.errors import ErrorCode
from tests.support.client_venvs import python_with
from tests.support.mqtt_yard import ALERT, CAPTION, COUNT, GATE

pytestmark = [pytest.mark.clients, pytest.mark.timeout(1800)]

PACKAGES = (
    "homeassistant==2024.3.3",
    # what its default integrations would install when they are set up
    "home-assistant-frontend==20240307.0",
    "securetar==2024.2.1",
    "psutil-home-assistant==0.0.1",
    "Pillow>=10,<13",
    "SQLAlchemy>=2.0.27,<2.1",
    "fnv-hash-fast==0.5.0",
    "numpy<2",
    "PyTurboJPEG==1.7.1",
    "paho-mqtt<2",
    # newer ones do not fit it
    "janus==1.0.0",
    "josepy<2",
    "setuptools<80",
)

CONFIGURATION = """
homeassistant:
  name: Home
  time_zone: UTC
http:
  server_host: 127.0.0.1
  server_port: {port}
logger:
  default: warning
mqtt_statestream:
  base_topic: seen
  publish_attributes: true
automation:
  - alias: alarm
    trigger:
      - platform: state
        entity_id: binary_sensor.gate_is_a_car_parked_in_front_of_the_gate
        to: "on"
    action:
      - service: mqtt.publish
        data:
          topic: seen/alarm
          payload: "{{{{ trigger.to_state.attributes.incident_id }}}}"
"""


class HomeAssistant:
    """A home with the MQTT integration and nothing else."""

    def __init__(self, folder: Path, broker_port: int) -> None:
        python = python_with("home-assistant", *PACKAGES)
        self._folder = folder
        self._command = [str(python.with_name("hass")), "-c", str(folder), "--skip-pip"]
        self._process: subprocess.Popen[bytes] | None = None
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        (folder / ".storage").mkdir(parents=True)
        (folder / "configuration.yaml").write_text(CONFIGURATION.format(port=port))
        entry = {
            "entry_id": "5a1f0e0f00000000000000000000abcd",
            "version": 1,
            "minor_version": 1,
            "domain": "mqtt",
            "title": "MQTT",
            "data": {"broker": "127.0.0.1", "port": broker_port, "discovery": True},
            "options": {},
            "pref_disable_new_entities": False,
            "pref_disable_polling": False,
            "source": "user",
            "unique_id": None,
            "disabled_by": None,
        }
        stored = {
            "version": 1,
            "minor_version": 1,
            "key": "core.config_entries",
            "data": {"entries": [entry]},
        }
        (folder / ".storage" / "core.config_entries").write_text(json.dumps(stored))

    @property
    def log(self) -> str:
        """What it has said."""
        return (self._folder / "said").read_text(errors="replace")

    def start(self) -> None:
        with (self._folder / "said").open("ab") as said:
            self._process = subprocess.Popen(
                self._command, stdout=said, stderr=said, stdin=subprocess.DEVNULL, env=os.environ
            )

    def stop(self) -> None:
        if self._process is not None:
            self._process.terminate()
            self._process.wait(120)
            self._process = None


@pytest.fixture
def home(tmp_path, broker):
    made = HomeAssistant(tmp_path / "home", broker.port)
    yield made
    made.stop()


def test_streams_are_devices_with_states(yard, start_bridge, broker, listener, home, eventually):
    def seen(entity, what="state"):
        shown = listener.kept.get(f"seen/{entity.replace('.', '/')}/{what}")
        return shown.decode() if shown is not None else None

    def becomes(entity, value, what="state"):
        try:
            eventually(lambda: seen(entity, what) == value, 120)
        except pytest.fail.Exception:
            states = [topic for topic in listener.kept if topic.startswith("seen/")]
            pytest.fail(f"{entity} is {seen(entity, what)}\n{sorted(states)}\n{home.log}")

    car = "binary_sensor.gate_is_a_car_parked_in_front_of_the_gate"
    # given a home, a bridge, and a camera that is attached while both run
    home.start()
    start_bridge()
    yard.attach()
    yard.store_frame()
    # then its entities appear
    becomes("switch.gate_watching", "on")
    becomes(car, "unknown")
    becomes("sensor.gate_caption", "unavailable")
    becomes("camera.gate", "idle")
    eventually(lambda: seen("event.gate_event") is not None)
    eventually(lambda: seen("image.gate_caption_picture") is not None)
    # when its watches are answered
    yard.answer(CAPTION, text="A street. " * 50)
    yard.answer(GATE, text="open", data={"choice": "open"})
    answer = {"people": 3, "colour": "red", "note": ""}
    yard.answer(COUNT, text=json.dumps(answer), data={"json": answer})
    yard.car(0.1)
    # then
    becomes(car, "off")
    becomes("sensor.gate_is_the_gate_open", "open")
    becomes("sensor.gate_people", "3")
    becomes("sensor.gate_colour", "red")
    eventually(lambda: len(seen("sensor.gate_caption") or "") == 255)
    becomes("sensor.gate_caption", json.dumps("A street. " * 50), "text")
    # when a car comes
    yard.car(0.9)
    # then
    becomes(car, "on")
    becomes(car, '"warning"', "severity")
    becomes("event.gate_event", '"incident.opened"', "event_type")
    eventually(lambda: any(topic == "seen/alarm" for topic, _, _ in listener.heard))
    # when the home restarts
    home.stop()
    listener.heard.clear()
    home.start()
    # then all is back
    becomes(car, "on")
    becomes("sensor.gate_people", "3")
    becomes("switch.gate_watching", "on")
    # when the car has left, and then the camera is lost
    yard.car(0.1)
    becomes(car, "off")
    yard.become(StreamState.RECONNECTING, ErrorCode.STREAM_CONNECTION_FAILED)
    becomes(car, "unknown")
    becomes("sensor.gate_caption", "unavailable")
    becomes("sensor.gate_is_the_gate_open", "unavailable")
    # when it is detached
    yard.service.registry.delete("gate")
    becomes("sensor.gate_caption", "unavailable")
    problems = [line for line in home.log.splitlines() if "ERROR" in line and "mqtt" in line]
    assert problems == []
    assert ALERT.id not in "".join(topic for topic in listener.kept if "config" in topic)
