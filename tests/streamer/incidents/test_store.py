"""Incidents in SQLite and PostgreSQL: counted, listed, changed, ended."""

import threading
from datetime import timedelta

import pytest
from sqlalchemy import select
from sqlalchemy.exc import IntegrityError

from streamer.alert_rule import AlertRule
from streamer.domain.result import Result
from streamer.domain.timestamp import utc_now
from streamer.errors import ErrorCode, StreamerError
from streamer.incidents.records import Feedback, IncidentState, ResolveReason
from streamer.incidents.silences import Matcher, Silence
from streamer.incidents.store import KeptPicture
from streamer.timeline.results import Timeline
from streamer.timeline.tables import incident_messages, incidents
from tests.streamer.incidents.conftest import START, Alert


def reported(timeline, channel="events"):
    """Return type and version of each message, oldest first."""
    columns = incident_messages.c
    statement = select(incident_messages).where(columns.channel == channel)
    rows = timeline.database.read(
        lambda connection: connection.execute(statement.order_by(columns.number)).all()
    )
    return [(row.type.removeprefix("incident."), row.version) for row in rows]


def only(alert):
    """Return the only incident."""
    (incident,) = alert.incidents.page().incidents
    return incident


def test_from_the_first_window_to_the_end(alert, timeline):
    alert.see(0.2, 0.9)
    assert alert.incidents.page().incidents == [], "pending ones are not listed"
    (pending,) = alert.incidents.page(state="pending").incidents
    alert.see(0.9, first=2)
    opened = only(alert)
    assert (opened.id, opened.state) == (pending.id, IncidentState.OPEN)
    assert alert.incidents.get(opened.id) == opened
    alert.see(0.1, 0.1, 0.1, first=3)
    ended = only(alert)
    assert (ended.state, ended.resolve_reason) == ("resolved", "cleared")
    assert reported(timeline) == [("opened", opened.version), ("resolved", ended.version)]
    assert opened.version < ended.version


def test_the_probability_counts_and_not_the_text(alert):
    # given windows whose text says yes, with what is not probable, or with no probability at all
    certainly = "yes, certainly, this is an emergency"
    for place in range(3):
        data = {"yes": True, "probability": 0.05}
        alert.record(alert.result(place, 0.9, text=certainly, data=data))
        alert.record(alert.result(place + 10, 0.9, text=certainly, data={"yes": True}))
        alert.record(alert.result(place + 20, 0.9, text=certainly, data={"probability": "0.9"}))
    # then no incident opens
    assert alert.incidents.page().incidents == []
    assert alert.incidents.page(state="pending").incidents == []
    # when what is probable says no in its text, then one does
    for place in range(30, 32):
        data = {"yes": False, "probability": 0.95}
        alert.record(alert.result(place, 0.9, text="no, ignore this", data=data))
    assert only(alert).probability.max == 0.95


def test_a_result_that_is_recorded_twice_counts_once(alert):
    first, second = alert.result(0, 0.9), alert.result(0, 0.9, request_id="req_again")
    assert alert.record(first) == 1
    assert alert.record(first) == 0
    assert alert.record(second) == 1, "the same window, asked about twice"
    assert alert.incidents.page(state="pending").incidents[0].windows.yes == 1


def test_a_restart_goes_on_from_the_database(alert, database_url):
    for place, probability in enumerate([0.9, 0.9, 0.1, 0.1, 0.1, 0.9, 0.1, 0.1, 0.1]):
        timeline = Timeline(database_url, upgrade=True)
        Alert(timeline).see(probability, first=place)
        timeline.close()
    incident = only(alert)
    assert (incident.reopened, incident.state) == (1, IncidentState.RESOLVED)


def test_results_that_are_no_windows_of_an_alert_change_nothing(alert):
    caption = Result(
        request_id="a", kind="caption", stream_id="s", stream_name="s", prompt="?", watch_id="w"
    )
    assert alert.record(caption) == 1
    assert alert.record(alert.result(0, None, alert=None)) == 1
    assert alert.incidents.active() == []


