"""A real MQTT broker on a free loopback port, and a client that remembers what it heard."""

import json
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

_START = 100.0


class Broker:
    """Mosquitto with a configuration of its own; it can be stopped and started again.

    Args:
        folder: for its configuration, its log, and what it keeps over a restart.
        password: of the user `nvila`; None: everybody may connect.
        certificate: file with certificate and key; None: without TLS.
    """

    def __init__(
        self, folder: Path, password: str | None = None, certificate: Path | None = None
    ) -> None:
        found = shutil.which("mosquitto") or shutil.which("mosquitto", path="/usr/sbin")
        if found is None:
            pytest.skip("Mosquitto is not installed: apt-get install mosquitto")
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port: int = free.getsockname()[1]
        folder.mkdir(exist_ok=True)
        self._command = [found, "-c", str(folder / "mosquitto.conf")]
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None
        self._secure = certificate is not None
        lines = [
            f"listener {self.port} 127.0.0.1",
            "persistence true",
            f"persistence_location {folder}/",
            f"allow_anonymous {'true' if password is None else 'false'}",
            "user root",
        ]
        if password is not None:
            passwords = folder / "passwords"
            subprocess.run(
                ["mosquitto_passwd", "-c", "-b", str(passwords), "nvila", password],
                check=True,
                capture_output=True,
            )
            lines.append(f"password_file {passwords}")
        if certificate is not None:
            lines += [f"certfile {certificate}", f"keyfile {certificate}"]
        (folder / "mosquitto.conf").write_text("\n".join(lines) + "\n")

    @property
    def url(self) -> str:
        """Its address for the setting `mqtt_url`, without login."""
        return f"mqtt://127.0.0.1:{self.port}"

    def start(self) -> None:
        """Start it, and wait until it listens."""
        with (self._folder / "log").open("ab") as log:
            self._process = subprocess.Popen(self._command, stdout=log, stderr=log)
        deadline = time.monotonic() + _START
        while time.monotonic() < deadline:
            try:
                socket.create_connection(("127.0.0.1", self.port), 1).close()
                return
            except OSError:
                assert self._process.poll() is None, (self._folder / "log").read_text()
                time.sleep(0.02)
        pytest.fail("mosquitto does not listen")

    def stop(self) -> None:
        """Stop it; what it keeps is there when it starts again."""
        if self._process is not None:
            self._process.terminate()
            self._process.wait(100)
            self._process = None


class Listener:
    """Hears everything at a broker from when it is made; close it.

    Attributes:
        heard: topic, payload and whether the broker had kept it, in order.
    """

    def __init__(self, broker: Broker, password: str | None = None) -> None:
        from paho.mqtt.client import Client, MQTTv5
        from paho.mqtt.enums import CallbackAPIVersion
        from paho.mqtt.subscribeoptions import SubscribeOptions

        self.heard: list[tuple[str, bytes, bool]] = []
        ready = threading.Event()
        # QoS 0, as a broker drops others that its queue cannot hold while this client is slow
        options = SubscribeOptions(qos=0, retainAsPublished=True)
        self._client = Client(CallbackAPIVersion.VERSION2, protocol=MQTTv5)
        if password is not None:
            self._client.username_pw_set("nvila", password)

        def connected(*_: Any) -> None:
            self._client.subscribe("#", options=options)

        self._client.on_connect = connected
        self._client.on_subscribe = lambda *_: ready.set()
        self._client.on_message = self._hear
        self._client.connect("127.0.0.1", broker.port)
        self._client.loop_start()
        assert ready.wait(100)

    def _hear(self, _client: Any, _data: Any, message: Any) -> None:
        self.heard.append((message.topic, message.payload, message.retain))

    def say(self, topic: str, payload: bytes | str, **options: Any) -> None:
        """Publish a message, and wait until the broker has it."""
        if not isinstance(payload, bytes):
            payload = payload.encode()
        self._client.publish(topic, payload, qos=1, **options).wait_for_publish(30)

    def keep(self, topics: list[str], payload: str) -> None:
        """Let the broker keep a message on each topic; wait until it has them."""
        sent = [self._client.publish(topic, payload, qos=1, retain=True) for topic in topics]
        for each in sent:
            each.wait_for_publish(30)

    @property
    def kept(self) -> dict[str, bytes]:
        """What the broker keeps, as far as it was heard, by topic."""
        kept = {topic: payload for topic, payload, retained in self.heard if retained}
        return {topic: payload for topic, payload in kept.items() if payload}

    def json(self, topic: str) -> Any:
        """Return what the broker keeps on a topic; None if that is nothing."""
        payload = self.kept.get(topic)
        return json.loads(payload) if payload is not None else None

    def all(self, topic: str) -> list[Any]:
        """Return the JSON of all messages on a topic, in order."""
        return [json.loads(payload) for heard, payload, _ in self.heard if heard == topic]

    def close(self) -> None:
        """End the connection."""
        self._client.disconnect()
        self._client.loop_stop()


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Broker]:
    """A broker that runs, and lets everybody in."""
    pytest.importorskip("aiomqtt", reason="aiomqtt is not installed: nvila-streamer[mqtt]")
    made = Broker(tmp_path / "broker")
    made.start()
    yield made
    made.stop()


@pytest.fixture
def listener(broker: Broker) -> Iterator[Listener]:
    """A client that hears everything at `broker`."""
    made = Listener(broker)
    yield made
    made.close()
