"""Keep a broker up to date, and take commands and questions from it."""

import asyncio
import contextlib
import json
import math
import os
import secrets
import socket
import threading
import time
from collections import deque
from dataclasses import dataclass, field
from typing import Any

import redis
import structlog
from aiomqtt import Client, Message, MqttError, ProtocolVersion, Will
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from streamer import redis_keys
from streamer.domain.result import Result
from streamer.errors import ErrorCode, StreamerError
from streamer.events import Event, Events, EventType
from streamer.frames.jpeg import scale_jpeg
from streamer.incidents.records import Incident
from streamer.mqtt_address import MqttAddress
from streamer.redis_client.errors import trouble_of
from streamer.redis_client.outage import Outage
from streamer.service import Service
from workers.mqtt.entities import CAMERA_EVENTS
from workers.mqtt.home import Home, Kept, ShownFrame
from workers.mqtt.questions import Asked, answer_to
from workers.mqtt.topics import BIRTH, MAX_TOPIC, Topics

CAMERA_INTERVAL = 10.0
"""Seconds between two pictures of a camera."""

MAX_WIDTH = 1280
"""Pixels in width of a picture."""

MAX_EVENT_AGE = 300.0
"""Seconds after which an event is no longer published: the broker was away too long."""

MAX_ASKED = 256
"""Questions that wait for their answers."""

MAX_OUTBOX = 1000
"""Events and answers that wait for the broker; the oldest are given up."""

_LOAD_INTERVAL = 10.0
"""Seconds between two attempts to read what was before, while the database is away."""

_LOADED_RESULTS = 100
"""Results of each stream that are read at the start."""

_SWEEP = 10.0
"""Seconds to wait for more of what the broker keeps."""

_TIMEOUT = 10.0
"""Seconds for any answer of the broker."""

_MAX_INCOMING = 20_000
"""Messages from the broker that wait; more are dropped. What a large home keeps comes at once."""

_QUALITY = 80

# Takes or renews the lease. KEYS: bridge. ARGV: name, what to store, TTL in seconds
_HOLD = """
local ok, holder = pcall(cjson.decode, redis.call('GET', KEYS[1]) or '')
if ok and type(holder) == 'table' and holder.name ~= ARGV[1] then return 0 end
redis.call('SET', KEYS[1], ARGV[2], 'EX', ARGV[3])
return 1
"""

_log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class _Outgoing:
    """A message that no broker keeps: an event, or an answer."""

    topic: str
    payload: bytes
    correlation: bytes | None = None


@dataclass(frozen=True)
class _Waiting:
    """A question without an answer, and where that goes."""

    asked: Asked
    stream: str
    topic: str
    correlation: bytes | None
    since: float = field(default_factory=time.monotonic)


