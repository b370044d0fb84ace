"""Questions about past ranges: answered from Redis, or from the archive for older times."""

import pytest

from nvila_core.resolution.policy import Measures
from streamer import redis_keys
from streamer.domain.frame import FrameRef
from streamer.domain.request import ClipRequest
from streamer.domain.stream import StreamSpec
from streamer.errors import ErrorCode, StreamerError
from streamer.frames.archive import Archive
from streamer.frames.history import FrameHistory
from streamer.frames.store import FrameStore, Retention
from streamer.redis_client.connections import run_file_path
from streamer.service import Service
from streamer.settings import Settings
from tests.support.clocks import ManualClock

MINUTE = 60.0


@pytest.fixture
def archived(tmp_path, settings):
    return settings.model_copy(update={"archive_url": str(tmp_path / "archive")})


@pytest.fixture
def client(archived):
    with Service(archived) as opened:
        yield opened


@pytest.fixture
def stream(client):
    spec = StreamSpec(name="yard", url="rtsp://cam/", live=True)
    return client.registry.create(spec, "rtsp://cam/")


def picture(when):
    return f"jpeg {when:.3f}".encode()


def store(client, stream, *times, change=0.01, detail=()):
    for when in times:
        measures = Measures(8, 8, detail, change=change)
        client.frames.put(stream.id, picture(when), measures, time=when, pts=0.0)


def shelve(archived, stream, *times):
    archive = Archive(archived.archive_url)
    refs = [
        FrameRef(
            stream_id=stream.id,
            id=f"{when * 1000:.0f}-0",
            time=when,
            pts=0.0,
            width=8,
            height=8,
            change=0.01,
            detail=(3.0, 2.0),
        )
        for when in times
    ]
    archive.write(stream.id, [(ref, picture(ref.time)) for ref in refs])


def asked(client, query):
    """Return the clip request that a model worker would get."""
    from rq.job import Job
    from rq.serializers import JSONSerializer

    job = Job.fetch(query.id, connection=client.connections.main, serializer=JSONSerializer)
    return ClipRequest.model_validate(job.args[0])


def looked_at(client, stream, **range_):
    request = asked(client, client.ask("What happened?", stream.name, **range_))
    pictures = client.frames.load(request.frames)  # as a model worker does, without any archive
    assert pictures == [picture(ref.time) for ref in request.frames]
    return [ref.time for ref in request.frames]


def test_the_last_ten_minutes_come_from_redis_alone(client, stream, archived, now):
    shelve(archived, stream, now - 300.5)
    store(client, stream, *(now - s for s in range(900, 0, -10)))
    times = looked_at(client, stream, since="-10m", max_frames=8)
    assert len(times) == 8
    assert now - times[0] == pytest.approx(600, abs=11)
    assert now - times[-1] == pytest.approx(10, abs=1)
    assert now - 300.5 not in times


def test_what_redis_no_longer_has_comes_from_the_archive(client, stream, archived, now):
    for minute in range(60, 0, -1):
        shelve(archived, stream, *(now - 60 * minute + s for s in range(0, 60, 5)))
    store(client, stream, *(now - s for s in range(300, 0, -10)))
    times = looked_at(client, stream, since="-1h", max_frames=16)
    assert len(times) == 16
    assert times == sorted(times)
    assert now - times[0] > 3500
    assert sum(now - t < 300 for t in times) in (1, 2, 3)
    # and for a range that Redis no longer holds, all frames do
    older = looked_at(client, stream, since="-50m", until="-40m", max_frames=4)
    assert len(older) == 4
    assert all(2400 <= now - t <= 3000 for t in older)


def test_a_stream_that_has_nothing_in_redis_any_more_still_has_its_archive(
    client, stream, archived, now
):
    shelve(archived, stream, *(now - 7200 + s for s in range(10)))
    assert len(looked_at(client, stream, since="-3h", max_frames=4)) == 4


def test_frames_from_the_archive_are_bounded_in_redis_and_go_with_the_stream(
    client, stream, archived, now
):
    shelve(archived, stream, *(now - 7200 + s for s in range(10)))
    looked_at(client, stream, since="-3h")
    keys = client.connections.frames.keys(f"{redis_keys.KEY_PREFIX}*-past*")
    assert len(keys) == 11
    assert all(0 < client.connections.frames.ttl(key) <= 3600 for key in keys)
    client.detach("yard")
    assert client.connections.frames.keys("*-past*") == []