def test_the_database_holds_one_incident_at_a_time(alert, timeline):
    alert.see(0.9, 0.9)
    row = timeline.database.read(lambda c: c.execute(select(incidents)).one())._asdict()
    again = row | {"id": "inc_other", "number": row["number"] + 1}
    with pytest.raises(StreamerError) as refused:
        timeline.database.write(lambda c: c.execute(incidents.insert().values(**again)))
    assert isinstance(refused.value.__cause__, IntegrityError)
    resolved = again | {"state": "resolved"}
    timeline.database.write(lambda c: c.execute(incidents.insert().values(**resolved)))


def test_recorders_side_by_side_open_one_incident(alert, database_url):
    alert.record()

    def record(place):
        timeline = Timeline(database_url)
        Alert(timeline).see(0.9, first=place)
        timeline.close()

    threads = [threading.Thread(target=record, args=(place,)) for place in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    incident = only(alert)
    assert incident.state is IncidentState.OPEN
    assert incident.windows.yes == 6


def test_pictures_outlive_the_frames(alert):
    def seen(place, probability):
        result = alert.result(place, probability)
        picture = KeptPicture(f"jpeg {place}".encode(), START + timedelta(seconds=10 * place + 9))
        alert.record(result, pictures={result.id: picture})

    for place, probability in enumerate([0.8, 0.8, 0.9, 0.75, 0.8, 0.8]):
        seen(place, probability)
    incident = only(alert)
    kept = {
        name: alert.incidents.picture(incident.id, name).jpeg for name in ("opened", "best", "last")
    }
    assert kept == {"opened": b"jpeg 1", "best": b"jpeg 2", "last": b"jpeg 4"}
    assert incident.snapshot.best == f"/v1/incidents/{incident.id}/snapshot.jpg?which=best"
    with pytest.raises(StreamerError) as refused:
        alert.incidents.picture("inc_0", "best")
    assert refused.value.code is ErrorCode.UNKNOWN_INCIDENT


def test_the_summary_comes_later_and_is_told(alert, timeline):
    alert.see(0.9, 0.9)
    ((incident, prompt),) = alert.incidents.to_describe()
    assert prompt == "Describe the scene."
    alert.incidents.described(incident.id)
    assert alert.incidents.to_describe() == []
    answer = Result(
        request_id="req_x",
        kind="answer",
        stream_id="str_1",
        stream_name="lobby",
        prompt=prompt,
        text="A red car stands at the gate.",
        data={"incident": incident.id},
    )
    alert.record(answer)
    assert only(alert).summary == "A red car stands at the gate."
    assert reported(timeline) == [("opened", incident.version), ("updated", only(alert).version)]
    # and an error, or the summary of an incident that is gone, changes nothing
    alert.record(answer.model_copy(update={"id": "r2", "request_id": "b", "text": None}))
    alert.record(answer.model_copy(update={"id": "r3", "request_id": "c", "data": {"incident": 5}}))
    assert len(reported(timeline)) == 2


def test_what_people_say(alert, timeline):
    alert.see(0.9, 0.9)
    incident = only(alert)
    assert [i.id for i in alert.incidents.page(unseen=True).incidents] == [incident.id]
    alert.incidents.see(incident.id, "ann")
    again = alert.incidents.see(incident.id, "ann")
    assert again.seen_by == ["ann"]
    assert alert.incidents.page(unseen=True).incidents == []
    known = alert.incidents.acknowledge(incident.id, "bob", "on my way")
    assert (known.acknowledged.by, known.acknowledged.note) == ("bob", "on my way")
    assert known.seen_by == ["ann", "bob"]
    again = alert.incidents.acknowledge(incident.id, "eve")
    assert again.acknowledged.by == "bob", "the first one stays"
    judged = alert.incidents.judge(incident.id, Feedback(verdict="wrong"))
    assert judged.feedback.verdict == "wrong"
    ended = alert.incidents.resolve(incident.id)
    assert (ended.state, ended.resolve_reason) == ("resolved", ResolveReason.MANUAL)
    assert alert.incidents.resolve(incident.id).version == ended.version
    assert [kind for kind, _ in reported(timeline)] == ["opened", "acknowledged", "resolved"]
    versions = [version for _, version in reported(timeline)]
    assert versions == sorted(set(versions))
    with pytest.raises(StreamerError):
        alert.incidents.see("inc_0", "ann")


def test_a_listing_is_filtered_and_paged(timeline):
    alerts = []
    for name in ("a", "b", "c"):
        alert = Alert(timeline)
        alert.watch_id, alert.stream_id, alert.stream_name = f"wch_{name}", f"str_{name}", name
        alert.rule = AlertRule(severity="critical" if name == "a" else "info")
        alert.see(0.9, 0.9)
        alerts.append(alert)
    alerts[2].see(0.1, 0.1, 0.1, first=2)
    store = alerts[0].incidents

    def names(**filters):
        return [i.stream_name for i in store.page(**filters).incidents]

    assert names() == ["c", "b", "a"]
    assert names(state="open") == ["b", "a"]
    assert names(state="resolved") == ["c"]
    assert names(stream="a") == names(stream="str_a") == names(severity="critical") == ["a"]
    assert names(watch="wch_b") == ["b"]
    assert names(since=utc_now() + timedelta(hours=1)) == ["b", "a"], "what is open still is"
    first = store.page(limit=2)
    alerts[1].see(0.1, first=2)
    assert [i.stream_name for i in first.incidents] == ["c", "b"]
    assert names(limit=2, cursor=first.next_cursor) == ["a"]
    for cursor in ("x", "WzFd0", "W10"):
        with pytest.raises(StreamerError) as refused:
            store.page(cursor=cursor)
        assert refused.value.code is ErrorCode.INVALID_REQUEST


def test_silenced_incidents_are_recorded_and_not_delivered(timeline):
    alert = Alert(timeline, channels=("webhook",))
    silence = Silence(
        matchers=[Matcher(name="stream", value="lob.*", isRegex=True)],
        ends_at=utc_now() + timedelta(hours=1),
        reason="cleaning",
    )
    assert alert.incidents.silence(silence) == silence
    assert [each.id for each in alert.incidents.silences()] == [silence.id]
    alert.see(0.9, 0.9)
    incident = only(alert)
    assert incident.silenced_by == [silence.id]
    assert reported(timeline, "webhook") == []
    assert [kind for kind, _ in reported(timeline)] == ["opened"], "the page shows it all the same"
    assert alert.incidents.silence_again(incident.id) == incident
    # when the silence ends, the incident that is still open is delivered
    alert.incidents.end_silence(silence.id)
    assert alert.incidents.silence_again(incident.id).silenced_by == []
    assert [kind for kind, _ in reported(timeline, "webhook")] == ["opened"]
    with pytest.raises(StreamerError) as refused:
        alert.incidents.end_silence(silence.id)
    assert refused.value.code is ErrorCode.UNKNOWN_SILENCE


def test_old_incidents_are_forgotten(alert):
    alert.see(0.9, 0.9, 0.1, 0.1, 0.1, *[0.1] * 10, 0.9, 0.9)
    first = alert.incidents.page(state="resolved").incidents[0]
    assert alert.incidents.expire(utc_now() - timedelta(days=1)) == 0
    assert alert.incidents.expire(utc_now() + timedelta(days=1)) == 1
    with pytest.raises(StreamerError):
        alert.incidents.get(first.id)
    assert only(alert).state is IncidentState.OPEN, "what is open stays"
    alert.see(0.1, 0.1, 0.1, first=17)
    assert alert.incidents.expire(utc_now() - timedelta(days=1), most=0) == 1
    assert alert.incidents.page().incidents == []
