"""What ends an incident beside its windows, and the summary: a real Redis, a real database."""

import time
from datetime import timedelta

import pytest
from rq.job import Job
from rq.serializers import JSONSerializer

from nvila_core.resolution.policy import Measures
from streamer.alert_rule import AlertRule
from streamer.domain.stream import StreamState, StreamStatus
from streamer.domain.timestamp import to_datetime, utc_now
from streamer.incidents.keeper import Keeper, pictures_of
from streamer.incidents.records import IncidentState
from streamer.incidents.silences import Matcher, Silence
from streamer.incidents.store import Incidents
from tests.streamer.incidents.conftest import Alert
from tests.support.clocks import ManualClock


@pytest.fixture
def stream(client):
    return client.attach(
        "rtsp://cam.invalid/x",
        "lobby",
        probe=False,
        watches=[client.watch("Is a car parked in front of the gate?", alert=AlertRule())],
    )


@pytest.fixture
def alert(client, stream):
    made = Alert(client.timeline, channels=("phone",))
    made.stream_id, made.watch_id = stream.id, stream.watches[0].id
    return made


@pytest.fixture
def clock():
    return ManualClock()


@pytest.fixture
def keeper(client, alert, settings, clock):
    return Keeper(alert.incidents, client.registry, client.jobs, client.frames, settings, clock)


def now_on(alert, *probabilities):
    """See windows that are just over, and return the incident."""
    now = time.time()
    for place, probability in enumerate(probabilities):
        end = to_datetime(now - 10 * (len(probabilities) - 1 - place))
        times = {"start": end - timedelta(seconds=10), "end": end, "frames_to": end}
        alert.record(alert.result(place, probability, **times))
    (incident,) = alert.incidents.page().incidents
    return incident


def test_an_incident_ends_with_its_watch(client, stream, alert, keeper, clock):
    incident = now_on(alert, 0.9, 0.9)
    keeper.step()
    assert alert.incidents.get(incident.id).state is IncidentState.OPEN
    client.watches.remove("lobby", alert.watch_id)
    clock.now += 60
    keeper.step()
    ended = alert.incidents.get(incident.id)
    assert (ended.state, ended.resolve_reason) == ("resolved", "watch_removed")


def test_a_detached_stream_ends_its_incidents_and_drops_what_is_pending(client, alert, keeper):
    alert.see(0.9)
    assert len(alert.incidents.active()) == 1
    client.detach("lobby")
    keeper.step()
    assert alert.incidents.active() == []
    assert alert.incidents.page().incidents == []


def test_a_lost_stream_is_unknown_for_long_before_its_incident_ends(alert, keeper, settings, clock):
    incident = now_on(alert, 0.9, 0.9, None)
    assert incident.last_known_at < utc_now()
    keeper.step()
    assert alert.incidents.get(incident.id).state is IncidentState.OPEN
    # given no answer for longer than the setting
    settings.incident_lost_after = -1.0
    clock.now += 60
    keeper.step()
    ended = alert.incidents.get(incident.id)
    assert (ended.state, ended.resolve_reason) == ("resolved", "stream_lost")


def test_the_incident_of_a_recording_ends_with_it(client, keeper, clock, tmp_path):
    recording = client.attach(
        str(tmp_path / "walk.mp4"),
        "walk",
        probe=False,
        live=False,
        watches=[client.watch("Is somebody there?", alert=AlertRule())],
    )
    alert = Alert(client.timeline)
    alert.stream_id, alert.watch_id = recording.id, recording.watches[0].id
    alert.see(0.9, 0.9)
    (incident,) = alert.incidents.page().incidents
    keeper.step()
    assert alert.incidents.get(incident.id).state is IncidentState.OPEN
    client.registry.save_status(recording.id, StreamStatus(state=StreamState.ENDED))
    for _ in range(2):  # all that was recorded has been counted
        clock.now += 60
        keeper.step()
    ended = alert.incidents.get(incident.id)
    assert (ended.state, ended.resolve_reason) == ("resolved", "stream_lost")
    assert ended.resolved_at == ended.last_known_at, "the time of the recording, not of the clock"


def test_silences_begin_and_end_while_an_incident_is_open(alert, keeper, clock):
    incident = now_on(alert, 0.9, 0.9)
    silence = Silence(
        matchers=[Matcher(name="stream", value="lobby")], ends_at=utc_now() + timedelta(hours=1)
    )
    alert.incidents.silence(silence)
    keeper.step()
    assert alert.incidents.get(incident.id).silenced_by == [silence.id]
    alert.incidents.end_silence(silence.id)
    clock.now += 60
    keeper.step()
    assert alert.incidents.get(incident.id).silenced_by == []


def test_the_model_is_asked_for_a_summary_of_what_was_seen(
    client, stream, alert, keeper, redis_client
):
    now = time.time()
    for place in range(20):
        client.frames.put(
            stream.id,
            f"jpeg {place}".encode(),
            Measures(32, 24, change=0.0),
            time=now - 19 + place,
            pts=float(place),
        )
    incident = now_on(alert, 0.9, 0.9)
    keeper.step()
    # then a query is waiting, whose answer names the incident
    job = Job.fetch(
        f"req_{incident.id.removeprefix('inc_')}",
        connection=redis_client,
        serializer=JSONSerializer,
    )
    (request,) = job.args
    assert request["prompt"] == "Describe the scene."
    assert request["data"] == {"incident": incident.id}
    assert request["frames"]
    assert alert.incidents.to_describe() == []
    # and a recorder that was killed before it noted that asks nothing twice
    before = client.jobs.depths()["queries"]
    keeper._ask(incident, "Describe the scene.", utc_now(), client.frames.newest(stream.id))
    assert client.jobs.depths()["queries"] == before


def test_pictures_come_from_the_frames_that_are_kept(client, stream, alert):
    now = time.time()
    kept = client.frames.put(stream.id, b"jpeg", Measures(32, 24, change=0.0), time=now, pts=0.0)
    shows = alert.result(0, 0.9, frames_to=to_datetime(kept.time))
    gone = alert.result(1, 0.9, frames_to=to_datetime(kept.time - 100))
    clear = alert.result(2, 0.1, frames_to=to_datetime(kept.time))
    found = pictures_of([shows, gone, clear, alert.result(3, None)], client.frames)
    assert {name: picture.jpeg for name, picture in found.items()} == {shows.id: b"jpeg"}


def test_old_incidents_are_forgotten_by_the_setting(alert, keeper, settings, clock):
    alert.see(0.9, 0.9, 0.1, 0.1, 0.1)
    keeper.step()
    assert len(alert.incidents.page().incidents) == 1
    settings.incident_days = -1.0
    clock.now += 4000
    keeper.step()
    assert alert.incidents.page().incidents == []
    assert Incidents(alert.timeline.database).active() == []
