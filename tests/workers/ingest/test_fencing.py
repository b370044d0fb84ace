"""A stream that another worker has taken over: its former owner is refused at its next write."""

import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import pytest
import redis
from rq import Queue
from rq.serializers import JSONSerializer

from nvila_core.resolution.policy import Measures
from streamer import redis_keys
from streamer.demo.loopback_camera import LoopbackCamera
from streamer.domain.request import ClipRequest
from streamer.domain.stream import StreamSpec, StreamState
from streamer.domain.timestamp import to_datetime
from streamer.errors import Superseded
from streamer.frames.sampled_frame import SampledFrame
from streamer.frames.store import FrameStore, Retention
from streamer.local.redis_server import EmbeddedServer
from streamer.queues.jobs import INGEST, Jobs
from streamer.queues.models import FILES, WATCHES
from streamer.redis_client.connections import connect
from tests.support.forgetful_redis import ForgetfulLine
from tests.support.ingest_bench import Bench, watch
from tests.support.queues import take_next
from tests.support.videos import write_video
from workers import context
from workers.context import Abandon
from workers.rq.executions import Executions
from workers.rq.job import Slot

NOW = datetime(2026, 11, 25, tzinfo=UTC)


class Workers:
    """The ingest workers of a bench, as far as Redis knows of them."""

    def __init__(self, bench: Bench) -> None:
        self.redis = bench.context.connections.main
        self.jobs = bench.context.jobs
        self._queue = Queue(INGEST, connection=self.redis, serializer=JSONSerializer)
        self._executions = Executions(self.redis, 60)

    def take(self, spec: StreamSpec, worker: str) -> Slot:
        """Let a worker take the stream's job."""
        slot = take_next(self._executions, self._queue, NOW, worker)
        assert slot.job.id == redis_keys.stream_job(spec.id)
        return slot

    def start(self, spec: StreamSpec) -> Slot:
        """Let the first worker take the stream; what this thread runs from now on is its."""
        self.jobs.start_ingest(spec.id)
        slot = self.take(spec, "first")
        context.enter_slot(threading.Event(), slot.token)
        return slot

    def take_over(self, spec: StreamSpec, former: Slot) -> Slot:
        """Let the lease of the first worker run out, and another one take the stream."""
        registry = self._queue.started_job_registry
        self.redis.zadd(registry.key, {former.execution.composite_key: 1}, xx=True)
        abandoned = self._executions.abandon(self._queue, to_datetime(self.redis.time()[0]))
        assert abandoned is not None
        assert len(abandoned) == 1
        return self.take(spec, "second")


@pytest.fixture
def workers(bench: Bench) -> Iterator[Workers]:
    yield Workers(bench)
    context.enter_slot(threading.Event())


def put(store: FrameStore, stream_id: str, token: int | None, jpeg: bytes, time: float = 1.0):
    measures = Measures(64, 48, change=0.0)
    return store.put(stream_id, jpeg, measures, time=time, pts=time, token=token)


def test_frames_of_a_former_owner_are_refused(redis_client: redis.Redis) -> None:
    """The server of the frames knows no jobs: it may be another one."""
    store = FrameStore(redis_client, Retention(age=60.0, max_frames=100))
    early = put(store, "str_1", 7, b"first", 1_800_000_000.0)
    assert put(store, "str_1", 7, b"first", 1_800_000_001.0).id > early.id
    # given a frame of the next owner
    later = put(store, "str_1", 9, b"second", 1_800_000_002.0)
    # then the former owner is refused, however often it tries, and for this stream only
    for _ in range(2):
        with pytest.raises(Superseded):
            put(store, "str_1", 8, b"late", 1_800_000_003.0)
    assert store.newest("str_1") == [later]
    assert store.load([later]) == [b"second"]
    assert put(store, "str_2", 8, b"other", 1_800_000_003.0)
    # and a detached stream, too
    store.discard("str_1")
    with pytest.raises(Superseded):
        put(store, "str_1", 8, b"late", 1_800_000_004.0)
    assert store.count("str_1") == 0
    for key in redis_client.keys("streamer:frame-state:*"):
        assert redis_client.ttl(key) > 0


