"""Whatever windows come, in whatever order, over whatever restarts: an alert stays in order."""

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import select

from streamer.alert_rule import AlertRule
from streamer.events import EventType
from streamer.incidents.machine import REPORTED, IncidentMachine
from streamer.incidents.records import Incident, IncidentState
from streamer.incidents.store import TYPES
from streamer.timeline.results import Timeline
from streamer.timeline.tables import incident_messages, incidents
from tests.streamer.incidents.conftest import Alert
from tests.streamer.incidents.test_machine import SUBJECT, window
from tests.support.databases import empty

PROBABILITIES = st.sampled_from([0.95, 0.75, 0.5, 0.2, 0.05, None])
RULES = st.sampled_from(
    [
        AlertRule(),
        AlertRule(cooldown=0, clear={"m": 1}),
        AlertRule(raise_={"k": 1, "n": 1}, cooldown=25),
        AlertRule(raise_={"k": 3, "n": 5}, clear={"m": 2}),
    ]
)


@st.composite
def arrivals(draw):
    """Windows as they arrive: mostly in order, some late, some twice, with restarts between."""
    found = draw(st.lists(PROBABILITIES, min_size=4, max_size=24))
    order = [
        (place + draw(st.sampled_from([0, 0, 0, 1.5, 4])), place, probability)
        for place, probability in enumerate(found)
    ]
    order += [(at + draw(st.integers(0, 6)), *rest) for at, *rest in order if draw(st.booleans())]
    return [
        (place, probability, draw(st.integers(0, 9)) == 0)
        for _, place, probability in sorted(order, key=lambda each: each[0])
    ]


@given(arrivals=arrivals(), rule=RULES)
def test_the_machine_stays_in_order(arrivals, rule):
    machine, reported = IncidentMachine(SUBJECT), []
    for place, probability, restart in arrivals:
        before = machine.incident
        if restart:
            machine = IncidentMachine(
                SUBJECT, machine.windows, before, machine.consumed, machine.reported
            )
        transition = machine.observe(window(place, probability), rule)
        if transition is not None and transition.step in REPORTED:
            assert probability is not None, "unknown is no news"
            check_report(TYPES[transition.step], transition.incident, before, probability)
            reported.append((TYPES[transition.step], transition.incident))
        after = machine.incident
        if probability is None:
            assert (after and after.state) == (before and before.state)
        if before is not None and after is not None and after.id != before.id:
            assert before.state is IncidentState.RESOLVED, "never two at a time"
    check_versions(reported)
    check_story(reported)


@settings(max_examples=6, suppress_health_check=list(HealthCheck))
@given(arrivals=arrivals(), rule=RULES)
def test_the_database_stays_in_order(timeline, database_url, arrivals, rule):
    empty(timeline)
    opened, reported = timeline, 0
    try:
        for number, (place, probability, restart) in enumerate(arrivals):
            if restart:  # another recorder goes on, from the database alone
                if opened is not timeline:
                    opened.close()
                opened = Timeline(database_url)
            alert = Alert(opened)
            alert.rule = rule
            before = {each.id: each for each in everything(opened)}
            alert.record(alert.result(place, probability, request_id=f"req_{number}"))
            after = everything(opened)
            active = [each for each in after if each.state is not IncidentState.RESOLVED]
            assert len(active) <= 1, "never two at a time"
            for incident in after:
                seen = before.get(incident.id)
                assert seen is None or incident.version >= seen.version
                if probability is None:
                    assert seen is not None, "unknown opens nothing"
                    assert incident.state == seen.state, "and ends nothing"
            new = messages(opened)[reported:]
            reported += len(new)
            assert len(new) <= (0 if probability is None else 1)
            for type, body in new:
                check_report(type, body, before.get(body.id), probability)
        check_versions(messages(opened))
        check_story(messages(opened))
    finally:
        if opened is not timeline:
            opened.close()


def check_report(type, reported, before, probability):
    """No message without a change of state, or a better picture."""
    state = None if before is None else before.state
    if type is EventType.INCIDENT_OPENED:
        assert reported.state is IncidentState.OPEN
        assert state is not IncidentState.OPEN
    elif type is EventType.INCIDENT_RESOLVED:
        assert (reported.state, state) == (IncidentState.RESOLVED, IncidentState.OPEN)
        assert reported.resolve_reason == "cleared"
    else:
        assert type is EventType.INCIDENT_UPDATED
        assert reported.probability.max == probability > before.probability.max


def check_versions(reported):
    """Each message about an incident has a higher version than the one before."""
    versions: dict[str, int] = {}
    for _, incident in reported:
        assert incident.version > versions.get(incident.id, 0)
        versions[incident.id] = incident.version


def check_story(reported):
    """Openings and ends of an incident take turns, beginning with an opening."""
    for name in {incident.id for _, incident in reported}:
        story = [
            type
            for type, incident in reported
            if incident.id == name and type is not EventType.INCIDENT_UPDATED
        ]
        assert story[::2] == [EventType.INCIDENT_OPENED] * len(story[::2])
        assert story[1::2] == [EventType.INCIDENT_RESOLVED] * len(story[1::2])


def everything(timeline):
    """Return all incidents, pending ones too."""
    rows = timeline.database.read(lambda c: c.execute(select(incidents.c.record)).scalars().all())
    return [Incident.read(row) for row in rows]


def messages(timeline):
    """Return type and incident of each message, oldest first."""
    statement = select(incident_messages).order_by(incident_messages.c.number)
    rows = timeline.database.read(lambda c: c.execute(statement).all())
    return [(EventType(row.type), Incident.read(row.body)) for row in rows]
