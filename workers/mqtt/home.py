"""What a broker is to keep: every entity's configuration and state, from records of the service."""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from streamer.domain.frame import FrameRef
from streamer.domain.kinds import ResultKind
from streamer.domain.result import Result
from streamer.domain.stream import Stream, StreamState
from streamer.domain.timestamp import rfc3339
from streamer.domain.watch import Watch
from streamer.incidents.records import Incident, IncidentState
from streamer.response_format import TextFormat
from workers.mqtt.entities import answer_in, answers_of, configs_of
from workers.mqtt.topics import Topics

MAX_STATE = 255
"""Characters of a state in Home Assistant."""

MAX_TEXT = 16_000
"""Characters of a text among the attributes of an entity."""

_MIN_FRESH, _FRESH_WINDOWS = 60.0, 4
"""Seconds, and windows, for which an answer holds; the longer of both."""


@dataclass(frozen=True)
class ShownFrame:
    """A picture that a topic keeps: its JPEG is loaded when it is published."""

    frame: FrameRef

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ShownFrame) and self._id == other._id

    def __hash__(self) -> int:
        return hash(self._id)

    @property
    def _id(self) -> tuple[str, str]:
        return self.frame.stream_id, self.frame.id


Kept = bytes | ShownFrame


class Home:
    """The live streams of an installation as devices of a home.

    Recordings are left out: they are attached for a while, to be analysed.

    Args:
        topics: where everything is published.
        public_url: address of the page, for links; None: no links.

    Attributes:
        online: whether the service works.
    """

    def __init__(self, topics: Topics, public_url: str | None = None) -> None:
        self.topics = topics
        self.online = True
        self._public_url = public_url
        self._streams: dict[str, Stream] = {}
        self._newest: dict[str, Result] = {}  # by watch, and the caption by stream
        self._incidents: dict[tuple[str, str], Incident] = {}
        self._pictures: dict[tuple[str, str], ShownFrame] = {}

    @property
    def streams(self) -> list[Stream]:
        """The streams that are devices."""
        return list(self._streams.values())

    def set_streams(self, streams: Iterable[Stream]) -> None:
        """Show these streams, and forget all others."""
        self._streams = {stream.id: stream for stream in streams if stream.live}
        known = {watch.id for stream in self.streams for watch in stream.watches}
        known |= self._streams.keys()
        self._newest = {key: kept for key, kept in self._newest.items() if key in known}
        self._pictures = {k: kept for k, kept in self._pictures.items() if k[0] in self._streams}
        self._incidents = {k: kept for k, kept in self._incidents.items() if k[0] in known}

    def stream_named(self, name: str) -> Stream | None:
        """Return the stream with this name."""
        return next((stream for stream in self.streams if stream.name == name), None)

    def take(self, result: Result) -> bool:
        """Show a result; return whether it is a stream's newest caption."""
        stream = self._streams.get(result.stream_id or "")
        watch = (
            next((w for w in stream.watches if w.id == result.watch_id), None) if stream else None
        )
        if stream is None or watch is None or "incident" in (result.data or {}):
            return False
        if not _newer(result, self._newest.get(watch.id)):
            return False
        self._newest[watch.id] = result
        captioned = result.kind is ResultKind.CAPTION and isinstance(
            watch.response_format, TextFormat
        )
        if captioned and _newer(result, self._newest.get(stream.id)):
            self._newest[stream.id] = result
            return True
        return False

    def take_incident(self, incident: Incident) -> None:
        """Show an incident that is open, and no longer one that has ended."""
        key = incident.watch_id, incident.stream_id
        known = self._incidents.get(key)
        if known is not None and known.id == incident.id and known.version > incident.version:
            return
        if incident.state is IncidentState.OPEN:
            self._incidents[key] = incident
        elif known is not None and known.id == incident.id:
            del self._incidents[key]

    def set_incidents(self, incidents: Iterable[Incident]) -> None:
        """Show these incidents in place of all others."""
        self._incidents = {}
        for incident in incidents:
            self.take_incident(incident)

    def show(self, stream_id: str, entity: str, frame: FrameRef) -> None:
        """Show a picture: of the entity `camera` or `image` of a stream."""
        self._pictures[stream_id, entity] = ShownFrame(frame)

    def kept(self, now: float) -> dict[str, Kept]:
        """Return what the broker is to keep at the time `now`, epoch seconds, by topic."""
        found: dict[str, Kept] = {self.topics.status: b"online" if self.online else b"offline"}
        for stream in self.streams:
            for topic, config in configs_of(stream, self.topics, self._public_url):
                found[topic] = json.dumps(config).encode()
            for rest, value in self._states(stream, now):
                found[self.topics.of(stream.name, *rest)] = value
        return found

    def _states(self, stream: Stream, now: float) -> Iterator[tuple[tuple[str, ...], Kept]]:
        running = stream.state is StreamState.RUNNING
        yield ("availability",), b"online" if running else b"offline"
        yield ("watching",), b"OFF" if stream.paused else b"ON"
        yield ("caption",), _caption(self._newest.get(stream.id))
        for entity in ("camera", "image"):
            picture = self._pictures.get((stream.id, entity))
            if picture is not None:
                yield (entity,), picture
        for watch in stream.watches:
            newest = self._newest.get(watch.id)
            if watch.alert is not None:
                seen = newest if running and newest and _tells(newest, watch, now) else None
                incident = self._incidents.get((watch.id, stream.id))
                yield ("alerts", watch.id), _alert(watch, seen, incident)
            for levels, _, _ in answers_of(watch):
                yield ("answers", *levels), _answer(watch, levels, newest)


