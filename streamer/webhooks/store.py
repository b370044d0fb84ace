"""Keep webhooks and the outbox of their deliveries in the database.

An event for a webhook is a row of the outbox from the moment on at which it is known, written in
the transaction of the fact where the fact is in the database too. A row is claimed, sent, and
tried again until the receiver has taken it; so whatever is killed in between, it is sent at least
once, and always with the same id.
"""

import base64
import random
import secrets
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any

from sqlalchemy import Connection, Row, and_, delete, exists, func, insert, or_, select, update
from sqlalchemy.dialects import postgresql, sqlite

from streamer.cursors import decode_cursor, encode_cursor
from streamer.domain.ids import new_id
from streamer.domain.timestamp import rfc3339, utc_now
from streamer.errors import ErrorCode, StreamerError
from streamer.events import EventFilter
from streamer.secret_box import SecretBox
from streamer.timeline.database import Database
from streamer.timeline.tables import webhook_deliveries, webhook_positions, webhooks
from streamer.webhooks.addresses import WebhookAddresses
from streamer.webhooks.message import Outcome, Outgoing
from streamer.webhooks.outbox import Fact, new_delivery, write_out
from streamer.webhooks.records import TEST_TYPE, Delivery, DeliveryState, Webhook

MAX_WEBHOOKS = 50
"""Webhooks of an installation."""

MAX_ENDED = 10_000
"""Ended deliveries of one webhook that are kept, for `_KEPT`."""

_KEPT = timedelta(days=3)

RETRIES = (5, 300, 1800, 7200, 18_000, 36_000, 50_400)
"""Seconds between the attempts, before jitter: the last one is 34 hours after the first."""

_JITTER = 0.2

MAX_AT_ONCE = 4
"""Attempts for one webhook at the same time; one while it fails."""

_CLAIM = timedelta(seconds=90)
"""How long an attempt may take before it counts as lost: longer than a job waits and runs."""

_SECRET_BYTES = 32

_POSITION = "events"
_PENDING = DeliveryState.PENDING.value

_hooks, _outbox = webhooks.c, webhook_deliveries.c


