"""Fixtures of the tests that run an MQTT bridge."""

from tests.support.mqtt_yard import start_bridge, yard

__all__ = ["start_bridge", "yard"]
