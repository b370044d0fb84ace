"""Write what happened to the outbox of the webhooks, in the transaction of the fact."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, func, select, update
from sqlalchemy.dialects import postgresql, sqlite

from streamer.domain.ids import new_id
from streamer.domain.timestamp import rfc3339, utc_now
from streamer.events import EventFilter
from streamer.timeline.tables import webhook_deliveries, webhooks
from streamer.webhooks.records import DeliveryState

MAX_WAITING = 10_000
"""Deliveries that wait for one webhook; events beyond are dropped and counted."""

_hooks, _outbox = webhooks.c, webhook_deliveries.c
_PENDING = DeliveryState.PENDING.value


@dataclass(frozen=True)
class Fact:
    """An event, as webhooks receive it.

    Attributes:
        id: names it for good, so that it is written to the outbox once.
        data: a JSON object as text.
    """

    id: str
    type: str
    time: str
    stream_id: str | None
    stream_name: str | None
    data: str

    @property
    def body(self) -> str:
        """The message as JSON."""
        head = {
            "type": self.type,
            "timestamp": self.time,
            "id": self.id,
            "stream_id": self.stream_id,
            "stream_name": self.stream_name,
        }
        return f'{json.dumps(head)[:-1]}, "data": {self.data}}}'


def write_out(connection: Connection, facts: Sequence[Fact]) -> int:
    """Write facts to the outbox, for each webhook that wants them, in the transaction of
    `connection`. Return how many deliveries there are more."""
    if not facts:
        return 0
    found = connection.execute(select(webhooks).where(_hooks.enabled)).all()
    written = 0
    for hook in found:
        wants = EventFilter(
            frozenset(hook.streams) if hook.streams is not None else None,
            tuple(hook.types) if hook.types is not None else None,
        )
        since = rfc3339(hook.enabled_at)
        wanted = [
            fact
            for fact in facts
            if fact.time >= since and wants.matches(fact.type, fact.stream_id, fact.stream_name)
        ]
        written += _add(connection, hook.id, wanted)
    return written


def _add(connection: Connection, webhook_id: str, facts: Sequence[Fact]) -> int:
    if not facts:
        return 0
    waiting = connection.execute(
        select(func.count())
        .select_from(webhook_deliveries)
        .where(_outbox.state == _PENDING, _outbox.webhook_id == webhook_id)
    ).scalar_one()
    room = max(0, MAX_WAITING - int(waiting))
    if len(facts) > room:
        dropped = _hooks.dropped + (len(facts) - room)
        connection.execute(update(webhooks).where(_hooks.id == webhook_id).values(dropped=dropped))
    rows = [new_delivery(webhook_id, fact) for fact in facts[:room]]
    if not rows:
        return 0
    dialect = postgresql if connection.dialect.name == "postgresql" else sqlite
    statement = dialect.insert(webhook_deliveries).on_conflict_do_nothing().returning(_outbox.id)
    return len(connection.execute(statement, rows).all())


def new_delivery(webhook_id: str, fact: Fact) -> dict[str, Any]:
    """Return the row of a delivery that is due now."""
    now = utc_now()
    return {
        "id": new_id("msg"),
        "webhook_id": webhook_id,
        "event_id": fact.id,
        "type": fact.type,
        "body": fact.body,
        "state": _PENDING,
        "attempts": 0,
        "created_at": now,
        "due_at": now,
    }