class Webhooks:
    """The webhooks of an installation.

    Every method raises StreamerError(DATABASE_UNAVAILABLE) if the database does not respond.

    Args:
        box: encrypts the secrets.
        jitter: a number from 0 to 1, drawn for each pause.
    """

    def __init__(
        self,
        database: Database,
        addresses: WebhookAddresses,
        box: SecretBox | None = None,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self.database = database
        self._addresses = addresses
        self._box = box or SecretBox()
        self._jitter = jitter

    # Webhooks

    def create(
        self,
        url: str,
        *,
        types: list[str] | None = None,
        streams: list[str] | None = None,
        description: str | None = None,
        enabled: bool = True,
    ) -> tuple[Webhook, str]:
        """Add a webhook; return it and its secret, which is shown this once.

        Raises StreamerError: INVALID_REQUEST, WEBHOOK_URL_FORBIDDEN.
        """
        self._addresses.check(url)
        EventFilter.of(streams, types)
        secret = f"whsec_{base64.b64encode(secrets.token_bytes(_SECRET_BYTES)).decode()}"
        now = utc_now()
        row = {
            "id": new_id("whk"),
            "url": url,
            "types": types,
            "streams": streams,
            "description": description,
            "enabled": enabled,
            "failing": False,
            "dropped": 0,
            "secret": self._box.seal(secret),
            "created_at": now,
            "enabled_at": now,
        }

        def add(connection: Connection) -> Webhook:
            count = connection.execute(select(func.count()).select_from(webhooks)).scalar_one()
            if count >= MAX_WEBHOOKS:
                raise StreamerError(
                    ErrorCode.INVALID_REQUEST,
                    f"There are {MAX_WEBHOOKS} webhooks already: remove one first.",
                )
            connection.execute(insert(webhooks), [row])
            return self._find(connection, str(row["id"]))

        return self.database.write(add), secret

    def all(self) -> list[Webhook]:
        """Return all webhooks, oldest first."""
        statement = select(webhooks).order_by(_hooks.created_at, _hooks.id)
        rows = self.database.read(lambda connection: connection.execute(statement).all())
        return [_webhook(row) for row in rows]

    def get(self, webhook_id: str) -> Webhook:
        """Return a webhook. Raises StreamerError(UNKNOWN_WEBHOOK)."""
        return self.database.read(lambda connection: self._find(connection, webhook_id))

    def edit(self, webhook_id: str, changes: dict[str, Any]) -> Webhook:
        """Change fields of a webhook. One that is enabled again is sent what happens from then on.

        Raises StreamerError: UNKNOWN_WEBHOOK, INVALID_REQUEST, WEBHOOK_URL_FORBIDDEN.
        """
        if "url" in changes:
            self._addresses.check(changes["url"])
        EventFilter.of(changes.get("streams"), changes.get("types"))

        def change(connection: Connection) -> Webhook:
            before = self._find(connection, webhook_id)
            values = dict(changes)
            if values.get("enabled") and not before.enabled:
                values |= {"enabled_at": utc_now(), "disabled_reason": None, "failing": False}
            if values:
                connection.execute(update(webhooks).where(_hooks.id == webhook_id).values(**values))
            return self._find(connection, webhook_id)

        return self.database.write(change)

    def remove(self, webhook_id: str) -> Webhook:
        """Remove a webhook and its deliveries. Raises StreamerError(UNKNOWN_WEBHOOK)."""

        def drop(connection: Connection) -> Webhook:
            found = self._find(connection, webhook_id)
            connection.execute(delete(webhook_deliveries).where(_outbox.webhook_id == webhook_id))
            connection.execute(delete(webhooks).where(_hooks.id == webhook_id))
            return found

        return self.database.write(drop)

    @staticmethod
    def _find(connection: Connection, webhook_id: str) -> Webhook:
        row = connection.execute(select(webhooks).where(_hooks.id == webhook_id)).first()
        if row is None:
            raise StreamerError(
                ErrorCode.UNKNOWN_WEBHOOK,
                f"There is no webhook '{webhook_id[:80]}': list them with GET /v1/webhooks.",
            )
        return _webhook(row)

    # Deliveries, for people

    def deliveries(
        self, webhook_id: str, limit: int = 100, cursor: str | None = None
    ) -> tuple[list[Delivery], str | None]:
        """Return deliveries of a webhook, newest first, and the cursor of the next page.

        Raises StreamerError: UNKNOWN_WEBHOOK; INVALID_REQUEST for an invalid cursor.
        """
        statement = (
            select(webhook_deliveries)
            .where(_outbox.webhook_id == webhook_id)
            .order_by(_outbox.number.desc())
            .limit(limit + 1)
        )
        if cursor is not None:
            statement = statement.where(_outbox.number < decode_cursor(cursor)[0])

        def page(connection: Connection) -> Sequence[Row[Any]]:
            self._find(connection, webhook_id)
            return connection.execute(statement).all()

        rows = self.database.read(page)
        more = encode_cursor(rows[limit - 1].number) if len(rows) > limit else None
        return [_delivery(row) for row in rows[:limit]], more

    def retry(self, webhook_id: str, delivery_id: str) -> Delivery:
        """Let a delivery be tried again now, whatever became of it.

        Raises StreamerError: UNKNOWN_WEBHOOK, UNKNOWN_DELIVERY; INVALID_REQUEST if the webhook is
        disabled.
        """

        def again(connection: Connection) -> Delivery:
            _require_enabled(self._find(connection, webhook_id))
            this = and_(_outbox.webhook_id == webhook_id, _outbox.id == delivery_id)
            row = connection.execute(select(webhook_deliveries).where(this)).first()
            if row is None:
                raise StreamerError(
                    ErrorCode.UNKNOWN_DELIVERY,
                    f"There is no delivery '{delivery_id[:80]}' to this webhook: list them.",
                )
            values = {"state": _PENDING, "attempts": 0, "due_at": utc_now()}
            connection.execute(
                update(webhook_deliveries)
                .where(this)
                .values(**values, claimed_until=None, ended_at=None)
            )
            return _delivery(connection.execute(select(webhook_deliveries).where(this)).one())

        return self.database.write(again)

    def test(self, webhook_id: str) -> Delivery:
        """Send a message of type `webhook.test`.

        Raises StreamerError: UNKNOWN_WEBHOOK; INVALID_REQUEST if the webhook is disabled.
        """
        fact = Fact(new_id("test"), TEST_TYPE, rfc3339(utc_now()), None, None, "{}")

        def add(connection: Connection) -> Delivery:
            _require_enabled(self._find(connection, webhook_id))
            row = new_delivery(webhook_id, fact)
            connection.execute(insert(webhook_deliveries), [row])
            this = _outbox.id == row["id"]
            return _delivery(connection.execute(select(webhook_deliveries).where(this)).one())

        return self.database.write(add)

    # Deliveries, for those who send them

    def has_any(self) -> bool:
        """Return whether any webhook is enabled."""
        statement = select(exists().where(_hooks.enabled))
        return bool(self.database.read(lambda c: c.execute(statement).scalar_one()))

    def position(self) -> str | None:
        """Return the id of the last event that is in the outbox; None before the first."""
        statement = select(webhook_positions.c.position).where(
            webhook_positions.c.name == _POSITION
        )
        return self.database.read(lambda c: c.execute(statement).scalar_one_or_none())

    def relay(self, before: str | None, facts: Sequence[Fact], after: str) -> bool:
        """Write facts and move the position from `before` to `after`, in one transaction.

        Return False, without writing, if another program has moved it meanwhile.
        """
        columns = webhook_positions.c

        def move(connection: Connection) -> bool:
            statement: Any
            if before is None:
                dialect = postgresql if connection.dialect.name == "postgresql" else sqlite
                row = {"name": _POSITION, "position": after}
                statement = dialect.insert(webhook_positions).values(row).on_conflict_do_nothing()
            else:
                statement = (
                    update(webhook_positions)
                    .where(columns.name == _POSITION, columns.position == before)
                    .values(position=after)
                )
            if connection.execute(statement.returning(columns.name)).first() is None:
                return False
            write_out(connection, facts)
            return True

        return self.database.write(move)

    def claim(self) -> list[str]:
        """Return the ids of deliveries to be sent now, oldest first, a few for each webhook.

        No other program gets them meanwhile, unless the attempt is lost.
        """
        now = utc_now()
        free = or_(_outbox.claimed_until.is_(None), _outbox.claimed_until <= now)
        due = and_(_outbox.state == _PENDING, _outbox.due_at <= now, free)
        waiting = (
            select(_hooks.id, _hooks.failing)
            .where(_hooks.enabled, exists().where(due, _outbox.webhook_id == _hooks.id))
            .order_by(_hooks.id)
        )
        if not self.database.read(lambda connection: connection.execute(waiting).first()):
            return []

        def take(connection: Connection) -> list[str]:
            taken: list[str] = []
            for hook in connection.execute(waiting.with_for_update()).all():
                busy = connection.execute(
                    select(func.count())
                    .select_from(webhook_deliveries)
                    .where(
                        _outbox.state == _PENDING,
                        _outbox.webhook_id == hook.id,
                        _outbox.claimed_until > now,
                    )
                ).scalar_one()
                room = (1 if hook.failing else MAX_AT_ONCE) - int(busy)
                if room > 0:
                    statement = select(_outbox.id).where(due, _outbox.webhook_id == hook.id)
                    rows = connection.execute(statement.order_by(_outbox.number).limit(room))
                    taken += rows.scalars()
            if taken:
                connection.execute(
                    update(webhook_deliveries)
                    .where(_outbox.id.in_(taken))
                    .values(claimed_until=now + _CLAIM)
                )
            return taken

        return self.database.write(take)

    def outgoing(self, delivery_id: str) -> Outgoing | None:
        """Return the message of a delivery; None if it need not be sent any more.

        Raises StreamerError(SECRET_UNREADABLE).
        """
        statement = (
            select(_outbox.id, _outbox.body, _hooks.id.label("hook"), _hooks.url, _hooks.secret)
            .join_from(webhook_deliveries, webhooks, _outbox.webhook_id == _hooks.id)
            .where(_outbox.id == delivery_id, _outbox.state == _PENDING, _hooks.enabled)
        )
        row = self.database.read(lambda connection: connection.execute(statement).first())
        if row is None:
            return None
        secret = self._box.unseal(row.secret, f"webhook '{row.hook}'", "secret")
        return Outgoing(row.url, secret, row.id, row.body)

    def note(self, delivery_id: str, outcome: Outcome) -> None:
        """Record the outcome of an attempt, and when the next one is due."""
        now = utc_now()

        def keep(connection: Connection) -> None:
            row = connection.execute(
                select(webhook_deliveries).where(_outbox.id == delivery_id).with_for_update()
            ).first()
            if row is None:
                return
            values: dict[str, Any] = {
                "status": outcome.status,
                "error": outcome.error,
                "claimed_until": None,
            }
            hook: dict[str, Any] = {"failing": outcome.error is not None}
            if outcome.error is None:
                values |= {"state": DeliveryState.DELIVERED.value, "ended_at": now}
            else:
                values["attempts"] = row.attempts + 1
                if row.attempts >= len(RETRIES) or outcome.status == 410:
                    values |= {"state": DeliveryState.FAILED.value, "ended_at": now}
                else:
                    pause = RETRIES[row.attempts] * (1 + _JITTER * self._jitter())
                    pause = max(pause, outcome.retry_after or 0.0)
                    values["due_at"] = now + timedelta(seconds=pause)
            if outcome.status == 410:
                hook |= {
                    "enabled": False,
                    "disabled_reason": "The receiver answered 410: it wants no more events.",
                }
            connection.execute(
                update(webhook_deliveries).where(_outbox.id == delivery_id).values(**values)
            )
            connection.execute(update(webhooks).where(_hooks.id == row.webhook_id).values(**hook))

        self.database.write(keep)

    def trim(self) -> None:
        """Delete deliveries that are no longer needed."""
        old = utc_now() - _KEPT
        ended = _outbox.state != _PENDING

        def drop(connection: Connection) -> None:
            expired = or_(and_(ended, _outbox.ended_at < old), _outbox.created_at < old - _KEPT)
            connection.execute(delete(webhook_deliveries).where(expired))
            for webhook_id in connection.execute(select(_hooks.id)).scalars().all():
                this = and_(ended, _outbox.webhook_id == webhook_id)
                beyond = connection.execute(
                    select(_outbox.number)
                    .where(this)
                    .order_by(_outbox.number.desc())
                    .offset(MAX_ENDED)
                    .limit(1)
                ).scalar()
                if beyond is not None:
                    connection.execute(
                        delete(webhook_deliveries).where(this, _outbox.number <= beyond)
                    )

        self.database.write(drop)


def _require_enabled(webhook: Webhook) -> None:
    if not webhook.enabled:
        raise StreamerError(
            ErrorCode.INVALID_REQUEST, "This webhook is disabled: set enabled to true first."
        )


def _webhook(row: Row[Any]) -> Webhook:
    return Webhook(**{name: row._mapping[name] for name in Webhook.model_fields})


def _delivery(row: Row[Any]) -> Delivery:
    values = {name: row._mapping[name] for name in Delivery.model_fields}
    if row.state != _PENDING:
        values["due_at"] = None
    return Delivery(**values)
