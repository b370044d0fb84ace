"""The outbox: messages about incidents, written with what they tell and sent afterwards.

A message is a row for each channel that it goes to: `events`, which is the service's own stream of
events, and what the settings name. Rows are claimed, sent, and kept for a while: the ceiling of a
channel counts what was delivered.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Connection, delete, exists, func, select, update

from streamer.domain.timestamp import rfc3339, utc_now
from streamer.events import EventType
from streamer.incidents.records import Incident
from streamer.timeline.tables import incident_messages
from streamer.webhooks.outbox import Fact, write_out

EVENTS_CHANNEL = "events"
"""The channel of the service's own events; every message goes there, silenced or not."""

_KEPT = timedelta(hours=24)
"""How long a message is tried, and how long a delivered one is kept."""

_MAX_CLAIMED = 100

_CLAIM = timedelta(seconds=60)
"""How long a program may take to send what it has claimed."""


@dataclass(frozen=True)
class Message:
    """A message to one channel.

    Attributes:
        number: its place in the outbox.
        incident: the incident as it was then.
        attempts: how often it could not be sent.
    """

    number: int
    channel: str
    type: EventType
    incident: Incident
    created_at: datetime
    attempts: int


def write(
    connection: Connection, type: EventType, incident: Incident, channels: Sequence[str]
) -> None:
    """Write a message to each of `channels`, to the events, and to the webhooks, in the transaction
    of `connection`.

    A silenced incident appears among the events only.
    """
    now = utc_now()
    if not incident.silenced_by:
        fact = Fact(
            id=f"{incident.id}-{incident.version}-{type.value}",
            type=type.value,
            time=rfc3339(now),
            stream_id=incident.stream_id,
            stream_name=incident.stream_name,
            data=incident.model_dump_json(),
        )
        write_out(connection, [fact])
    connection.execute(
        incident_messages.insert(),
        [
            {
                "channel": channel,
                "incident_id": incident.id,
                "type": type.value,
                "version": incident.version,
                "body": incident.model_dump(mode="json"),
                "created_at": now,
                "due_at": now,
                "attempts": 0,
            }
            for channel in (EVENTS_CHANNEL, *(() if incident.silenced_by else channels))
        ],
    )


def claim(connection: Connection, channel: str, *, single: bool = False) -> list[Message]:
    """Return the messages of a channel that are due, oldest first.

    No other program gets them meanwhile, unless this one dies. With `single` it is only the first
    one, unless that has failed before.
    """
    columns, now = incident_messages.c, utc_now()
    statement = (
        select(incident_messages)
        .where(columns.channel == channel, columns.delivered_at.is_(None))
        .order_by(columns.number)
        .with_for_update()
    )
    # What comes first goes first: while it waits, all others of the channel do.
    head = connection.execute(statement.limit(1)).first()
    if head is None or head.due_at > now:
        return []
    statement = statement.limit(1 if single and not head.attempts else _MAX_CLAIMED)
    rows = connection.execute(statement).all()
    _set(connection, [row.number for row in rows], due_at=now + _CLAIM)
    return [
        Message(
            number=row.number,
            channel=row.channel,
            type=EventType(row.type),
            incident=Incident.read(row.body),
            created_at=row.created_at,
            attempts=row.attempts,
        )
        for row in rows
    ]


def sent(connection: Connection, numbers: Sequence[int]) -> None:
    """Note that messages were delivered."""
    _set(connection, numbers, delivered_at=utc_now())


def failed(connection: Connection, numbers: Sequence[int], due_at: datetime) -> None:
    """Note that messages could not be sent; they are tried again later."""
    _set(connection, numbers, due_at=due_at, attempts=incident_messages.c.attempts + 1)


def delivered_since(connection: Connection, channel: str, moment: datetime) -> int:
    """Return how many sendings a channel took since `moment`; a digest is one."""
    columns = incident_messages.c
    statement = select(func.count(columns.delivered_at.distinct())).where(
        columns.channel == channel, columns.delivered_at >= moment
    )
    return int(connection.execute(statement).scalar_one())


def drop_overtaken(connection: Connection, channel: str) -> None:
    """Delete the updates of incidents that a later message to the channel tells of, too."""
    columns, later = incident_messages.c, incident_messages.alias()
    waiting = exists().where(
        later.c.channel == channel,
        later.c.incident_id == columns.incident_id,
        later.c.number > columns.number,
        later.c.delivered_at.is_(None),
    )
    connection.execute(
        delete(incident_messages).where(
            columns.channel == channel,
            columns.type == EventType.INCIDENT_UPDATED.value,
            columns.delivered_at.is_(None),
            waiting,
        )
    )


def expire(connection: Connection, now: datetime) -> None:
    """Delete messages that are too old to be of use."""
    columns = incident_messages.c
    connection.execute(delete(incident_messages).where(columns.created_at < now - _KEPT))


def _set(connection: Connection, numbers: Sequence[int], **values: Any) -> None:
    if numbers:
        columns = incident_messages.c
        connection.execute(
            update(incident_messages).where(columns.number.in_(numbers)).values(**values)
        )
