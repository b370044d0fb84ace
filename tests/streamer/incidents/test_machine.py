"""When an alert opens an incident, and when it is over: the machine alone."""

from datetime import UTC, datetime, timedelta

import pytest

from streamer.alert_rule import AlertRule
from streamer.incidents.machine import IncidentMachine, IncidentStep, SeenWindow, Subject
from streamer.incidents.records import IncidentState, ResolveReason

START = datetime(2026, 11, 26, 8, 0, tzinfo=UTC)
SUBJECT = Subject("wch_1", "str_1", "lobby", "Is a car parked in front of the gate?")
RULE = AlertRule()
UNKNOWN = None


def window(place, probability, length=10.0):
    start = START + timedelta(seconds=10 * place)
    return SeenWindow(start, start + timedelta(seconds=length), probability, f"res_{place}")


def run(machine, *probabilities, first=0, rule=RULE):
    """Return the step that each window causes."""
    steps = []
    for place, probability in enumerate(probabilities, first):
        transition = machine.observe(window(place, probability), rule)
        steps.append(transition.step if transition else None)
    return steps


@pytest.fixture
def machine():
    return IncidentMachine(SUBJECT)


def test_two_of_three_windows_open_an_incident_and_three_clear_ones_end_it(machine):
    steps = run(machine, 0.1, 0.8, 0.5, 0.9, 0.2, 0.3, 0.1)
    assert steps == [
        None,
        IncidentStep.PENDING,
        IncidentStep.COUNTED,
        IncidentStep.OPENED,
        IncidentStep.COUNTED,
        IncidentStep.COUNTED,
        IncidentStep.RESOLVED,
    ]
    incident = machine.incident
    assert incident.state is IncidentState.RESOLVED
    assert incident.resolve_reason is ResolveReason.CLEARED
    assert (incident.opened_at, incident.raised_at) == (window(1, 0).start, window(3, 0).end)
    assert (incident.last_seen_at, incident.resolved_at) == (window(3, 0).end, window(6, 0).end)
    assert incident.probability.model_dump() == {"first": 0.8, "last": 0.1, "max": 0.9}
    assert incident.windows.model_dump() == {"yes": 3, "no": 3, "unknown": 0}
    assert incident.result_ids == [f"res_{place}" for place in range(1, 7)]
    assert incident.title == incident.question == SUBJECT.question


def test_a_single_window_that_shows_it_comes_to_nothing(machine):
    assert run(machine, 0.9, 0.1, 0.1, 0.1) == [
        IncidentStep.PENDING,
        IncidentStep.COUNTED,
        IncidentStep.COUNTED,
        IncidentStep.DROPPED,
    ]
    assert machine.incident is None


def test_a_window_that_is_neither_does_not_end_it(machine):
    run(machine, 0.9, 0.9, 0.1, 0.1, 0.5, 0.1, 0.1)
    assert machine.incident.state is IncidentState.OPEN
    assert run(machine, 0.1, first=7) == [IncidentStep.RESOLVED]


def test_unknown_neither_raises_nor_clears(machine):
    assert run(machine, *[UNKNOWN] * 5) == [None] * 5
    assert run(machine, 0.9, UNKNOWN, UNKNOWN, 0.9, first=5)[-1] is IncidentStep.OPENED
    assert run(machine, *[UNKNOWN] * 20, first=9) == [IncidentStep.COUNTED] * 20
    assert machine.incident.state is IncidentState.OPEN
    assert machine.incident.windows.unknown == 22
    assert machine.incident.last_known_at == window(8, 0).end
    # and it does not interrupt what clears
    assert run(machine, 0.1, UNKNOWN, 0.1, UNKNOWN, 0.1, first=29)[-1] is IncidentStep.RESOLVED


def test_yes_within_the_cool_down_opens_the_same_incident_again(machine):
    run(machine, 0.9, 0.9, 0.1, 0.1, 0.1)
    first = machine.incident
    assert run(machine, 0.75, first=11) == [IncidentStep.REOPENED], "60 s after its end"
    again = machine.incident
    assert (again.id, again.state, again.reopened) == (first.id, IncidentState.OPEN, 1)
    assert (again.resolved_at, again.resolve_reason) == (None, None)
    assert again.version > first.version