def test_frames_of_a_former_owner_are_refused_before_the_next_one_has_stored_any(
    redis_client: redis.Redis,
) -> None:
    store = FrameStore(redis_client, Retention(age=60.0, max_frames=100))
    put(store, "str_1", 7, b"first", 1_800_000_000.0)
    store.claim("str_1", 9)
    with pytest.raises(Superseded):
        put(store, "str_1", 7, b"late", 1_800_000_001.0)
    with pytest.raises(Superseded):
        store.claim("str_1", 8)
    assert put(store, "str_1", 9, b"second", 1_800_000_002.0)


@pytest.mark.parametrize("live", [True, False])
def test_a_run_claims_its_stream_before_its_first_frame(
    bench: Bench, workers: Workers, eventually: Callable[..., None], live: bool
) -> None:
    # given a source that cannot be opened
    spec = bench.attach("rtsp://127.0.0.1:1/x" if live else "/no/such.mp4", live=live)
    first = workers.start(spec)
    with bench.run(spec):
        eventually(lambda: bench.status(spec).error is not None)
        with pytest.raises(Superseded):
            put(bench.frames, spec.id, first.token - 1, b"late")


def test_a_frame_whose_answer_is_lost_is_stored_once(
    valkey: EmbeddedServer, redis_client: redis.Redis
) -> None:
    parts = urlsplit(valkey.url)
    login = parts.netloc.rpartition("@")[0]
    with ForgetfulLine(valkey.port) as line:
        url = urlunsplit(parts._replace(netloc=f"{login}@127.0.0.1:{line.port}"))
        with connect(url) as client:
            store = FrameStore(client, Retention(age=60.0, max_frames=100))
            put(store, "str_1", 7, b"one", 1_800_000_000.0)
            line.lose_answer_to(b"EVALSHA")
            ref = put(store, "str_1", 7, b"two", 1_800_000_001.0)
            assert line.lost == 1
            assert [frame.time for frame in store.newest("str_1", 9)] == [
                1_800_000_000.0,
                1_800_000_001.0,
            ]
            assert store.load([ref]) == [b"two"]


def test_frames_whose_answer_is_lost_are_stored_once(
    valkey: EmbeddedServer, redis_client: redis.Redis
) -> None:
    parts = urlsplit(valkey.url)
    login = parts.netloc.rpartition("@")[0]
    measures = Measures(64, 48, change=0.0)
    frames = [SampledFrame(b"%d" % n, measures, 1_800_000_000.0 + n, n) for n in range(4)]
    with ForgetfulLine(valkey.port) as line:
        url = urlunsplit(parts._replace(netloc=f"{login}@127.0.0.1:{line.port}"))
        with connect(url) as client:
            store = FrameStore(client, Retention(age=60.0, max_frames=100))
            store.put_all("str_1", frames[:1], token=7)
            line.lose_answer_to(b"EVALSHA")
            refs = store.put_all("str_1", frames[1:], token=7)
            assert line.lost == 1
            assert store.newest("str_1", 9)[1:] == refs
            assert store.count("str_1") == 4
            assert store.load(refs) == [b"1", b"2", b"3"]
            # and a former owner stores none of them
            with pytest.raises(Superseded):
                store.put_all("str_1", frames[1:], token=6)
            assert store.count("str_1") == 4


def request(bench: Bench, spec: StreamSpec) -> ClipRequest:
    return ClipRequest.for_watch(spec, spec.watches[0], start=NOW, end=NOW, frames=[])


def test_clips_of_a_former_owner_are_refused(bench: Bench, workers: Workers) -> None:
    spec = bench.attach("rtsp://127.0.0.1:1/x", watch(1.0), live=True)
    first = workers.start(spec)
    workers.jobs.submit(request(bench, spec), token=first.token)
    second = workers.take_over(spec, first)
    # when the former owner goes on
    with pytest.raises(Superseded):
        workers.jobs.submit(request(bench, spec), token=first.token)
    with pytest.raises(Superseded):
        workers.jobs.submit_newest(request(bench, spec), 1, first.token)
    # then nothing has changed, and its successor may
    assert len(bench.requests(WATCHES)) == 1
    assert workers.jobs.submit_newest(request(bench, spec), 2, second.token) == 0
    assert workers.jobs.submit_newest(request(bench, spec), 2, second.token) == 1
    assert len(bench.requests(WATCHES)) == 2