def _newer(result: Result, than: Result | None) -> bool:
    return than is None or _end(result) >= _end(than)


def _end(result: Result) -> float:
    return (result.end or result.created_at).timestamp()


def _tells(result: Result, watch: Watch, now: float) -> bool:
    """Return whether an alert's newest window is recent enough to hold at the time `now`."""
    lasts = max(_MIN_FRESH, _FRESH_WINDOWS * watch.window)
    return result.kind is ResultKind.ALERT and now - _end(result) <= lasts


def _caption(result: Result | None) -> bytes:
    if result is None:
        return _state(None)
    text = result.text or ""
    state = text if len(text) <= MAX_STATE else text[: MAX_STATE - 1] + "…"
    return _state(state, text=text[:MAX_TEXT], **_window(result))


def _alert(watch: Watch, seen: Result | None, incident: Incident | None) -> bytes:
    """Return the state of an alert: on while an incident is open, unknown if nothing is seen."""
    rule = watch.alert
    assert rule is not None
    state = "ON" if incident is not None else "OFF" if seen is not None else None
    attributes: dict[str, Any] = {
        "incident_id": incident.id if incident else None,
        "probability": (seen.data or {}).get("probability") if seen else None,
        "severity": incident.severity if incident else rule.severity,
        "question": watch.prompt,
        "watch_id": watch.id,
        "seen_until": rfc3339(seen.end) if seen and seen.end else None,
    }
    if incident is not None:
        attributes |= {
            "opened_at": rfc3339(incident.opened_at),
            "max_probability": incident.probability.max,
            "summary": incident.summary,
            "acknowledged": incident.acknowledged is not None,
            "silenced": bool(incident.silenced_by),
        }
    return _state(state, **attributes)


def _answer(watch: Watch, entity: tuple[str, ...], result: Result | None) -> bytes:
    if result is None:
        return _state(None)
    data = result.data or {}
    known = result.error is None
    value = answer_in(data.get("choice", data.get("json")), watch, entity) if known else None
    return _state(value, **_window(result))


def _window(result: Result) -> dict[str, Any]:
    return {
        "question": result.prompt[:MAX_TEXT],
        "watch_id": result.watch_id,
        "result_id": result.id,
        "start": rfc3339(result.start) if result.start else None,
        "end": rfc3339(result.end) if result.end else None,
    }


def _state(state: str | float | None, **attributes: Any) -> bytes:
    """Return a state with attributes; Home Assistant shows None as `unknown`."""
    return json.dumps({"state": state, "attributes": attributes}).encode()
