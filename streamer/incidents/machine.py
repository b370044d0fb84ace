"""Decide when an alert opens an incident and when it is over. Pure: no clock, no database."""

from bisect import insort
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum

from streamer.alert_rule import AlertRule
from streamer.incidents.records import (
    MAX_RESULT_IDS,
    Incident,
    IncidentState,
    Probabilities,
    ResolveReason,
    WindowCounts,
)

MIN_WINDOWS = 16
"""Windows of an alert that are remembered, or twice as many as its rule counts."""

BETTER = 0.1
"""By how much the most probable window must exceed the last one reported, to be reported again."""

_SAME = 0.5
"""Share of the shorter of two windows that overlaps when both are about the same time."""


@dataclass(frozen=True, order=True)
class SeenWindow:
    """One window of an alert.

    Attributes:
        start, end: wall clock, aware.
        probability: of yes; None if the window has no answer.
        result_id: its result.
    """

    start: datetime
    end: datetime = field(compare=False)
    probability: float | None = field(compare=False)
    result_id: str = field(compare=False)

    def same_time(self, other: "SeenWindow") -> bool:
        """Return whether both are about the same time, as after a stream was taken over."""
        if self.start == other.start:
            return True
        overlap = min(self.end, other.end) - max(self.start, other.start)
        return overlap > _SAME * min(self.end - self.start, other.end - other.start)


class IncidentStep(StrEnum):
    """A change of an incident. Only the last four are reported."""

    PENDING = "pending"
    DROPPED = "dropped"
    COUNTED = "counted"
    OPENED = "opened"
    REOPENED = "reopened"
    UPDATED = "updated"
    RESOLVED = "resolved"


REPORTED = frozenset(
    {IncidentStep.OPENED, IncidentStep.REOPENED, IncidentStep.UPDATED, IncidentStep.RESOLVED}
)


@dataclass(frozen=True)
class Transition:
    """A step of an incident, the incident after it, and the window that caused it."""

    step: IncidentStep
    incident: Incident
    window: SeenWindow


@dataclass(frozen=True)
class Subject:
    """What the incidents of an alert are about: the fields that no window changes."""

    watch_id: str
    stream_id: str
    stream_name: str
    question: str