class Bridge:
    """Serves one broker. Of several bridges of an installation one serves, the others wait.

    Compute again and again what the broker is to keep, and publish the differences; after a lost
    connection publish everything once. Publish events and answers once each.

    Args:
        service: the installation.
        address: the broker.
        stopping: set when the bridge is to end.
        poll: seconds to wait for an event, and between two looks at the streams.
    """

    def __init__(
        self,
        service: Service,
        address: MqttAddress,
        stopping: threading.Event,
        *,
        poll: float = 1.0,
    ) -> None:
        settings = service.settings
        self._poll = poll
        self._service = service
        self._address = address
        self._stopping = stopping
        self.topics = Topics(settings.mqtt_prefix)
        self._home = Home(self.topics, settings.public_url)
        self._redis = service.connections.main
        self._hold_lease = self._redis.register_script(_HOLD)
        self._lease = settings.lease
        self._held_at = float("-inf")
        self._name = f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(4)}"
        self._events = Events(self._redis)
        self._position: str | None = None
        self._loaded_at = float("-inf")
        self._loaded: set[str] | None = None  # streams whose earlier results are known
        self._redis_outage = service.connections.outage
        self._database_outage = Outage("timeline")
        self._broker_outage = Outage("mqtt")
        self._served = False
        self._asked: dict[str, _Waiting] = {}
        self._outbox: deque[_Outgoing] = deque(maxlen=MAX_OUTBOX)
        self._published: dict[str, Kept | None] = {}  # None: to be published again
        self._pictured_at: dict[str, float] = {}

    async def run(self) -> None:
        """Serve until `stopping` is set; wait while the broker is away."""
        asyncio.get_running_loop().set_exception_handler(_known_already)
        waiting = False
        pauses = self._broker_outage.pauses()
        while not self._stopping.is_set():
            if not await asyncio.to_thread(self._hold):
                if not waiting:
                    _log.info("mqtt_waits", reason="another bridge serves this installation")
                waiting = True
                self._position = None  # the other bridge publishes the events of this time
                await self._pause(self._poll)
                continue
            waiting = False
            self._served = False
            try:
                await self._serve()
            except (MqttError, OSError, TimeoutError) as error:
                if self._served:  # the next attempt shows whether it is away
                    pauses = self._broker_outage.pauses()
                else:
                    self._broker_outage.failed("serve", self._unreachable(error))
                await self._pause(next(pauses))
        await asyncio.to_thread(self._release)

    async def _pause(self, seconds: float) -> None:
        await asyncio.to_thread(self._stopping.wait, seconds)

    def _unreachable(self, error: BaseException) -> StreamerError:
        reason = str(error).rstrip(".") or type(error).__name__
        return StreamerError(
            ErrorCode.DELIVERY_FAILED,
            f"The MQTT broker at {self._address} cannot be used ({reason}): check that it runs, "
            "and mqtt_url.",
        )

    async def _serve(self) -> None:
        """Serve over one connection, until it is lost or the lease is."""
        topics = self.topics
        async with Client(
            self._address.host,
            self._address.port,
            identifier=f"nvila-{secrets.token_hex(8)}",
            username=self._address.username,
            password=self._address.password,
            tls_context=self._address.tls_context(),
            protocol=ProtocolVersion.V5,
            will=Will(topics.status, b"offline", qos=1, retain=True),
            timeout=_TIMEOUT,
            keepalive=30,
            max_queued_incoming_messages=_MAX_INCOMING,
        ) as client:
            self._published = {}
            await asyncio.to_thread(self._look, None)
            await self._sweep(client)
            for each in (topics.asks, topics.commands, BIRTH):
                await client.subscribe(each, qos=1)
            receiver = asyncio.create_task(self._receive(client))
            try:
                while not self._stopping.is_set() and await asyncio.to_thread(self._hold):
                    await self._publish(client)
                    self._broker_outage.worked("serve")
                    self._served = True
                    if receiver.done():
                        receiver.result()
                    await asyncio.to_thread(self._look, self._poll)
                if self._stopping.is_set():
                    await client.publish(topics.status, b"offline", qos=1, retain=True)
            finally:
                receiver.cancel()
                await asyncio.gather(receiver, return_exceptions=True)

    # What the broker keeps

    async def _sweep(self, client: Client) -> None:
        """Remove what the broker keeps of streams that were detached while no bridge ran."""
        topics, nonce = self.topics, secrets.token_bytes(8)
        filters = [topics.sweep, *topics.kept]
        gone: set[str] = set()
        # It reads while the bridge subscribes, because the client's queue is bounded.
        reading = asyncio.create_task(self._find_gone(client, nonce, gone))
        asking = asyncio.create_task(self._ask_for_kept(client, filters, nonce))
        try:
            await asyncio.gather(reading, asking)
        except TimeoutError:
            _log.warning("mqtt_sweep_incomplete", reason="the broker keeps too many messages")
        finally:
            for task in (reading, asking):
                task.cancel()
            await asyncio.gather(reading, asking, return_exceptions=True)
        await client.unsubscribe(filters)
        for topic in sorted(gone):
            await client.publish(topic, b"", qos=1, retain=True)

    async def _ask_for_kept(self, client: Client, filters: list[str], nonce: bytes) -> None:
        """Let the broker send what it keeps under `filters`, and then `nonce`."""
        for each in filters:
            # the answer comes behind the messages, and QoS 0 as a broker drops what its queue for
            # others cannot hold
            await client.subscribe(each, qos=0, timeout=math.inf)
        await client.publish(self.topics.sweep, nonce, qos=0)

    async def _find_gone(self, client: Client, nonce: bytes, gone: set[str]) -> None:
        """Add to `gone` the topics that have no stream any more, until `nonce` arrives.

        Raises TimeoutError when the broker sends nothing more that it keeps: however long a slow
        machine reads, that has an end.
        """
        topics = self.topics
        wanted = self._home.kept(self._now())
        names = {stream.name for stream in self._home.streams}
        clock = asyncio.get_running_loop()
        async with asyncio.timeout(_SWEEP) as silence:
            async for message in client.messages:
                topic = message.topic.value
                if message.retain:
                    silence.reschedule(clock.time() + _SWEEP)
                if topic == topics.sweep:
                    if message.payload == nonce:
                        return
                    continue
                name = topics.stream_of(topic)
                if topic in wanted or not (name or topics.is_own_config(topic)):
                    continue
                gone.add(topic)
                if name is not None and name not in names:
                    rest = ("caption", "watching", "camera", "image")
                    gone |= {topics.of(name, each) for each in rest}

    async def _publish(self, client: Client) -> None:
        """Publish what has changed, then events and answers."""
        wanted = self._home.kept(self._now())
        for topic in [topic for topic in self._published if topic not in wanted]:  # detached
            await client.publish(topic, b"", qos=1, retain=True)
            self._published.pop(topic, None)
        for topic, value in wanted.items():
            if self._published.get(topic) == value:
                continue
            if isinstance(value, ShownFrame):
                payload = await asyncio.to_thread(self._jpeg, value)
            else:
                payload = value
            if payload:
                await client.publish(topic, payload, qos=1, retain=True)
            self._published[topic] = value
        while self._outbox:
            message = self._outbox[0]
            properties = None
            if message.correlation is not None:
                properties = Properties(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call]
                properties.CorrelationData = message.correlation
            await client.publish(message.topic, message.payload, qos=1, properties=properties)
            if self._outbox and self._outbox[0] is message:
                self._outbox.popleft()

    def _jpeg(self, shown: ShownFrame) -> bytes:
        """Return the JPEG of a picture, empty if it is not kept any more."""
        frame = shown.frame
        try:
            for jpeg in self._service.frames.load_present([frame]):
                height = max(1, round(frame.height * MAX_WIDTH / frame.width))
                return scale_jpeg(jpeg, frame.width, frame.height, (MAX_WIDTH, height), _QUALITY)
        except (StreamerError, ValueError, redis.exceptions.RedisError):
            pass  # the next picture comes soon
        return b""

    # What the service knows

    def _now(self) -> float:
        return self._service.connections.clock.time()

    def _hold(self) -> bool:
        """Take or renew the lease; return whether this bridge has it, and may serve."""
        now = time.monotonic()
        if now - self._held_at < self._lease / 3:
            return True
        value = json.dumps({"name": self._name, "trouble": self._broker_outage.reason})
        try:
            held = self._hold_lease(
                keys=[redis_keys.MQTT_BRIDGE],
                args=[self._name, value, max(1, round(self._lease))],
            )
        except redis.exceptions.RedisError as error:
            self._redis_outage.failed("mqtt lease", error)
            return self._held_at != float("-inf")  # no other bridge can take it now
        self._redis_outage.worked("mqtt lease")
        self._held_at = now if held else float("-inf")
        return bool(held)

    def _release(self) -> None:
        if self._held_at == float("-inf"):
            return
        with contextlib.suppress(redis.exceptions.RedisError):  # the lease ends by itself
            self._redis.delete(redis_keys.MQTT_BRIDGE)

    def _look(self, block: float | None) -> None:
        """Bring the home up to date; wait up to `block` seconds for an event."""
        try:
            self._read_events(block)
            self._home.set_streams(self._service.registry.list())
            self._load()
            self._picture()
        except redis.exceptions.RedisError as error:
            self._redis_outage.failed("mqtt", error)
            self._home.online = False
            if not trouble_of(error).passes:
                _log.error("redis_refuses", reason=str(error))
            self._stopping.wait(block or 0)
        else:
            self._redis_outage.worked("mqtt")
            self._home.online = True

    def _read_events(self, block: float | None) -> None:
        if self._position is None or not self._events.kept_since(self._position):
            self._position = self._events.position()
            self._loaded = None
            self._answer_all()
            return
        events = self._events.read(self._position, block)
        oldest = self._now() - MAX_EVENT_AGE
        for event in events:
            self._position = event.id
            if event.lost:
                self._loaded = None
                self._answer_all()
                continue
            try:
                self._take(event, tell=int(event.id.partition("-")[0]) / 1000 >= oldest)
            except (StreamerError, ValueError) as error:
                _log.warning("event_unreadable", id=event.id, reason=str(error))

    def _take(self, event: Event, *, tell: bool) -> None:
        """Note an event; with `tell`, publish it if Home Assistant knows its type."""
        silenced = False
        if event.type == EventType.RESULT_CREATED:
            result = Result.shown(event.data.encode())
            if self._home.take(result):
                self._show_caption(result)
        elif event.type == EventType.QUERY_FINISHED:
            self._answer(str(json.loads(event.data).get("id")))
        elif event.type.startswith("incident."):
            incident = Incident.read(event.data)
            self._home.take_incident(incident)
            silenced = bool(incident.silenced_by)
        known = {stream.id for stream in self._home.streams}
        if tell and not silenced and event.type in CAMERA_EVENTS and event.stream_id in known:
            body: dict[str, Any] = {
                "event_type": event.type,
                "id": event.id,
                "time": event.time,
                **_told(json.loads(event.data)),
            }
            topic = self.topics.of(event.stream_name or "", "events")
            self._outbox.append(_Outgoing(topic, json.dumps(body).encode()))

    def _show_caption(self, result: Result) -> None:
        stream_id = result.stream_id
        if stream_id is None or result.frames_to is None:
            return
        last = result.frames_to.timestamp()
        found = self._service.frames.between(stream_id, last - 0.001, last + 0.002)
        if found:
            self._home.show(stream_id, "image", found[-1])

    def _load(self) -> None:
        """Read what was before: the newest results of new streams, and the open incidents."""
        ids = {stream.id for stream in self._home.streams}
        if self._loaded is not None and ids <= self._loaded:
            self._loaded = ids
            return
        if time.monotonic() - self._loaded_at < _LOAD_INTERVAL and self._database_outage.reason:
            return
        self._loaded_at = time.monotonic()
        try:
            if self._loaded is None:
                self._home.set_incidents(
                    self._service.incidents.page(state="open", limit=1000).incidents
                )
            for stream_id in ids - (self._loaded or set()):
                page = self._service.timeline.query(stream=stream_id, limit=_LOADED_RESULTS)
                for result in reversed(page.results):
                    if self._home.take(result):
                        self._show_caption(result)
        except StreamerError as error:
            self._database_outage.failed("load", error)
        else:
            self._database_outage.worked("load")
            self._loaded = ids

    def _picture(self) -> None:
        """Show the newest frame of each stream whose picture is old enough."""
        now = time.monotonic()
        ids = [stream.id for stream in self._home.streams]
        self._pictured_at = {k: at for k, at in self._pictured_at.items() if k in ids}
        due = [k for k in ids if now - self._pictured_at.get(k, -1e9) >= CAMERA_INTERVAL]
        if not due:
            return
        for stream_id, frame in zip(due, self._service.frames.newest_of(due), strict=True):
            if frame is not None:
                self._pictured_at[stream_id] = now
                self._home.show(stream_id, "camera", frame)

    # Commands and questions

    async def _receive(self, client: Client) -> None:
        async for message in client.messages:
            if message.retain or len(message.topic.value) > MAX_TOPIC:
                continue  # sent before this bridge ran, or about no stream: names are shorter
            if message.topic.value == BIRTH:
                if message.payload == b"online":
                    self._published = dict.fromkeys(self._published)
                continue
            await asyncio.to_thread(self._obey, message)

    def _obey(self, message: Message) -> None:
        topic = message.topic.value
        name = self.topics.stream_of(topic) or ""
        try:
            if topic == self.topics.of(name, "watching", "set"):
                self._switch(name, message.payload)
            elif topic == self.topics.of(name, "ask"):
                self._ask(name, message)
        except Exception:
            _log.exception("mqtt_message_failed", topic=topic)

    def _switch(self, name: str, payload: bytes) -> None:
        if payload not in (b"ON", b"OFF"):
            _log.warning("mqtt_command_unknown", stream=name, advice="send ON or OFF")
            return
        try:
            self._service.edit(name, paused=payload == b"OFF")
        except StreamerError as error:
            _log.warning("mqtt_command_failed", stream=name, reason=error.message)
        except redis.exceptions.RedisError as error:
            self._redis_outage.failed("mqtt command", error)
        else:
            self._redis_outage.worked("mqtt command")

    def _ask(self, name: str, message: Message) -> None:
        """Submit a question; its answer, or why there is none, goes to the topic of answers."""
        topic, correlation = self.topics.of(name, "answer"), None
        response_topic = getattr(message.properties, "ResponseTopic", None)
        correlation = getattr(message.properties, "CorrelationData", None)
        asked = None
        try:
            asked = Asked.read(name, message.payload)
            wanted = asked.reply_to or response_topic
            if wanted is not None:
                if not self.topics.may_answer(wanted):
                    raise StreamerError(
                        ErrorCode.INVALID_REQUEST,
                        f"The answer may not go to '{wanted[:80]}': name a topic of your own, or "
                        f"one below {topic}.",
                    )
                topic = wanted
            self._forget_old()
            if len(self._asked) >= MAX_ASKED:
                raise StreamerError(
                    ErrorCode.TOO_MANY_QUERIES,
                    f"{MAX_ASKED} questions wait for their answers: ask again later.",
                )
            query = self._service.submit(asked.question(), wait=0)
        except StreamerError as error:
            answer = answer_to(asked, name, error=error)
            self._outbox.append(_Outgoing(topic, answer, correlation))
            return
        except redis.exceptions.RedisError as error:
            reason = StreamerError(ErrorCode.REDIS_UNAVAILABLE, trouble_of(error).message)
            answer = answer_to(asked, name, error=reason)
            self._outbox.append(_Outgoing(topic, answer, correlation))
            return
        self._asked[query.id] = _Waiting(asked, name, topic, correlation)
        self._answer(query.id)  # it may have an answer already

    def _answer(self, query_id: str) -> None:
        """Publish the answer to a question, if it was asked here and has one."""
        waiting = self._asked.get(query_id)
        if waiting is None:
            return
        query = error = None
        try:
            query = self._service.query(query_id)
            if query.result is None:
                return
        except StreamerError as found:
            error = found
        # whichever thread takes it out answers it
        if self._asked.pop(query_id, None) is not None:
            answer = answer_to(waiting.asked, waiting.stream, query, error)
            self._outbox.append(_Outgoing(waiting.topic, answer, waiting.correlation))

    def _answer_all(self) -> None:
        """Answer what was answered while events were lost."""
        self._forget_old()
        for query_id in list(self._asked):
            self._answer(query_id)

    def _forget_old(self) -> None:
        """Forget the questions without an answer whose records have expired."""
        oldest = time.monotonic() - self._service.settings.query_ttl
        for query_id, waiting in list(self._asked.items()):
            if waiting.since < oldest:
                self._asked.pop(query_id, None)


def _known_already(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """Drop the end of a connection that the client notes beside raising it."""
    if not isinstance(context.get("exception"), MqttError):
        loop.default_exception_handler(context)


def _told(data: dict[str, Any]) -> dict[str, Any]:
    """Return the fields of an event's data to publish: those of an incident or of a state."""
    if "watch_id" not in data:
        return {key: data.get(key) for key in ("state", "previous", "error")}
    names = ("title", "question", "severity", "state", "summary", "version", "watch_id")
    return {
        "incident_id": data.get("id"),
        "probability": (data.get("probability") or {}).get("last"),
        **{name: data.get(name) for name in names},
    }
