"""Retention of frames: bounds of age, number and bytes, thinning with age, a common bound."""

import random

import pytest
import redis

from nvila_core.resolution.policy import Measures
from streamer import redis_keys
from streamer.cli.report import sentence
from streamer.domain.result import Result
from streamer.domain.stream import StreamSpec
from streamer.errors import ErrorCode, StreamerError
from streamer.frames.sampled_frame import SampledFrame
from streamer.frames.store import FrameStore, Retention
from streamer.local.redis_server import EmbeddedServer
from streamer.redis_client.connections import Connections, connect
from streamer.service import Service
from streamer.settings import Settings
from streamer.sources.streams import StreamRegistry
from tests.support.clocks import ManualClock

START = 1_800_000_000.0
MINUTE, HOUR, DAY = 60.0, 3600.0, 86400.0
QUICK_TIERS = ((0.0, 10.0), (100.0, 50.0), (500.0, 100.0))
"""Short tiers, so that a day passes in a few thousand frames."""
UNCHANGED = Measures(8, 8, change=0.0)


class Camera:
    """A stream whose frames arrive at times that the test sets."""

    def __init__(self, store, clock, stream_id="str_1"):
        self.store, self.stream_id = store, stream_id
        self.clock = clock
        self.bytes_added = 0

    def frame(self, at, size=1000, change=0.0):
        self.clock.now = START + at
        self.bytes_added += size
        measures = Measures(8, 8, change=change)
        return self.store.put(self.stream_id, b"j" * size, measures, time=START + at, pts=at)

    def times(self):
        """Return the times of all stored frames, seconds since START."""
        return [round(ref.time - START, 3) for ref in self.store.newest(self.stream_id, 100_000)]


@pytest.fixture
def camera(redis_client):
    clock = ManualClock(START)

    def make(stream_id="str_1", memory=None, **retention):
        store = FrameStore(redis_client, Retention(**retention), memory=memory, clock=clock)
        return Camera(store, clock, stream_id)

    return make


def consistent(client, *stream_ids):
    """Check that JPEGs, index and sums agree; return the total bytes."""
    total = 0
    for stream_id in stream_ids:
        entries = client.xrange(redis_keys.frame_index(stream_id))
        pictures = {key.decode() for key in client.keys(redis_keys.jpeg(stream_id, "*"))}
        assert pictures == {
            redis_keys.jpeg(stream_id, entry_id.decode()) for entry_id, _ in entries
        }
        held = sum(int(fields[b"bytes"]) for _, fields in entries)
        assert int(client.hget(redis_keys.FRAME_BYTES, stream_id) or 0) == held
        if entries:
            oldest = client.zscore(redis_keys.FRAME_AGES, stream_id)
            assert oldest == min(float(fields[b"at"]) for _, fields in entries)
        total += held
    assert int(client.hget(redis_keys.FRAME_BYTES, "total") or 0) == total
    return total


def test_the_oldest_go_when_there_are_too_many_bytes(camera, redis_client):
    eye = camera(age=900.0, max_frames=1000, max_bytes=50_000)
    for second in range(100):
        eye.frame(second, size=random.Random(second).randint(500, 4000))
        assert consistent(redis_client, "str_1") <= 50_000
    kept = eye.times()
    assert kept == [float(s) for s in range(100 - len(kept), 100)]
    assert len(kept) > 10


def test_the_frames_of_open_windows_are_safe_from_the_byte_bound(camera):
    eye = camera(age=900.0, max_frames=1000, max_bytes=5_000, min_frames=20)
    for second in range(50):
        eye.frame(second)
    assert eye.times() == [float(s) for s in range(30, 50)]


def test_frames_go_by_age(camera, redis_client):
    eye = camera(age=10.0, max_frames=1000)
    for second in range(30):
        eye.frame(second)
    assert eye.times() == [float(s) for s in range(20, 30)]
    consistent(redis_client, "str_1")


def test_a_smaller_bound_holds_for_what_is_there_already(camera):
    eye = camera(age=900.0, max_frames=1000)
    for second in range(60):
        eye.frame(second)
    smaller = camera(age=900.0, max_frames=20)
    for second in range(60, 70):
        smaller.frame(second)
    assert smaller.times() == [float(s) for s in range(50, 70)]