def test_yes_after_the_cool_down_begins_another_incident(machine):
    run(machine, 0.9, 0.9, 0.1, 0.1, 0.1)
    first = machine.incident.id
    assert run(machine, 0.9, 0.9, first=12) == [IncidentStep.PENDING, IncidentStep.OPENED]
    assert machine.incident.id != first
    assert machine.incident.opened_at == window(12, 0).start, "what ended counts no more"


def test_a_better_picture_is_told_once_it_is_clearly_better(machine):
    run(machine, 0.71, 0.72)
    assert run(machine, 0.75, 0.81, 0.83, 0.95, 0.99, first=2) == [
        IncidentStep.COUNTED,
        IncidentStep.COUNTED,
        IncidentStep.UPDATED,
        IncidentStep.UPDATED,
        IncidentStep.COUNTED,
    ]


def test_windows_that_come_twice_or_in_another_order_are_harmless(machine):
    late = window(2, 0.1)
    run(machine, 0.9, 0.9)
    before = machine.incident
    assert machine.observe(window(1, 0.2), RULE) is None, "its start is known"
    assert machine.observe(window(1.2, 0.1), RULE) is None, "it is about the same time"
    assert machine.incident == before
    assert run(machine, 0.1, 0.1, first=3) == [IncidentStep.COUNTED] * 2
    assert machine.observe(late, RULE).step is IncidentStep.RESOLVED
    resolved = machine.incident
    assert machine.observe(late, RULE) is None
    # nor does a late window from before its end open it again
    assert machine.observe(window(0.5 - 10, 0.9), RULE) is None
    assert machine.incident == resolved


def test_an_answer_takes_the_place_of_an_unknown_window_of_the_same_time(machine):
    run(machine, 0.9, UNKNOWN)
    assert machine.observe(window(1.1, 0.9), RULE).step is IncidentStep.OPENED


def test_evidence_from_before_a_long_silence_does_not_count(machine):
    run(machine, 0.9)
    pending = machine.incident.id
    assert run(machine, 0.9, first=30) == [IncidentStep.COUNTED], "n windows and a cool-down later"
    assert machine.incident.id == pending
    assert machine.incident.opened_at == window(30, 0).start
    assert run(machine, 0.9, first=31) == [IncidentStep.OPENED]


def test_other_rules(machine):
    assert run(machine, 0.6, rule=AlertRule(raise_={"probability": 0.6, "k": 1, "n": 1})) == [
        IncidentStep.OPENED
    ]
    rule = AlertRule(clear={"probability": 0.2, "m": 1}, cooldown=0)
    assert run(machine, 0.3, 0.2, first=1, rule=rule) == [
        IncidentStep.COUNTED,
        IncidentStep.RESOLVED,
    ]
    assert run(machine, 0.9, first=4, rule=rule) == [IncidentStep.PENDING], "its cool-down is over"


def test_a_schedule_says_when_incidents_may_open(machine):
    at_night = AlertRule(schedule={"from": "22:00", "to": "06:00", "timezone": "Europe/Berlin"})
    by_day = AlertRule(schedule={"days": ["thu"], "from": "09:00", "to": "17:00"})
    assert run(machine, 0.9, 0.9, 0.9, rule=at_night) == [None] * 3
    assert run(machine, 0.9, 0.9, first=3, rule=by_day) == [None] * 2, "it is 08:00"
    hour = 3600 // 10
    assert run(machine, 0.9, 0.9, first=hour, rule=by_day) == [
        IncidentStep.PENDING,
        IncidentStep.OPENED,
    ]
    # what is open goes on, and ends, outside its hours
    assert run(machine, 0.1, 0.1, 0.1, first=hour + 2, rule=at_night)[-1] is IncidentStep.RESOLVED


def test_it_can_end_for_another_reason(machine):
    assert machine.resolve(ResolveReason.MANUAL, START) is None
    run(machine, 0.9)
    assert machine.resolve(ResolveReason.WATCH_REMOVED, START) is None, "it was pending"
    run(machine, 0.9, 0.9, first=1)
    ended = machine.resolve(ResolveReason.STREAM_LOST, window(40, 0).start)
    assert (ended.state, ended.resolve_reason) == (IncidentState.RESOLVED, "stream_lost")
    assert machine.resolve(ResolveReason.MANUAL, START) is None