def test_a_clip_is_refused_when_the_stream_is_taken_over_while_it_is_submitted(
    bench: Bench, workers: Workers
) -> None:
    spec = bench.attach("rtsp://127.0.0.1:1/x", watch(1.0), live=True)
    first = workers.start(spec)
    taken: list[Slot] = []

    def meanwhile(_: redis.client.Pipeline) -> None:
        if not taken:
            taken.append(workers.take_over(spec, first))

    with pytest.raises(Superseded):
        workers.jobs.submit(request(bench, spec), meanwhile, first.token)
    assert bench.requests(WATCHES) == []


def test_a_clip_whose_answer_is_lost_is_submitted_once(
    bench: Bench, workers: Workers, valkey: EmbeddedServer
) -> None:
    spec = bench.attach("rtsp://127.0.0.1:1/x", watch(1.0), live=True)
    slot = workers.start(spec)
    parts = urlsplit(valkey.url)
    login = parts.netloc.rpartition("@")[0]
    with ForgetfulLine(valkey.port) as line:
        url = urlunsplit(parts._replace(netloc=f"{login}@127.0.0.1:{line.port}"))
        with connect(url) as client:
            jobs = Jobs(client, bench.settings)
            jobs.submit(request(bench, spec), token=slot.token)
            line.lose_answer_to(b"RPUSH")
            jobs.submit(request(bench, spec), token=slot.token)
            assert line.lost == 1
            # also when it takes the place of another
            places = [waiting.id for waiting in bench.requests(WATCHES)]
            newest = request(bench, spec)
            line.lose_answer_to(newest.id.encode())
            assert jobs.submit_newest(newest, 2, slot.token) == 1
            assert line.lost == 2
    assert [waiting.id for waiting in bench.requests(WATCHES)] == places


def test_a_camera_that_was_taken_over_is_let_go_at_the_next_frame(
    bench: Bench, workers: Workers, loopback: LoopbackCamera, eventually: Callable[..., None]
) -> None:
    # given a camera that is read, by a worker that does not know that it was given up
    spec = bench.attach(loopback.url, watch(1.0), live=True, fps=5)
    first = workers.start(spec)
    with bench.run(spec) as slot:
        eventually(lambda: bench.frames.count(spec.id) >= 3)
        # when another one takes it over, stores a frame and reports
        second = workers.take_over(spec, first)
        status = bench.status(spec)
        status.worker = "second"
        assert bench.registry.save_status(spec.id, status, second.token)
        last = bench.frames.newest(spec.id)[0]
        ref = put(bench.frames, spec.id, second.token, b"second", last.time + 60)
        # then the first one stops
        eventually(lambda: isinstance(slot.outcome, Abandon))
        slot.outcome = None
    # and leaves no trace after that
    assert bench.frames.newest(spec.id) == [ref]
    assert bench.status(spec).worker == "second"


@pytest.mark.parametrize("write", ["status", "frame", "clip"])
def test_a_recording_that_was_taken_over_is_let_go_at_the_next_write(
    bench: Bench, workers: Workers, tmp_path: Path, write: str
) -> None:
    # given a recording that another worker takes over just before the first one writes
    write_video(tmp_path / "v.mp4", seconds=4)
    spec = bench.attach(tmp_path / "v.mp4", watch(1.0))
    first = workers.start(spec)
    slot = bench.run(spec)
    target, method = {
        "status": (slot.run._reporter, "save"),
        "frame": (slot.run.intake, "put"),
        "clip": (slot.run.watches, "_submit"),
    }[write]
    original = getattr(target, method)

    def take_over_first(*args: object) -> object:
        if len(taken) == 0:
            taken.append(workers.take_over(spec, first))
            put(bench.frames, spec.id, taken[0].token, b"second", spec.created_at.timestamp())
        return original(*args)

    taken: list[Slot] = []
    setattr(target, method, take_over_first)
    # then the first one stops
    with pytest.raises(Abandon), slot:
        slot.join()
    # and has neither stored nor asked anything more
    frames, clips = bench.frames.newest(spec.id, 100), bench.requests(FILES)
    assert bench.frames.load(frames[-1:]) == [b"second"]
    assert len(clips) == 0
    assert bench.status(spec).state is not StreamState.ENDED
