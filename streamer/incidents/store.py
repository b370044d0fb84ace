"""Keep incidents in the timeline's database: count windows, list, change, resolve.

Whatever changes an incident writes its messages in the same transaction (see messages.py).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import structlog
from sqlalchemy import Connection, Row, Select, delete, func, select, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import IntegrityError

from streamer.cursors import decode_cursor, encode_cursor
from streamer.domain.kinds import ResultKind
from streamer.domain.result import Result
from streamer.domain.timestamp import rfc3339, utc_now
from streamer.errors import ErrorCode, StreamerError
from streamer.events import EventType
from streamer.incidents import messages
from streamer.incidents.machine import (
    REPORTED,
    IncidentMachine,
    IncidentStep,
    SeenWindow,
    Subject,
    Transition,
    shows,
)
from streamer.incidents.messages import Message
from streamer.incidents.records import (
    MAX_DELIVERIES,
    MAX_SEEN_BY,
    Acknowledgement,
    Delivered,
    Feedback,
    Incident,
    IncidentState,
    ResolveReason,
    Snapshots,
)
from streamer.incidents.silences import MAX_SILENCES, Silence
from streamer.timeline.database import Database
from streamer.timeline.tables import alert_states, incident_pictures, incidents, silences
from streamer.times import When, moment

MAX_INCIDENTS = 10_000
"""Incidents that are kept: the newest ones."""

_MAX_PICTURE_BYTES = 4 << 20

_LAST_PICTURE_EVERY = timedelta(seconds=30)
"""How often the picture of an open incident is replaced by a newer one."""

INCIDENT_KEY = "incident"
"""Entry of a result's data: the incident whose summary it is."""

TYPES = {
    IncidentStep.OPENED: EventType.INCIDENT_OPENED,
    IncidentStep.REOPENED: EventType.INCIDENT_OPENED,
    IncidentStep.UPDATED: EventType.INCIDENT_UPDATED,
    IncidentStep.RESOLVED: EventType.INCIDENT_RESOLVED,
}
"""The event that reports each step."""

_log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class KeptPicture:
    """A picture of a window: a JPEG, and when it was captured."""

    jpeg: bytes
    captured_at: datetime


@dataclass(frozen=True)
class IncidentPage:
    """Incidents, newest first, and the cursor of the next page (None on the last page)."""

    incidents: list[Incident]
    next_cursor: str | None


