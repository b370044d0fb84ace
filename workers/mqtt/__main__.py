"""Run the MQTT bridge as a program (`python -m workers.mqtt`)."""

import asyncio
import importlib.util
import sys
import threading

from streamer.errors import ErrorCode, StreamerError
from streamer.file_pages import release_when_idle
from streamer.logging_setup import log_ready
from streamer.mqtt_address import MqttAddress
from streamer.redis_client.connections import log_lacks
from streamer.redis_client.record_version import join_records
from streamer.service import Service
from streamer.settings import Settings
from workers.process import startup


def serve_mqtt(settings: Settings, stopping: threading.Event) -> None:
    """Serve MQTT until `stopping` is set. Raises StreamerError if it is not set up, or without
    Redis; an absent broker is waited for."""
    if settings.mqtt_url is None:
        raise StreamerError(
            ErrorCode.SETTINGS_INVALID,
            "The setting mqtt_url names no broker: set STREAMER_MQTT_URL to an address such as "
            "mqtt://user:password@broker:1883.",
        )
    if importlib.util.find_spec("aiomqtt") is None:
        raise StreamerError(
            ErrorCode.SETTINGS_INVALID,
            "The setting mqtt_url needs a library: run `pip install 'nvila-streamer[mqtt]'`.",
        )
    from workers.mqtt.bridge import Bridge

    with Service(settings, patient=True) as service:
        join_records(service.connections.main)
        log_lacks(service.connections)
        startup.stop_on_signals(stopping)
        bridge = Bridge(service, MqttAddress.of(settings.mqtt_url), stopping)
        log_ready()
        release_when_idle()
        asyncio.run(bridge.run())


if __name__ == "__main__":
    sys.exit(startup.run_program("mqtt", serve_mqtt))