def test_with_a_history_frames_are_thinned_with_age_not_cut_off(camera, redis_client):
    eye = camera(age=30.0, max_frames=5000, history=1500.0, tiers=QUICK_TIERS)
    for second in range(1200):
        eye.frame(second)
    kept = eye.times()
    now = 1199
    ages = [now - t for t in kept]
    # then all of the newest frames, and one per slot of the older ones
    assert [a for a in ages if a < 30] == list(range(29, -1, -1))
    for oldest, youngest, slot in ((100, 40, 10), (500, 160, 50), (1199, 650, 100)):
        slots = [int((START + t) // slot) for t in kept if youngest <= now - t < oldest]
        assert len(slots) == len(set(slots)), (slot, kept)
        assert len(slots) >= (oldest - youngest) // slot - 1, (slot, kept)
    assert max(ages) >= 1100
    assert len(kept) < 80
    consistent(redis_client, "str_1")


def test_of_each_slot_the_frame_that_changed_most_stays(camera):
    eye = camera(age=20.0, max_frames=5000, history=400.0, tiers=QUICK_TIERS)
    telling = {43, 77, 78, 131, 205}
    for second in range(300):
        eye.frame(second, change=0.5 + (second == 78) if second in telling else 0.01)
    kept = eye.times()
    assert {43.0, 78.0, 131.0, 205.0} <= set(kept)
    assert 77.0 not in kept  # 78, of the same ten seconds, changed more


def test_frames_that_are_too_large_for_their_time_are_thinned_early_and_history_stays(camera):
    # given a bound that holds forty frames, less than a minute
    eye = camera(
        age=60.0, max_frames=5000, max_bytes=60_000, history=400.0, tiers=QUICK_TIERS, min_frames=5
    )
    for second in range(300):
        eye.frame(second)
    kept = eye.times()
    # then recent frames are dense, and old ones remain
    assert kept[-5:] == [295.0, 296.0, 297.0, 298.0, 299.0]
    assert kept[0] < 100
    assert len(kept) < 40


def test_a_history_can_be_switched_on_and_off(camera, redis_client):
    plain = camera(age=30.0, max_frames=5000)
    for second in range(60):
        plain.frame(second)
    remembering = camera(age=30.0, max_frames=5000, history=1000.0, tiers=QUICK_TIERS)
    for second in range(60, 240):
        remembering.frame(second)
    assert min(remembering.times()) < 120
    consistent(redis_client, "str_1")
    for second in range(240, 300):
        plain.frame(second)
    assert plain.times() == [float(s) for s in range(270, 300)]
    assert not redis_client.exists(redis_keys.frame_state("str_1"))
    consistent(redis_client, "str_1")


def test_a_week_at_the_default_bounds_fits():
    """Compute what a week of history needs with the default tiers."""
    kept = Retention.of(Settings(history=7 * DAY))
    ages = kept.tier_milliseconds()
    assert ages == [900_000, 10_000, 3_600_000, 60_000, 86_400_000, 600_000]
    frames_of_a_week = 900 + 2700 / 10 + 23 * 60 + 6 * 144
    assert frames_of_a_week < kept.max_frames
    assert frames_of_a_week * 75_000 < kept.max_bytes
    assert kept.lifetime == 7 * DAY


def test_of_all_streams_together_the_oldest_frames_go_first(camera, redis_client):
    first = camera("str_1", memory=100_000, age=900.0, max_frames=1000)
    second = camera("str_2", memory=100_000, age=900.0, max_frames=1000)
    for at in range(40):
        first.frame(at)
    for at in range(40, 100):
        second.frame(at)
        assert consistent(redis_client, "str_1", "str_2") <= 100_000
    # then the newest of both are left: those of the second, which are all younger
    kept = first.times() + second.times()
    assert kept == [float(at) for at in range(100 - len(kept), 100)]


def test_what_a_stopped_stream_lets_expire_no_longer_counts(camera, redis_client):
    stopped = camera("str_1", age=5.0, max_frames=1000)
    going = camera("str_2", age=900.0, max_frames=1000)
    for at in range(20):
        stopped.frame(at / 10)
    before = int(redis_client.hget(redis_keys.FRAME_BYTES, "total"))
    for at in range(30, 130):
        going.frame(at, size=10)
    assert redis_client.hget(redis_keys.FRAME_BYTES, "str_1") is None
    assert redis_client.zscore(redis_keys.FRAME_AGES, "str_1") is None
    assert int(redis_client.hget(redis_keys.FRAME_BYTES, "total")) < before + 100 * 1000


def test_discarding_one_stream_leaves_the_others_and_the_sums_right(camera, redis_client):
    one, two = (camera(name, age=900.0, max_frames=99, history=DAY) for name in ("str_1", "str_2"))
    for at in range(10):
        one.frame(at)
        two.frame(at)
    one.store.discard("str_1")
    assert one.times() == []
    assert len(two.times()) == 10
    consistent(redis_client, "str_1", "str_2")
    two.store.discard("str_2")
    redis_client.delete(redis_keys.ROOM)  # as after a second
    assert redis_client.keys("*") == []


# A server that is full


@pytest.fixture
def small_server(tmp_path):
    """A real server of 8 MB that refuses writes when it is full, like the embedded servers."""
    with EmbeddedServer(tmp_path / "small", persistent=False, max_memory=8 << 20) as server:
        yield server


def noise(size, seed):
    return random.Random(seed).randbytes(size)


def test_when_redis_is_full_the_oldest_frames_go_and_jobs_results_and_streams_never(
    small_server, tmp_path
):
    settings = Settings(redis_url=small_server.url, data_dir=tmp_path)
    with Connections(settings) as connections:
        client = connections.main
        # given jobs, results and a stream on the same server as the frames
        registry = StreamRegistry(client)
        attached = registry.create(
            StreamSpec(name="yard", url="rtsp://cam/", live=True), "rtsp://cam/"
        )
        for number in range(200):
            client.xadd(redis_keys.RESULTS, {"json": f"result {number}"})
            client.set(f"rq:job:{number}", "job " * 20, ex=600)  # expires before any frame
        # when many times more frames are stored than fit into memory
        store = FrameStore(
            connections.frames,
            Retention(age=900.0, max_frames=10_000),
            memory=connections.frame_memory,
        )
        refs = [
            store.put("str_1", noise(50_000, n), UNCHANGED, time=START + n, pts=n)
            for n in range(600)
        ]
        # then the newest frames remain
        kept = store.newest("str_1", 1000)
        assert kept == refs[-len(kept) :]
        assert len(kept) > 20
        assert store.present(kept) == kept
        # and all other data
        assert client.xlen(redis_keys.RESULTS) == 200
        assert all(client.exists(f"rq:job:{n}") for n in range(200))
        assert registry.get("yard").id == attached.id
        assert int(client.info("memory")["used_memory"]) < 8 << 20
        assert int(client.info("stats")["evicted_keys"]) == 0


def test_when_other_data_takes_the_memory_old_frames_give_way_to_new_ones(small_server):
    with connect(small_server.url) as client:
        store = FrameStore(client, Retention(age=900.0, max_frames=10_000))  # no bound of its own
        refs = []
        for n in range(300):
            refs.append(store.put("s", noise(50_000, n), UNCHANGED, time=START + n, pts=n))
        kept = store.newest("s", 1000)
        assert 10 < len(kept) < 200
        assert kept == refs[-len(kept) :]
        consistent(client, "s")


def test_a_server_full_of_other_things_refuses_frames_with_an_error_that_can_be_counted(
    small_server,
):
    with connect(small_server.url) as client:
        for n in range(1000):
            try:
                client.set(f"other:{n}", noise(50_000, n))
            except redis.exceptions.OutOfMemoryError:
                break
        store = FrameStore(client, Retention(age=900.0, max_frames=10))
        with pytest.raises(redis.exceptions.OutOfMemoryError, match="raise its maxmemory"):
            store.put("s", noise(500_000, 1), UNCHANGED, time=START, pts=0)
        assert store.newest("s") == []


def test_a_full_server_refuses_new_questions_in_one_sentence_and_takes_every_answer(
    small_server, tmp_path
):
    settings = Settings(redis_url=small_server.url, data_dir=tmp_path)
    with Service(settings) as client:
        # given a stream, a waiting question about it, and a full server
        spec = StreamSpec(name="yard", url="rtsp://cam/", live=True)
        client.registry.create(spec, "rtsp://cam/")
        client.frames.put(spec.id, b"j", UNCHANGED, time=START, pts=0)
        asked = client.ask("Anyone?", "yard", stale_ok=True)
        for n in range(10_000):
            try:
                client.connections.main.set(f"other:{n}", noise(4_000, n))
            except redis.exceptions.OutOfMemoryError:
                break
        # when another is asked
        with pytest.raises(redis.exceptions.RedisError) as caught:
            client.ask("Anyone now?", "yard", stale_ok=True)
        # then it is refused in one sentence, and the first one can still be answered
        assert sentence(caught.value).startswith("Redis is full")
        result = Result(
            request_id=asked.id, kind="answer", stream_id=spec.id, stream_name="yard", prompt="?"
        )
        assert client.queue.publish(result, owner_id=None)
        assert not client.queue.publish(result, owner_id=None)
        answer = client.query(asked.id).result
        assert answer is not None
        assert answer.id == result.id
        assert client.queue.read("0-0")[-1][1].id == result.id


def test_the_share_of_frames_follows_the_servers_own_bound(valkey, small_server, tmp_path):
    def share(**settings):
        with Connections(Settings(data_dir=tmp_path, **settings)) as connections:
            return connections.frame_memory

    small, large = small_server.url, valkey.url
    assert share(redis_url=large) == (512 << 20) // 2
    assert share(redis_url=small, frames_redis_url=large) == (512 << 20) * 3 // 4
    assert share(redis_url=large, frames_redis_url=large) == (512 << 20) // 2
    assert share(redis_url=large, frames_memory=99 << 20) == 99 << 20


def test_a_policy_that_may_lose_jobs_is_spoken_about(small_server, tmp_path):
    with Connections(Settings(redis_url=small_server.url, data_dir=tmp_path)) as connections:
        assert connections.lacks() == []
        connections.main.config_set("maxmemory-policy", "volatile-ttl")
        assert "noeviction" in " ".join(connections.lacks())
        connections.main.config_set("maxmemory", "0")
        assert "maxmemory" in " ".join(connections.lacks())


def test_loading_frames_that_gave_way_says_which_bounds_to_raise(camera):
    eye = camera(age=900.0, max_frames=3)
    refs = [eye.frame(at) for at in range(5)]
    assert eye.store.present(refs) == refs[2:]
    with pytest.raises(StreamerError, match="frame_bytes_per_stream") as caught:
        eye.store.load(refs)
    assert caught.value.code is ErrorCode.FRAMES_EXPIRED


def test_frames_that_are_stored_together_end_as_those_that_are_stored_one_by_one(redis_client):
    rng = random.Random(3)
    # given three hours of frames in groups, with a capture clock that is set now and then
    groups, captured = [], START
    for _ in range(700):
        captured += rng.choice((1, 5, 20, 60)) if rng.random() < 0.98 else rng.choice((-900, 900))
        group = []
        for number in range(rng.randint(1, 6)):
            measures = Measures(8, 8, change=round(rng.random(), 2))
            time = captured + number * 0.2
            group.append(SampledFrame(b"j" * rng.randint(50, 900), measures, time, 0.0))
        groups.append(group)
    bounds = [
        Retention(age=100.0, max_frames=40, max_bytes=30_000, min_frames=5),
        Retention(age=60.0, max_frames=90, history=5000.0, tiers=QUICK_TIERS),
        Retention(age=5.0, max_frames=3),
    ]

    def stored(retention: Retention, memory: int | None, size: int | None) -> list[tuple]:
        redis_client.flushall()
        clock = ManualClock(START)
        store = FrameStore(redis_client, retention, memory=memory, clock=clock)
        for number, group in enumerate(groups):
            clock.now = START + 15 * number
            step = size or len(group)
            for first in range(0, len(group), step):
                store.put_all("str_1", group[first : first + step], token=7)
        consistent(redis_client, "str_1")
        found = store.newest("str_1", 1000)
        dates = redis_client.lrange(redis_keys.frame_dates("str_1"), 0, -1)
        return [*((ref.id, ref.time, ref.change) for ref in found), *dates]

    for retention in bounds:
        for memory in (None, 20_000):
            together = stored(retention, memory, None)
            assert len(together) >= 3
            assert together == stored(retention, memory, 1)