class IncidentMachine:
    """The incidents of one watch on one stream.

    Windows may come in any order, and twice. One without an answer is counted and changes nothing
    else: it neither raises nor clears.

    Args:
        subject: what the incidents are about.
        windows: the newest windows that have been seen.
        incident: the newest incident, resolved or not; None if there was none.
        consumed: start of the newest window that the last resolved incident rests on: only later
            ones count for another.
        reported: probability of the best picture that was reported.
    """

    def __init__(
        self,
        subject: Subject,
        windows: Sequence[SeenWindow] = (),
        incident: Incident | None = None,
        consumed: datetime | None = None,
        reported: float = 0.0,
    ) -> None:
        self.subject = subject
        self.windows = sorted(windows)
        self.incident = incident
        self.consumed = consumed
        self.reported = reported

    def observe(self, window: SeenWindow, rule: AlertRule) -> Transition | None:
        """Add a window. Return what it changed; None if it was known, or changed nothing."""
        if not self._note(window, _remembered(rule)):
            return None
        active = self.incident if self._is_active() else None
        if active is not None:
            active = self.incident = _counted(active, window, rule)
        if window.probability is None:
            return None if active is None else Transition(IncidentStep.COUNTED, active, window)
        if active is None:
            return self._begin(window, rule)
        if active.state is IncidentState.PENDING:
            return self._confirm(active, window, rule)
        return self._go_on(active, window, rule)

    def resolve(self, reason: ResolveReason, at: datetime) -> Incident | None:
        """End the incident for another reason than its windows. Return it as it is then; None if
        it was pending, and is dropped, or none is open."""
        incident = self.incident
        if incident is None or not self._is_active():
            return None
        self.consumed = self.windows[-1].start if self.windows else at
        if incident.state is IncidentState.PENDING:
            self.incident = None
            return None
        self.incident = incident.changed(
            state=IncidentState.RESOLVED, resolve_reason=reason, resolved_at=at
        )
        return self.incident

    def _is_active(self) -> bool:
        return self.incident is not None and self.incident.state is not IncidentState.RESOLVED

    def _note(self, window: SeenWindow, count: int) -> bool:
        """Remember a window; return False if it is known, or too old to compare with known ones.

        An answer takes the place of a window of the same time that has none.
        """
        if len(self.windows) >= count and window < self.windows[0]:
            return False
        same = [known for known in self.windows if known.same_time(window)]
        if same and (window.probability is None or any(w.probability is not None for w in same)):
            return False
        for known in same:
            self.windows.remove(known)
        insort(self.windows, window)
        del self.windows[:-count]
        return True

    def _answered(self, count: int, since: datetime | None) -> list[SeenWindow]:
        """Return the newest answered windows, at most `count`, that begin after `since`."""
        found = [w for w in self.windows if w.probability is not None]
        if since is not None:
            found = [w for w in found if w.start > since]
        return found[-count:]

    def _evidence(self, rule: AlertRule) -> list[SeenWindow]:
        """Return the windows that may raise an incident: the last `n` answered ones, but none from
        before a long silence."""
        found = self._answered(rule.raise_.n, self.consumed)
        if not found:
            return []
        longest = max(window.end - window.start for window in found)
        oldest = found[-1].start - rule.raise_.n * longest - timedelta(seconds=rule.cooldown)
        return [w for w in found if w.start >= oldest and shows(w, rule)]

    def _begin(self, window: SeenWindow, rule: AlertRule) -> Transition | None:
        before = self.incident
        if before is not None and self._comes_back(before, window, rule):
            again = _counted(before, window, rule).changed(
                state=IncidentState.OPEN,
                resolved_at=None,
                resolve_reason=None,
                reopened=before.reopened + 1,
            )
            self.incident, self.reported = again, again.probability.max
            return Transition(IncidentStep.REOPENED, again, window)
        evidence = self._evidence(rule)
        if not evidence or window not in evidence:
            return None
        if rule.schedule is not None and not rule.schedule.holds(window.start):
            return None
        self.incident = self._new(evidence, rule)
        if len(evidence) >= rule.raise_.k:
            return self._open(self.incident, window)
        return Transition(IncidentStep.PENDING, self.incident, window)

    def _comes_back(self, before: Incident, window: SeenWindow, rule: AlertRule) -> bool:
        assert before.resolved_at is not None
        late = self.consumed is not None and window.start <= self.consumed
        within = window.start <= before.resolved_at + timedelta(seconds=rule.cooldown)
        return shows(window, rule) and within and not late

    def _new(self, evidence: list[SeenWindow], rule: AlertRule) -> Incident:
        subject, first, last = self.subject, evidence[0], evidence[-1]
        known = [w.probability for w in evidence if w.probability is not None]
        since = [w for w in self.windows if w.start >= first.start]
        return Incident(
            watch_id=subject.watch_id,
            stream_id=subject.stream_id,
            stream_name=subject.stream_name,
            title=rule.title or subject.question[:200],
            question=subject.question,
            severity=rule.severity,
            labels=rule.labels,
            state=IncidentState.PENDING,
            opened_at=first.start,
            last_seen_at=last.end,
            last_known_at=max(w.end for w in since if w.probability is not None),
            probability=Probabilities(first=known[0], last=known[-1], max=max(known)),
            windows=_count(since),
            result_ids=[w.result_id for w in since][-MAX_RESULT_IDS:],
        )

    def _open(self, incident: Incident, window: SeenWindow) -> Transition:
        self.reported = incident.probability.max
        newest = max(window.end, incident.last_known_at)
        self.incident = incident.changed(state=IncidentState.OPEN, raised_at=newest)
        return Transition(IncidentStep.OPENED, self.incident, window)

    def _confirm(self, incident: Incident, window: SeenWindow, rule: AlertRule) -> Transition:
        evidence = self._evidence(rule)
        if (
            evidence and evidence[0].start > incident.opened_at
        ):  # what was seen first is too long ago
            fresh = self._new(evidence, rule)
            incident = fresh.model_copy(update={"id": incident.id, "version": incident.version})
            self.incident = incident
        allowed = rule.schedule is None or rule.schedule.holds(window.start)
        if len(evidence) >= rule.raise_.k and window in evidence and allowed:
            return self._open(incident, window)
        if not evidence:
            self.incident = None
            return Transition(IncidentStep.DROPPED, incident, window)
        return Transition(IncidentStep.COUNTED, incident, window)

    def _go_on(self, incident: Incident, window: SeenWindow, rule: AlertRule) -> Transition:
        newest = self._answered(rule.clear.m, self.consumed)
        if len(newest) == rule.clear.m and all(_is_clear(w, rule) for w in newest):
            self.consumed = newest[-1].start
            self.incident = incident.changed(
                state=IncidentState.RESOLVED,
                resolved_at=max(newest[-1].end, incident.opened_at),
                resolve_reason=ResolveReason.CLEARED,
            )
            return Transition(IncidentStep.RESOLVED, self.incident, window)
        if incident.probability.max >= self.reported + BETTER:
            self.reported = incident.probability.max
            return Transition(IncidentStep.UPDATED, incident, window)
        return Transition(IncidentStep.COUNTED, incident, window)


def _remembered(rule: AlertRule) -> int:
    return max(MIN_WINDOWS, 2 * rule.raise_.n, 2 * rule.clear.m)


def shows(window: SeenWindow, rule: AlertRule) -> bool:
    """Return whether a window counts for an incident."""
    return window.probability is not None and window.probability >= rule.raise_.probability


def _is_clear(window: SeenWindow, rule: AlertRule) -> bool:
    return window.probability is not None and window.probability <= rule.clear.probability


def _count(windows: Sequence[SeenWindow]) -> WindowCounts:
    counts = WindowCounts()
    for window in windows:
        counts = _one_more(counts, window)
    return counts


def _one_more(counts: WindowCounts, window: SeenWindow) -> WindowCounts:
    name = "unknown"
    if window.probability is not None:
        name = "yes" if window.probability >= 0.5 else "no"
    return counts.model_copy(update={name: getattr(counts, name) + 1})


def _counted(incident: Incident, window: SeenWindow, rule: AlertRule) -> Incident:
    """Return an incident with one more window, which may be older than the newest."""
    fields: dict[str, object] = {
        "windows": _one_more(incident.windows, window),
        "result_ids": [*incident.result_ids, window.result_id][-MAX_RESULT_IDS:],
    }
    if window.probability is not None:
        known = incident.probability
        newest = window.end >= incident.last_known_at
        fields["probability"] = Probabilities(
            first=known.first,
            last=window.probability if newest else known.last,
            max=max(known.max, window.probability),
        )
        fields["last_known_at"] = max(incident.last_known_at, window.end)
        if shows(window, rule):
            fields["last_seen_at"] = max(incident.last_seen_at, window.end)
    return incident.changed(**fields)