class Incidents:
    """The incidents and the silences of an installation.

    Every method raises StreamerError(DATABASE_UNAVAILABLE) if the database does not respond.

    Args:
        database: the timeline's.
        channels: where messages go beside the events: see messages.py.
    """

    def __init__(self, database: Database, channels: Sequence[str] = ()) -> None:
        self._database = database
        self._channels = channels

    # What alerts see

    def count(
        self, connection: Connection, results: Sequence[Result], pictures: Mapping[str, KeptPicture]
    ) -> bool:
        """Count new results in the transaction that records them; return True if events were added.

        `pictures` are those of windows that show what an alert asks about, by result id.
        """
        reported = False
        for result in sorted(
            results, key=lambda each: (each.watch_id or "", each.start or each.created_at)
        ):
            # A result that breaks this must not keep all others from being recorded.
            try:
                with connection.begin_nested():
                    reported |= self._count(connection, result, pictures.get(result.id))
            except (IntegrityError, ValueError, LookupError, TypeError, AttributeError):
                _log.exception("alert_not_counted", result=result.id)
        return reported

    def _count(self, connection: Connection, result: Result, picture: KeptPicture | None) -> bool:
        if INCIDENT_KEY in (result.data or {}):
            return self._describe(connection, result)
        if not is_observation(result):
            return False
        assert result.watch_id is not None
        assert result.alert is not None
        machine = self._machine(
            connection,
            Subject(
                watch_id=result.watch_id,
                stream_id=result.stream_id or "",
                stream_name=result.stream_name or "",
                question=result.prompt,
            ),
        )
        before = None if machine.incident is None else machine.incident.id
        transition = machine.observe(seen_window(result), result.alert)
        self._save_state(connection, machine)
        if transition is None:
            return False
        return self._apply(connection, machine, transition, result, picture, before)

    def _apply(
        self,
        connection: Connection,
        machine: IncidentMachine,
        transition: Transition,
        result: Result,
        picture: KeptPicture | None,
        before: str | None,
    ) -> bool:
        incident, rule = transition.incident, result.alert
        assert rule is not None
        if transition.step is IncidentStep.DROPPED:
            connection.execute(delete(incidents).where(incidents.c.id == incident.id))
            return False
        reported = transition.step in REPORTED
        if incident.state is not IncidentState.PENDING and shows(transition.window, rule):
            first = transition.step is IncidentStep.OPENED
            incident = _pictured(connection, incident, picture, transition.window, first)
        describe = rule.summary_prompt if transition.step is IncidentStep.OPENED else None
        if reported:
            incident = self._silenced(connection, incident)
        if incident.id == before:
            _update(connection, incident, describe)
        else:
            _insert(connection, incident, describe)
        machine.incident = incident
        if reported:
            self._tell(connection, TYPES[transition.step], incident)
        return reported

    def _describe(self, connection: Connection, result: Result) -> bool:
        """Give an incident its summary."""
        found = _locked(connection, str((result.data or {})[INCIDENT_KEY]))
        if found is None or result.error is not None or not (result.text or "").strip():
            return False
        incident = found.changed(summary=result.text)
        _update(connection, incident)
        self._tell(connection, EventType.INCIDENT_UPDATED, incident)
        return True

    def _machine(self, connection: Connection, subject: Subject) -> IncidentMachine:
        """Load the machine of an alert, which no other program uses until the transaction ends."""
        insert = postgresql.insert if connection.dialect.name == "postgresql" else sqlite.insert
        columns = alert_states.c
        connection.execute(
            insert(alert_states)
            .values(
                watch_id=subject.watch_id,
                stream_id=subject.stream_id,
                windows=[],
                told=0.0,
                updated_at=utc_now(),
            )
            .on_conflict_do_nothing()
        )
        row = connection.execute(
            select(alert_states)
            .where(columns.watch_id == subject.watch_id, columns.stream_id == subject.stream_id)
            .with_for_update()
        ).one()
        incident = None if row.incident_id is None else _locked(connection, row.incident_id)
        return IncidentMachine(
            subject,
            windows=[_read_window(each) for each in row.windows],
            incident=incident,
            consumed=row.consumed,
            reported=row.told,
        )

    def _save_state(self, connection: Connection, machine: IncidentMachine) -> None:
        columns, subject = alert_states.c, machine.subject
        connection.execute(
            update(alert_states)
            .where(columns.watch_id == subject.watch_id, columns.stream_id == subject.stream_id)
            .values(
                incident_id=None if machine.incident is None else machine.incident.id,
                windows=[_stored_window(window) for window in machine.windows],
                consumed=machine.consumed,
                told=machine.reported,
                updated_at=utc_now(),
            )
        )

    # What people ask and say

    def page(
        self,
        *,
        state: str | None = None,
        stream: str | None = None,
        severity: str | None = None,
        watch: str | None = None,
        since: When = None,
        unseen: bool = False,
        limit: int = 100,
        cursor: str | None = None,
    ) -> IncidentPage:
        """Return one page of incidents, newest first; pending ones only with `state` pending.

        Args:
            stream: id or name of a stream.
            since: select incidents that have been open, or changed, since then.
            unseen: select incidents that no one has seen.
            cursor: `next_cursor` of the previous page.

        Raises StreamerError(INVALID_REQUEST) for an invalid cursor.
        """
        columns = incidents.c
        limit = max(1, min(limit, 1000))
        statement = select(incidents).order_by(columns.number.desc()).limit(limit + 1)
        if state is not None:
            statement = statement.where(columns.state == state)
        else:
            statement = statement.where(columns.state != IncidentState.PENDING.value)
        if stream is not None:
            statement = statement.where(
                (columns.stream_id == stream) | (columns.stream_name == stream)
            )
        if severity is not None:
            statement = statement.where(columns.severity == severity)
        if watch is not None:
            statement = statement.where(columns.watch_id == watch)
        start = moment(since, utc_now())
        if start is not None:
            statement = statement.where(
                (columns.updated_at >= start) | (columns.state != IncidentState.RESOLVED.value)
            )
        if unseen:
            statement = statement.where(columns.seen.is_(False))
        if cursor is not None:
            statement = statement.where(columns.number < decode_cursor(cursor)[0])
        rows = self._database.read(lambda connection: connection.execute(statement).all())
        more, rows = len(rows) > limit, rows[:limit]
        return IncidentPage(
            [_incident(row) for row in rows], encode_cursor(rows[-1].number) if more else None
        )

    def get(self, incident_id: str) -> Incident:
        """Return an incident. Raises StreamerError(UNKNOWN_INCIDENT)."""
        statement = select(incidents).where(incidents.c.id == incident_id)
        row = self._database.read(lambda connection: connection.execute(statement).first())
        if row is None:
            raise unknown_incident(incident_id)
        return _incident(row)

    def picture(self, incident_id: str, name: str) -> KeptPicture | None:
        """Return a picture of an incident, `opened`, `best` or `last`; None if none was kept.

        Raises StreamerError(UNKNOWN_INCIDENT).
        """
        columns = incident_pictures.c
        statement = select(incident_pictures).where(
            columns.incident_id == incident_id, columns.name == name
        )
        row = self._database.read(lambda connection: connection.execute(statement).first())
        if row is None:
            self.get(incident_id)
            return None
        return KeptPicture(bytes(row.jpeg), row.captured_at)

    def acknowledge(self, incident_id: str, by: str, note: str | None = None) -> Incident:
        """Note who takes care of an incident; the first one stays. Who does has seen it."""

        def change(incident: Incident) -> Incident:
            if incident.acknowledged is not None:
                return incident
            return _seen_by(incident, by).changed(acknowledged=Acknowledgement(by=by, note=note))

        return self._change(incident_id, change, EventType.INCIDENT_ACKNOWLEDGED)

    def see(self, incident_id: str, by: str) -> Incident:
        """Note that a person has seen an incident."""
        return self._change(incident_id, lambda incident: _seen_by(incident, by))

    def judge(self, incident_id: str, feedback: Feedback | None) -> Incident:
        """Note whether an incident was right, or take that back."""
        return self._change(incident_id, lambda incident: incident.changed(feedback=feedback))

    def resolve(
        self,
        incident_id: str,
        reason: ResolveReason = ResolveReason.MANUAL,
        at: datetime | None = None,
    ) -> Incident:
        """End an incident; one that has ended is returned unchanged.

        Raises StreamerError: UNKNOWN_INCIDENT; INVALID_REQUEST for one that is pending.
        """

        def end(connection: Connection) -> Incident:
            # The alert is locked before its incident, as where windows are counted.
            found = _found(connection, select(incidents).where(incidents.c.id == incident_id))
            if found is None:
                raise unknown_incident(incident_id)
            machine = self._machine(connection, _subject(found))
            incident = _find(connection, incident_id)
            if incident.state is IncidentState.RESOLVED:
                return incident
            machine.incident = incident
            pending = incident.state is IncidentState.PENDING
            if pending and reason is ResolveReason.MANUAL:
                raise StreamerError(
                    ErrorCode.INVALID_REQUEST,
                    "The incident is pending: no one was notified, and it ends by itself.",
                )
            ended = machine.resolve(reason, at or utc_now())
            if ended is None:
                connection.execute(delete(incidents).where(incidents.c.id == incident_id))
            else:
                _update(connection, ended)
                self._tell(connection, EventType.INCIDENT_RESOLVED, ended)
            self._save_state(connection, machine)
            return ended or incident

        return self._database.write(end)

    def _change(
        self,
        incident_id: str,
        change: Callable[[Incident], Incident],
        reported: EventType | None = None,
    ) -> Incident:
        def write(connection: Connection) -> Incident:
            before = _find(connection, incident_id)
            after = change(before)
            if after.version != before.version:
                _update(connection, after)
                if reported is not None:
                    self._tell(connection, reported, after)
            return after

        return self._database.write(write)

    # Silences

    def silence(self, silence: Silence) -> Silence:
        """Add a silence. Raises StreamerError(INVALID_REQUEST) if there are too many."""

        def write(connection: Connection) -> Silence:
            columns = silences.c
            connection.execute(
                delete(silences).where(columns.ends_at < utc_now() - timedelta(days=30))
            )
            count = select(func.count()).select_from(silences).where(columns.ends_at > utc_now())
            if connection.execute(count).scalar_one() >= MAX_SILENCES:
                raise StreamerError(
                    ErrorCode.INVALID_REQUEST,
                    f"There are {MAX_SILENCES} silences already: delete one first.",
                )
            connection.execute(
                silences.insert().values(
                    id=silence.id,
                    starts_at=silence.starts_at,
                    ends_at=silence.ends_at,
                    record=silence.model_dump(mode="json"),
                )
            )
            return silence

        return self._database.write(write)

    def silences(self) -> list[Silence]:
        """Return the silences that have not ended, those that end first first."""
        return self._database.read(_current_silences)

    def silence_of(self, silence_id: str) -> Silence:
        """Return a silence. Raises StreamerError(UNKNOWN_SILENCE)."""
        statement = select(silences).where(silences.c.id == silence_id)
        row = self._database.read(lambda connection: connection.execute(statement).first())
        if row is None:
            raise _unknown_silence(silence_id)
        return Silence.read(row.record)

    def end_silence(self, silence_id: str) -> Silence:
        """Delete a silence and return it. Raises StreamerError(UNKNOWN_SILENCE)."""
        silence = self.silence_of(silence_id)
        self._database.write(
            lambda connection: connection.execute(
                delete(silences).where(silences.c.id == silence_id)
            )
        )
        return silence

    # What the recorder looks after

    def active(self) -> list[Incident]:
        """Return the incidents that are not resolved, oldest first."""
        statement = (
            select(incidents)
            .where(incidents.c.state != IncidentState.RESOLVED.value)
            .order_by(incidents.c.number)
        )
        rows = self._database.read(lambda connection: connection.execute(statement).all())
        return [_incident(row) for row in rows]

    def resolved_since(self, start: datetime) -> list[Incident]:
        """Return the incidents that are resolved and were changed since `start`."""
        columns = incidents.c
        statement = select(incidents).where(
            columns.state == IncidentState.RESOLVED.value, columns.updated_at >= start
        )
        rows = self._database.read(lambda connection: connection.execute(statement).all())
        return [_incident(row) for row in rows]

    def silence_again(self, incident_id: str) -> Incident:
        """Work out which silences cover an incident; deliver it when the last one has ended."""

        def write(connection: Connection) -> Incident:
            before = _find(connection, incident_id)
            after = self._silenced(connection, before)
            if after.silenced_by == before.silenced_by:
                return before
            after = after.changed()
            _update(connection, after)
            if not after.silenced_by and after.state is IncidentState.OPEN:
                self._tell(connection, EventType.INCIDENT_OPENED, after)
            return after

        return self._database.write(write)

    def to_describe(self) -> list[tuple[Incident, str]]:
        """Return the incidents that still need a summary, and what the model is to be asked."""
        statement = select(incidents).where(incidents.c.to_describe.is_not(None)).limit(100)
        rows = self._database.read(lambda connection: connection.execute(statement).all())
        return [(_incident(row), row.to_describe) for row in rows]

    def described(self, incident_id: str) -> None:
        """Note that the model has been asked for a summary, or is not to be asked."""
        statement = update(incidents).where(incidents.c.id == incident_id).values(to_describe=None)
        self._database.write(lambda connection: connection.execute(statement))

    def note_delivery(self, message: Message, channel: str, error: str | None) -> None:
        """Note in an incident that a message about it was sent, or why it could not be."""
        entry = Delivered(
            channel=channel,
            type=message.type.value,
            version=message.incident.version,
            delivered=error is None,
            error=None if error is None else error[:500],
        )

        def write(connection: Connection) -> None:
            incident = _locked(connection, message.incident.id)
            if incident is None:
                return
            kept = [*incident.deliveries, entry][-MAX_DELIVERIES:]
            # No event reports this change: the version stays.
            _update(connection, incident.model_copy(update={"deliveries": kept}))

        self._database.write(write)

    def expire(self, before: datetime, most: int = MAX_INCIDENTS) -> int:
        """Delete what ended before a time, and the oldest beyond `most`; return their number."""

        def write(connection: Connection) -> int:
            columns = incidents.c
            over = select(columns.number).order_by(columns.number.desc()).offset(most).limit(1)
            oldest = connection.execute(over).scalar()
            old = (columns.state == IncidentState.RESOLVED.value) & (
                (columns.updated_at < before) | (columns.number <= (oldest or 0))
            )
            gone = connection.execute(delete(incidents).where(old).returning(columns.id)).scalars()
            ids = list(gone)
            kept = select(columns.id)
            pictures, states = incident_pictures.c, alert_states.c
            if ids:
                connection.execute(
                    delete(incident_pictures).where(pictures.incident_id.not_in(kept))
                )
            connection.execute(
                delete(alert_states).where(
                    states.updated_at < before,
                    states.incident_id.is_(None) | states.incident_id.not_in(kept),
                )
            )
            messages.expire(connection, utc_now())
            return len(ids)

        return self._database.write(write)

    def _silenced(self, connection: Connection, incident: Incident) -> Incident:
        now = utc_now()
        covering = [s.id for s in _current_silences(connection) if s.covers(incident, now)]
        return incident.model_copy(update={"silenced_by": covering[:100]})

    def _tell(self, connection: Connection, type: EventType, incident: Incident) -> None:
        messages.write(connection, type, incident, self._channels)


