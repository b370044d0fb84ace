"""Deliver messages about incidents: to the events, to Alertmanager, and to people."""

import functools
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Protocol

import redis
import structlog

from streamer.domain import utc_now
from streamer.errors import StreamerError
from streamer.events import EventType
from streamer.incidents import messages
from streamer.incidents.alertmanager import RESEND, RESOLVED_FOR, Alertmanager
from streamer.incidents.messages import EVENTS_CHANNEL, Message
from streamer.incidents.records import IncidentState
from streamer.incidents.store import Incidents
from streamer.timeline.database import Database

CEILING = 10
"""Messages that one channel takes in `CEILING_PERIOD`; what is beyond waits, for one digest."""

CEILING_PERIOD = timedelta(minutes=10)

_RETRIES = tuple(timedelta(seconds=s) for s in (5, 30, 120, 600, 1800, 7200))

_log = structlog.get_logger(__name__)


class Channel(Protocol):
    """Takes messages for people."""

    def send(self, messages: Sequence[Message], picture: bytes | None = None) -> None:
        """Send one message, or several as one digest. Raises StreamerError."""
        ...


class Deliveries:
    """Sends what the outbox holds; any number of recorders may share the work.

    Args:
        publish: publishes an event; raises redis.exceptions.RedisError.
        channels: takers of messages, by the name that the outbox has for them.
        alertmanager: gets all that is open, again and again; None: there is none.
    """

    def __init__(
        self,
        database: Database,
        incidents: Incidents,
        publish: Callable[[Message], None],
        channels: "dict[str, Channel] | None" = None,
        alertmanager: Alertmanager | None = None,
    ) -> None:
        self._database = database
        self._incidents = incidents
        self._publish = publish
        self._channels = channels or {}
        self._alertmanager = alertmanager
        self._next_resend = datetime.min.replace(tzinfo=UTC)

    def step(self) -> None:
        """Send everything that is due. Raises StreamerError(DATABASE_UNAVAILABLE) and RedisError;
        what could not be sent is tried again."""
        changed = self._events()
        for name, channel in self._channels.items():
            self._deliver(name, channel)
        if self._alertmanager is not None:
            self._tell_alertmanager(self._alertmanager, changed)

    def _events(self) -> bool:
        found = self._database.write(lambda c: messages.claim(c, EVENTS_CHANNEL))
        for place, message in enumerate(found):
            try:
                self._publish(message)
            except redis.exceptions.RedisError:
                self._postpone(found[place:], utc_now() + _RETRIES[0], failed=True)
                raise
            self._database.write(functools.partial(messages.sent, numbers=[message.number]))
        return bool(found)

    def _deliver(self, name: str, channel: Channel) -> None:
        found = self._database.write(lambda c: messages.claim(c, name))
        found = self._without_overtaken(found)
        if not found:
            return
        now = utc_now()
        taken = self._database.read(
            lambda c: messages.delivered_since(c, name, now - CEILING_PERIOD)
        )
        while found:
            room = CEILING - taken
            if room <= 0:
                self._postpone(found, now + CEILING_PERIOD / CEILING, failed=False)
                return
            # The last place is for all that is left, as is a second try.
            part = found if room == 1 or found[0].attempts else found[:1]
            found = found[len(part) :]
            self._send(name, channel, part)
            taken += 1

    def _send(self, name: str, channel: Channel, part: list[Message]) -> None:
        error = None
        try:
            channel.send(part, self._picture(part[0]) if len(part) == 1 else None)
        except StreamerError as failure:
            error = failure.message
            _log.warning("message_not_delivered", channel=name, reason=error)
            attempts = min(part[0].attempts, len(_RETRIES) - 1)
            self._postpone(part, utc_now() + _RETRIES[attempts], failed=True)
        else:
            numbers = [message.number for message in part]
            self._database.write(lambda c: messages.sent(c, numbers))
        for message in part:
            self._incidents.note_delivery(message, name, error)

    def _picture(self, message: Message) -> bytes | None:
        try:
            kept = self._incidents.picture(message.incident.id, "best")
        except StreamerError:
            return None  # the words go without it
        return None if kept is None else kept.jpeg

    def _without_overtaken(self, found: list[Message]) -> list[Message]:
        """Leave out updates of incidents that have a later message."""
        newest = {message.incident.id: message.number for message in found}
        overtaken = [
            message.number
            for message in found
            if message.type is EventType.INCIDENT_UPDATED
            and newest[message.incident.id] > message.number
        ]
        if overtaken:
            self._database.write(lambda c: messages.drop(c, overtaken))
        return [message for message in found if message.number not in overtaken]

    def _postpone(self, part: Sequence[Message], due: datetime, *, failed: bool) -> None:
        numbers = [message.number for message in part]
        self._database.write(lambda c: messages.postpone(c, numbers, due, failed=failed))

    def _tell_alertmanager(self, alertmanager: Alertmanager, changed: bool) -> None:
        now = utc_now()
        if not changed and now < self._next_resend:
            return
        self._next_resend = now + timedelta(seconds=RESEND)
        active = [each for each in self._incidents.active() if each.state is IncidentState.OPEN]
        ended = self._incidents.resolved_since(now - RESOLVED_FOR)
        try:
            alertmanager.send([each for each in [*active, *ended] if not each.silenced_by], now)
        except StreamerError as error:
            _log.warning("alertmanager_away", reason=error.message)
