"""The configurations of a stream's entities, for Home Assistant's MQTT discovery.

Each entity has a message of its own: Home Assistant 2024.3 cannot discover whole devices.
"""

import json
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

from streamer import __version__
from streamer.domain.stream import Stream
from streamer.domain.watch import Watch
from streamer.events import EventType
from streamer.response_format import ChoiceFormat, JsonFormat
from workers.mqtt.topics import Topics

MAX_NAME = 80
"""Characters of the name of an entity."""

CAMERA_EVENTS = (
    EventType.INCIDENT_OPENED,
    EventType.INCIDENT_UPDATED,
    EventType.INCIDENT_RESOLVED,
    EventType.INCIDENT_ACKNOWLEDGED,
    EventType.STREAM_STATE_CHANGED,
)
"""Types of the event entity of a stream."""

_MAX_PROPERTIES = 32
"""Sensors of one watch that is answered in JSON."""

Config = dict[str, Any]


def configs_of(stream: Stream, topics: Topics, public_url: str | None) -> Iterator[tuple[str, Any]]:
    """Yield the topics of discovery of a stream's entities, each with its configuration."""
    device = {
        "identifiers": [f"nvila_{stream.id}"],
        "name": stream.name,
        "manufacturer": "NVILA Streamer",
        "model": "Camera stream",
        "sw_version": __version__,
    }
    if public_url:
        device["configuration_url"] = f"{public_url.rstrip('/')}/streams/{quote(stream.name)}"
    for component, entity, own in _entities(stream, topics):
        # Without its camera, what a stream shows is unknown; its switch, events and alerts are not.
        needs = [{"topic": topics.status}]
        if component not in ("switch", "event", "binary_sensor"):
            needs.append({"topic": topics.of(stream.name, "availability")})
        if component == "sensor":
            known = "{{ 'offline' if value_json.state is none else 'online' }}"
            needs.append({"topic": own["state_topic"], "value_template": known})
        yield (
            topics.config(component, stream.id, entity),
            {
                "unique_id": f"nvila_{stream.id}_{entity}",
                "device": device,
                "origin": {"name": "NVILA Streamer", "sw_version": __version__},
                "availability": needs,
                "availability_mode": "all",
                **own,
            },
        )


def _entities(stream: Stream, topics: Topics) -> Iterator[tuple[str, str, Config]]:
    """Yield component, id and own configuration of each entity."""
    name = stream.name
    caption = _stateful(topics.of(name, "caption"), "")
    yield "sensor", "caption", {"name": "Caption", "icon": "mdi:text-box-outline", **caption}
    yield "camera", "camera", {"name": None, "topic": topics.of(name, "camera")}
    picture = {"image_topic": topics.of(name, "image"), "content_type": "image/jpeg"}
    yield "image", "image", {"name": "Caption picture", **picture}
    switch = {
        "state_topic": topics.of(name, "watching"),
        "command_topic": topics.of(name, "watching", "set"),
        "icon": "mdi:eye",
    }
    yield "switch", "watching", {"name": "Watching", **switch}
    events = {
        "state_topic": topics.of(name, "events"),
        "event_types": [str(e) for e in CAMERA_EVENTS],
    }
    yield "event", "event", {"name": "Event", **events}
    for watch in stream.watches:
        if watch.alert is not None:
            title = _short(watch.alert.title or watch.prompt)
            alert = _stateful(topics.of(name, "alerts", watch.id))
            yield "binary_sensor", watch.id, {"name": title, **alert}
        for entity, title, more in answers_of(watch):
            options = more.get("options", [None])
            answer = _stateful(topics.of(name, "answers", *entity), options[0])
            yield "sensor", "-".join(entity), {"name": _short(title), **answer, **more}


def answers_of(watch: Watch) -> Iterator[tuple[tuple[str, ...], str, Config]]:
    """Yield the sensors of a watch: levels of the topic, title, own configuration.

    A choice is one sensor; JSON is one for each property that is a number or has listed values.
    """
    form = watch.response_format
    if watch.alert is not None:
        return
    if isinstance(form, ChoiceFormat):
        yield (watch.id,), watch.prompt, _enum(form.choices)
    elif isinstance(form, JsonFormat):
        properties = form.json_schema.get("properties")
        if not isinstance(properties, dict):
            properties = {}
        own = _sensor_of(form.json_schema)
        if own is not None:
            yield (watch.id,), watch.prompt, own
        for number, (key, schema) in enumerate(list(properties.items())[:_MAX_PROPERTIES]):
            more = _sensor_of(schema) if isinstance(schema, dict) else None
            if more is not None:
                title = schema.get("title")
                yield (watch.id, str(number)), title if isinstance(title, str) else key, more


def answer_in(value: Any, watch: Watch, entity: tuple[str, ...]) -> Any:
    """Return what the sensor `entity` of a watch shows of an answer; None if it is not there."""
    if len(entity) == 2:
        assert isinstance(watch.response_format, JsonFormat)
        key = list(watch.response_format.json_schema["properties"])[int(entity[1])]
        value = value.get(key) if isinstance(value, dict) else None
    if isinstance(value, bool):
        return str(value).lower()
    return value if isinstance(value, str | int | float) else None


def _sensor_of(schema: dict[str, Any]) -> Config | None:
    """Return how a value of this JSON schema is shown; None for one that is no sensor."""
    match schema:
        case {"enum": [*values]} if values and all(isinstance(value, str) for value in values):
            return _enum(values)
        case {"type": "number" | "integer"}:
            return {"state_class": "measurement"}
        case {"type": "boolean"}:
            return _enum(["true", "false"])
    return None


def _enum(values: list[str]) -> Config:
    return {"device_class": "enum", "options": values}


def _stateful(topic: str, unknown: str | None = None) -> Config:
    """Return the configuration of an entity whose topic has `{"state", "attributes"}`.

    Home Assistant 2024.3 takes null for the text `None` where it expects a text or a listed value:
    it gets `unknown` then, which it does not show because the sensor is unavailable.
    """
    shown = "{{ value_json.state }}"
    if unknown is not None:
        placeholder = json.dumps(unknown)
        shown = "{{ " + placeholder + " if value_json.state is none else value_json.state }}"
    return {
        "state_topic": topic,
        "value_template": shown,
        "json_attributes_topic": topic,
        "json_attributes_template": "{{ value_json.attributes | tojson }}",
    }


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= MAX_NAME else line[: MAX_NAME - 1] + "…"