def is_observation(result: Result) -> bool:
    """Return whether a result is about a window of an alert; one with an error is unknown."""
    return (
        result.alert is not None
        and result.watch_id is not None
        and result.kind in (ResultKind.ALERT, ResultKind.ERROR)
    )


def seen_window(result: Result) -> SeenWindow:
    """Return the window of an observation."""
    start = result.start or result.created_at
    probability = (result.data or {}).get("probability")
    answered = result.kind == ResultKind.ALERT and isinstance(probability, int | float)
    return SeenWindow(
        start=start,
        end=max(start, result.end or start),
        probability=float(probability) if answered and probability is not None else None,
        result_id=result.id,
    )


def unknown_incident(incident_id: str) -> StreamerError:
    """Return the error of an id that no incident has."""
    return StreamerError(
        ErrorCode.UNKNOWN_INCIDENT,
        f"There is no incident '{incident_id[:80]}': `streamer incidents` lists them.",
    )


def _unknown_silence(silence_id: str) -> StreamerError:
    return StreamerError(
        ErrorCode.UNKNOWN_SILENCE,
        f"There is no silence '{silence_id[:80]}': `streamer silence list` lists them.",
    )


def _current_silences(connection: Connection) -> list[Silence]:
    columns = silences.c
    statement = select(silences).where(columns.ends_at > utc_now()).order_by(columns.ends_at)
    found = []
    for row in connection.execute(statement):
        try:
            found.append(Silence.read(row.record))
        except StreamerError as error:
            _log.warning("silence_unreadable", id=row.id, reason=error.message)
    return found