def test_an_old_frame_counts_as_new_all_over(client, stream, archived, now):
    """The frames in between were thinned, so measures against them mean nothing."""
    shelve(archived, stream, *(now - 7200 + s for s in range(3)))
    store(client, stream, now - 1000, now - 20, now - 10, detail=(5.0, 1.0))
    request = asked(client, client.ask("What?", "yard", since="-3h"))
    old, fresh = request.frames[:4], request.frames[4:]
    assert all(ref.change == 1.0 and ref.fresh == ref.detail != () for ref in old)
    assert all(ref.change < 1.0 for ref in fresh)


def test_without_an_archive_the_answer_says_what_is_kept(client, settings, stream, now):
    store(client, stream, now - 20, now - 10)
    with (
        Service(settings) as plain,
        pytest.raises(StreamerError, match="frames are kept") as caught,
    ):
        plain.ask("What?", "yard", since="-2h", until="-1h")
    assert caught.value.code is ErrorCode.NO_FRAMES


def test_an_archive_that_is_away_is_said_so(client, stream, archived, tmp_path, now):
    from pathlib import Path

    Path(archived.archive_url).write_text("not a folder")
    with pytest.raises(StreamerError, match="archive_url") as caught:
        client.ask("What?", "yard", since="-2h")
    assert caught.value.code is ErrorCode.ARCHIVE_UNAVAILABLE
    store(client, stream, now - 1)
    assert client.ask("And now?", "yard", stale_ok=True).id  # the present does not need it


def test_frames_that_gave_way_meanwhile_are_not_chosen(client, stream, now):
    store(client, stream, *(now - s for s in range(100, 0, -1)))
    index = client.frames.newest(stream.id, 100)
    for ref in index[:60]:  # like a server that evicts keys by itself
        client.connections.frames.delete(redis_keys.jpeg(stream.id, ref.id))
    times = looked_at(client, stream, since="-2m", max_frames=10)
    assert len(times) == 10
    assert times[0] == index[60].time


def test_a_day_of_history_is_asked_about_within_the_byte_bound(client, stream, settings, now):
    """Store a frame every three seconds for an hour, then ask about the whole hour."""
    clock = ManualClock()
    retention = Retention(
        age=120.0,
        max_frames=5000,
        max_bytes=150_000,
        history=86400.0,
        tiers=((0.0, 10.0), (600.0, 60.0)),
    )
    kept = FrameStore(client.connections.frames, retention, clock=clock)
    for second in range(0, 3600, 3):
        clock.now = now - 3600 + second
        measures = Measures(8, 8, change=0.3 if second in (699, 2499) else 0.005)
        kept.put(stream.id, picture(clock.now), measures, time=clock.now, pts=0.0)
    times = looked_at(client, stream, since="-1h", max_frames=16)
    assert len(times) == 16
    assert {round(t - now + 3600) for t in times} >= {699, 2499}
    assert int(client.connections.frames.hget(redis_keys.FRAME_BYTES, stream.id)) < 150_000


def test_the_archive_of_a_local_installation_is_found_through_its_run_file(
    tmp_path, valkey, redis_client, now
):
    import json

    settings = Settings(data_dir=tmp_path)
    run = {"redis_url": valkey.url, "archive_url": str(tmp_path / "archive")}
    run_file_path(settings).write_text(json.dumps(run))
    with Service(settings) as client:
        spec = StreamSpec(name="yard", url="rtsp://cam/", live=True)
        stream = client.registry.create(spec, "rtsp://cam/")
        shelve(Settings(archive_url=run["archive_url"]), stream, now - 7200)
        assert looked_at(client, stream, since="-3h") == [now - 7200]


def test_a_full_redis_is_said_so(client, stream, archived, now, monkeypatch):
    import redis

    shelve(archived, stream, now - 7200)

    def full(*_, **__):
        raise redis.exceptions.OutOfMemoryError("OOM command not allowed")

    monkeypatch.setattr(FrameStore, "put", full)
    with pytest.raises(StreamerError, match="Redis is full") as caught:
        client.ask("What?", "yard", since="-3h")
    assert caught.value.code is ErrorCode.REDIS_FULL


def test_the_past_of_nothing_is_nothing(client, stream, archived, now):
    past = FrameHistory(client.connections, archived, client.frames)
    assert past.select(stream, now - 10, now, 5).frames == []


def test_how_far_a_stream_remembers_is_said_when_attaching_and_changed_later(client):
    attached = client.attach("rtsp://cam/", "gate", history=7 * 86400.0, probe=False)
    assert client.stream("gate").history == 7 * 86400.0
    client.edit(attached.id, history=0.0)
    assert client.stream("gate").history == 0.0
    with pytest.raises(StreamerError, match="history") as caught:
        client.edit(attached.id, history=-1.0)
    assert caught.value.code is ErrorCode.INVALID_REQUEST
