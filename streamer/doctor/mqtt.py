"""Check that the MQTT broker lets this machine in, and that a bridge serves it."""

import asyncio
import importlib.util
import json
from collections.abc import Iterable
from typing import Any, cast

from streamer import redis_keys
from streamer.doctor.check import Check, check
from streamer.errors import StreamerError
from streamer.mqtt_address import MqttAddress
from streamer.settings import Settings

_TIMEOUT = 5.0
"""Seconds that the broker has to answer."""


def broker(settings: Settings) -> Iterable[Check]:
    """Log in at the broker, and look for the bridge; nothing without the setting mqtt_url."""
    if settings.mqtt_url is None:
        return
    if importlib.util.find_spec("aiomqtt") is None:
        advice = "Its library is missing: run `pip install 'nvila-streamer[mqtt]'`."
        yield check("mqtt broker", "fail", advice)
        return
    address = MqttAddress.of(settings.mqtt_url)
    try:
        asyncio.run(_log_in(address))
    except _broker_errors() as error:
        reason = str(error).rstrip(".") or type(error).__name__
        message = f"{address} does not let this machine in ({reason}): check mqtt_url."
        yield check("mqtt broker", "fail", message)
    else:
        yield check("mqtt broker", "ok", f"{address} lets this machine in.")
    yield from _bridge(settings)


def _broker_errors() -> tuple[type[Exception], ...]:
    from aiomqtt import MqttError

    return MqttError, OSError, TimeoutError


async def _log_in(address: MqttAddress) -> None:
    from aiomqtt import Client, ProtocolVersion

    client = Client(
        address.host,
        address.port,
        username=address.username,
        password=address.password,
        tls_context=address.tls_context(),
        protocol=ProtocolVersion.V5,
        timeout=_TIMEOUT,
    )
    async with client:
        pass


def _bridge(settings: Settings) -> Iterable[Check]:
    """Look for the bridge that has the lease."""
    from redis.exceptions import RedisError

    from streamer.redis_client.address import open_redis
    from streamer.redis_client.connections import from_run_file

    try:
        url = settings.redis_url or from_run_file(settings, "redis_url")
        if url is None:
            return
        with open_redis(url, connect_timeout=_TIMEOUT, timeout=_TIMEOUT) as client:
            stored = cast(bytes | None, client.get(redis_keys.MQTT_BRIDGE))
    except (StreamerError, RedisError, OSError):
        return  # the check of Redis tells
    if stored is None:
        message = "None is running: start one with `streamer mqtt`, or restart `streamer up`."
        yield check("mqtt bridge", "warn", message)
        return
    bridge: dict[str, Any] = json.loads(stored)
    trouble = bridge.get("trouble")
    if trouble:
        yield check("mqtt bridge", "fail", str(trouble))
    else:
        yield check("mqtt bridge", "ok", f"{bridge.get('name')} serves.")