def _pictured(
    connection: Connection,
    incident: Incident,
    picture: KeptPicture | None,
    window: SeenWindow,
    first: bool,
) -> Incident:
    """Keep the picture of a window that shows an incident, where it is worth it."""
    if picture is None or len(picture.jpeg) > _MAX_PICTURE_BYTES:
        return incident
    kept = incident.snapshot
    assert window.probability is not None
    names = []
    if first:
        names.append("opened")
    if kept.best is None or window.probability >= incident.probability.max:
        names.append("best")
    columns = incident_pictures.c
    newest = connection.execute(
        select(columns.captured_at).where(
            columns.incident_id == incident.id, columns.name == "last"
        )
    ).scalar()
    if newest is None or picture.captured_at >= newest + _LAST_PICTURE_EVERY:
        names.append("last")
    if not names:
        return incident
    insert = postgresql.insert if connection.dialect.name == "postgresql" else sqlite.insert
    for name in names:
        values = {"captured_at": picture.captured_at, "jpeg": picture.jpeg}
        connection.execute(
            insert(incident_pictures)
            .values(incident_id=incident.id, name=name, **values)
            .on_conflict_do_update(index_elements=["incident_id", "name"], set_=values)
        )
    paths = {name: f"/v1/incidents/{incident.id}/snapshot.jpg?which={name}" for name in names}
    snapshot = Snapshots(**kept.model_dump() | paths)
    return incident.model_copy(update={"snapshot": snapshot})


