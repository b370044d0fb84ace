"""Deliver messages about incidents: to the events, to Alertmanager, and to people."""

import functools
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Protocol

import redis
import structlog
from sqlalchemy import Connection

from streamer.domain.timestamp import utc_now
from streamer.errors import StreamerError
from streamer.incidents import messages
from streamer.incidents.alertmanager import RESEND, RESOLVED_FOR, Alertmanager
from streamer.incidents.messages import EVENTS_CHANNEL, Message
from streamer.incidents.records import IncidentState
from streamer.incidents.store import Incidents
from streamer.redis_client.outage import Outage
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
        self._outage = Outage("alertmanager")
        self._firing: set[str] = set()  # ids of what Alertmanager may take for open

    def tell_events(self) -> None:
        """Publish the messages that are due as events. Raises redis.exceptions.RedisError."""
        found = self._database.write(lambda c: messages.claim(c, EVENTS_CHANNEL))
        if found:
            self._next_resend = utc_now()
        for place, message in enumerate(found):
            try:
                self._publish(message)
            except redis.exceptions.RedisError:
                self._postpone(found[place:], utc_now() + _RETRIES[0])
                raise
            self._database.write(functools.partial(messages.sent, numbers=[message.number]))

    def tell_people(self) -> None:
        """Send each channel what is due, as far as its ceiling allows."""
        for name, channel in self._channels.items():
            while self._next(name, channel):
                pass

    def _next(self, name: str, channel: Channel) -> bool:
        """Send a channel its next message; return whether there may be another."""

        def claim(connection: Connection) -> list[Message]:
            messages.drop_overtaken(connection, name)
            since = utc_now() - CEILING_PERIOD
            room = CEILING - messages.delivered_since(connection, name, since)
            # The last place is for all that is left, as is a second try.
            return messages.claim(connection, name, single=room > 1) if room > 0 else []

        found = self._database.write(claim)
        return bool(found) and self._send(name, channel, found)

    def _send(self, name: str, channel: Channel, found: list[Message]) -> bool:
        error = None
        try:
            channel.send(found, self._picture(found[0]) if len(found) == 1 else None)
        except StreamerError as failure:
            error = failure.message
            _log.warning("message_not_delivered", channel=name, reason=error)
            attempts = min(found[0].attempts, len(_RETRIES) - 1)
            self._postpone(found, utc_now() + _RETRIES[attempts])
        else:
            numbers = [message.number for message in found]
            self._database.write(lambda c: messages.sent(c, numbers))
        for message in found:
            self._incidents.note_delivery(message, name, error)
        return error is None

    def _picture(self, message: Message) -> bytes | None:
        try:
            kept = self._incidents.picture(message.incident.id, "best")
        except StreamerError:
            return None  # the words go without it
        return None if kept is None else kept.jpeg

    def _postpone(self, found: Sequence[Message], due: datetime) -> None:
        numbers = [message.number for message in found]
        self._database.write(lambda c: messages.failed(c, numbers, due))

    def tell_alertmanager(self) -> None:
        """Send Alertmanager all that is open, when something has changed and now and then."""
        now = utc_now()
        if self._alertmanager is None or now < self._next_resend:
            return
        self._next_resend = now + timedelta(seconds=RESEND)
        active = [each for each in self._incidents.active() if each.state is IncidentState.OPEN]
        ended = self._incidents.resolved_since(now - RESOLVED_FOR)
        firing = {each.id for each in active if not each.silenced_by}
        # a silenced incident is sent only if it may be firing there, to end it
        sent = [
            each for each in [*active, *ended] if not each.silenced_by or each.id in self._firing
        ]
        self._firing |= firing
        try:
            self._alertmanager.send(sent, now)
        except StreamerError as error:
            self._outage.failed("incidents", error)
        else:
            self._outage.worked("incidents")
            self._firing = firing