def _seen_by(incident: Incident, by: str) -> Incident:
    if by in incident.seen_by or len(incident.seen_by) >= MAX_SEEN_BY:
        return incident
    return incident.changed(seen_by=[*incident.seen_by, by])


def _subject(incident: Incident) -> Subject:
    return Subject(incident.watch_id, incident.stream_id, incident.stream_name, incident.question)


def _values(incident: Incident) -> dict[str, Any]:
    return {
        "severity": incident.severity,
        "state": incident.state.value,
        "opened_at": incident.opened_at,
        "updated_at": utc_now(),
        "seen": bool(incident.seen_by),
        "record": incident.model_dump(mode="json"),
    }


def _insert(connection: Connection, incident: Incident, describe: str | None) -> None:
    connection.execute(
        incidents.insert().values(
            id=incident.id,
            watch_id=incident.watch_id,
            stream_id=incident.stream_id,
            stream_name=incident.stream_name,
            to_describe=describe,
            **_values(incident),
        )
    )


def _update(connection: Connection, incident: Incident, describe: str | None = None) -> None:
    values = _values(incident) | ({} if describe is None else {"to_describe": describe})
    connection.execute(update(incidents).where(incidents.c.id == incident.id).values(**values))


def _locked(connection: Connection, incident_id: str) -> Incident | None:
    """Return an incident that no other program changes until the transaction ends."""
    statement = select(incidents).where(incidents.c.id == incident_id).with_for_update()
    return _found(connection, statement)


def _found(connection: Connection, statement: Select[Any]) -> Incident | None:
    row = connection.execute(statement).first()
    return None if row is None else _incident(row)


def _find(connection: Connection, incident_id: str) -> Incident:
    incident = _locked(connection, incident_id)
    if incident is None:
        raise unknown_incident(incident_id)
    return incident


def _incident(row: Row[Any]) -> Incident:
    return Incident.read(row.record)


def _stored_window(window: SeenWindow) -> list[Any]:
    return [rfc3339(window.start), rfc3339(window.end), window.probability, window.result_id]


def _read_window(stored: list[Any]) -> SeenWindow:
    start, end, probability, result_id = stored
    return SeenWindow(
        datetime.fromisoformat(start), datetime.fromisoformat(end), probability, result_id
    )
