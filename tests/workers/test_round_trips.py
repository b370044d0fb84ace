"""How often workers ask Redis, counted at their connections, and what a clip leaves there."""

import threading
from datetime import timedelta
from typing import Any

import pytest
import redis

from nvila_core.resolution.policy import Measures
from streamer import redis_keys
from streamer.domain.request import ClipRequest
from streamer.domain.result import Result
from streamer.domain.sampling import Sampling
from streamer.domain.stream import StreamCounters, StreamSpec, StreamState, StreamStatus
from streamer.domain.timestamp import utc_now
from streamer.errors import Superseded
from streamer.queues.jobs import CLIP_JOB
from streamer.queues.models import CLIP_QUEUES
from tests.support.clocks import ManualClock
from tests.support.ingest_bench import Bench, watch
from tests.support.redis_commands import Trips, commands_of, counted_trips
from workers import context
from workers.gpu.clip_job import answer_request, publish_failure
from workers.ingest.clips import LiveClips
from workers.ingest.spec_follower import SpecFollower
from workers.ingest.status_reporter import StatusReporter
from workers.ingest.stream_watches import StreamWatches
from workers.registry_batch import RegistryBatch
from workers.rq.thread_worker import ThreadWorker

FRAMES = 10
"""Frames of a clip: one a second for ten seconds, the default."""

MAX_TRIPS = 16
"""Round trips of a clip, from its first frame to its result."""

MAX_COMMANDS = 18
"""Commands of a clip, where a script counts as one; several may share a round trip."""

MAX_KEPT = 3000
"""Bytes that Redis keeps of an answered clip, beside the queue of results and the events."""

STREAMS = 50


@pytest.fixture
def trips(monkeypatch: pytest.MonkeyPatch) -> Trips:
    return counted_trips(monkeypatch)


class Crowd:
    """The runs of many streams of one worker, as far as they ask the registry; time stands still
    until `pass_second`."""

    def __init__(self, bench: Bench, streams: int = STREAMS) -> None:
        self.clock = ManualClock(1_000_000.0)
        self.batch = RegistryBatch(bench.registry, self.clock)
        self.specs = [bench.attach("rtsp://10.0.0.1/x", name=f"c{n}") for n in range(streams)]
        self.followers = [
            SpecFollower(self.batch, spec, lease=12.0, clock=self.clock) for spec in self.specs
        ]
        outage = bench.context.connections.outage
        self.reporters = [
            StatusReporter(self.batch, StreamStatus(), spec.id, spec.name, "w", self.clock, outage)
            for spec in self.specs
        ]

    def pass_second(self) -> None:
        """Let each stream look and report as often as it does within a second."""
        for _ in range(4):
            self.pass_quarter()

    def pass_quarter(self) -> None:
        """Let each stream look and report once."""
        self.clock.now += 0.25
        for follower, reporter in zip(self.followers, self.reporters, strict=True):
            if follower.due:
                follower.look()
            reporter.tick()


def test_a_worker_asks_the_registry_once_for_all_of_its_streams(bench: Bench, trips: Trips) -> None:
    # given a worker whose streams have all looked and reported once
    crowd = Crowd(bench)
    crowd.pass_second()
    crowd.pass_second()

    # when a second passes
    for reporter in crowd.reporters:
        reporter.status.state = StreamState.RUNNING
    sent = trips.of(crowd.pass_second)

    # then it looked once and saved once, for all
    assert sorted(sent) == ["EVALSHA", "HMGET"]
    crowd.pass_second()
    states = {bench.status(spec).state for spec in crowd.specs}
    assert states == {StreamState.RUNNING}

    # when one is edited and one is detached, then each finds that out within a second
    edited, gone = crowd.followers[3], crowd.followers[7]
    bench.registry.update(edited.spec.id, paused=True)
    bench.registry.delete(gone.spec.id)
    crowd.pass_second()
    assert edited.spec.paused
    assert gone.detached
    others = [f for f in crowd.followers if f not in (edited, gone)]
    assert not any(f.detached or f.spec.paused for f in others)


def test_an_idle_second_of_a_worker_is_two_commands(bench: Bench) -> None:
    # given a worker with five streams, and the commands that the server gets from it
    crowd = Crowd(bench, streams=5)
    crowd.pass_second()

    # when ten seconds pass
    def wait() -> None:
        for _ in range(10):
            crowd.pass_second()

    sent = commands_of(bench.context.connections.main, wait)

    # then it read all specs, and saved all statuses, once a second
    assert sorted(sent) == ["EVALSHA"] * 10 + ["HMGET"] * 10


def test_an_edit_that_is_announced_is_followed_at_once(bench: Bench, trips: Trips) -> None:
    # given a worker that has just looked
    crowd = Crowd(bench)
    crowd.pass_second()
    first = crowd.followers[0]
    while "HMGET" not in trips.of(crowd.pass_quarter):
        pass

    # when an edit and a detachment are announced to it
    channel = bench.context.connections.main.pubsub(ignore_subscribe_messages=True)
    channel.subscribe(redis_keys.STREAM_EDITED)
    channel.get_message(timeout=60.0)
    bench.registry.update(first.spec.id, paused=True)
    bench.registry.delete(crowd.specs[1].id)
    told = [channel.get_message(timeout=60.0) for _ in range(2)]
    channel.close()
    assert [message and message["data"].decode() for message in told] == [
        crowd.specs[0].id,
        crowd.specs[1].id,
    ]
    for spec in crowd.specs[:2]:
        crowd.batch.note_edit(spec.id)

    # then its streams know at their next look, for which it asked once
    assert trips.of(crowd.pass_quarter).count("HMGET") == 1
    assert first.spec.paused
    assert crowd.followers[1].detached

    # and that of a stream of another worker makes it ask nothing
    crowd.batch.note_edit("str_of_another")
    assert "HMGET" not in trips.of(crowd.pass_quarter)


def test_an_edit_during_a_look_is_looked_at_again(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    # given a look that has read the specs, and not yet returned
    clock = ManualClock(1_000_000.0)
    batch = RegistryBatch(bench.registry, clock)
    spec = bench.attach("rtsp://h/1", name="a")
    records = bench.registry.records

    def edited_meanwhile(ids: Any) -> Any:
        found = records(ids)
        monkeypatch.undo()
        # when the stream is edited
        bench.registry.update(spec.id, paused=True)
        batch.note_edit(spec.id)
        return found

    monkeypatch.setattr(bench.registry, "records", edited_meanwhile)
    before = batch.find(spec.id)

    # then the next look finds it, although no time has passed
    after = batch.find(spec.id)
    assert before is not None
    assert after is not None
    assert (before.paused, after.paused) == (False, True)


def test_a_status_that_is_refused_ends_that_run_only(bench: Bench) -> None:
    # given two streams of which another worker has taken one over
    clock = ManualClock(1_000_000.0)
    batch = RegistryBatch(bench.registry, clock)
    mine, lost = bench.attach("rtsp://h/1", name="a"), bench.attach("rtsp://h/2", name="b")
    main = bench.context.connections.main
    for spec, token in ((mine, 5), (lost, 6)):
        main.hset(f"rq:job:{redis_keys.stream_job(spec.id)}", "token", token)
    status = StreamStatus(state=StreamState.RUNNING)

    # when the worker saves both together
    batch.post(mine.id, status, 5)  # sent at once, and starts the interval
    batch.post(lost.id, status, 5)
    clock.now += 1
    batch.post(mine.id, status, 5)

    # then the other run learns it at its next status, and what it posted was not stored
    with pytest.raises(Superseded):
        batch.post(lost.id, status, 5)
    assert bench.status(lost).state is StreamState.CONNECTING
    assert bench.status(mine).state is StreamState.RUNNING


def test_a_state_that_is_saved_at_once_is_not_overwritten_by_an_older_one(bench: Bench) -> None:
    clock = ManualClock(1_000_000.0)
    batch = RegistryBatch(bench.registry, clock)
    one, other = bench.attach("rtsp://h/1", name="a"), bench.attach("rtsp://h/2", name="b")
    batch.post(other.id, StreamStatus(), None)
    batch.post(one.id, StreamStatus(state=StreamState.RUNNING), None)  # waits for the next batch
    batch.save(one.id, StreamStatus(state=StreamState.PAUSED), None)
    clock.now += 1
    batch.post(other.id, StreamStatus(), None)
    assert bench.status(one).state is StreamState.PAUSED


def test_streams_do_not_wait_for_a_look_of_another_that_redis_does_not_answer(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    # given a look of one stream that hangs
    clock = ManualClock(1_000_000.0)
    batch = RegistryBatch(bench.registry, clock)
    spec, other = bench.attach("rtsp://h/1", name="a"), bench.attach("rtsp://h/2", name="b")
    assert batch.find(spec.id) is not None
    assert batch.find(other.id) is not None
    asked, answered = threading.Event(), threading.Event()
    records = bench.registry.records

    def slow(ids: Any) -> Any:
        asked.set()
        answered.wait(60)
        return records(ids)

    monkeypatch.setattr(bench.registry, "records", slow)
    clock.now += 1
    looking = threading.Thread(target=lambda: batch.find(spec.id))
    looking.start()
    assert asked.wait(60)

    # when another asks meanwhile, then it gets what is known, and later that Redis is away
    try:
        assert batch.find(other.id) == bench.registry.find(other.id)
        clock.now += 2
        with pytest.raises(redis.exceptions.TimeoutError):
            batch.find(other.id)
    finally:
        answered.set()
        looking.join()


def answer(request: dict[str, Any]) -> None:
    """Answer a clip as a model worker does, with a model that always says the same."""

    def say(own: context.WorkerContext, clip: ClipRequest, _started: float) -> Result:
        assert len(own.frames.load(clip.frames)) == FRAMES
        text = "A person in a yellow coat walks past a parked van. " * 2
        return Result.answering(clip, text=text)

    answer_request(ClipRequest, request, say)


FOREIGN = {"XREAD", "XREVRANGE", "LLEN", "SCAN", "ZRANGE"}
"""Commands of the test itself."""


def make_clip(bench: Bench, spec: StreamSpec) -> None:
    """Store the frames of a window and submit it, as the run of a stream does."""
    own = bench.context
    clips = LiveClips(own.jobs, own.settings, StreamCounters(), own.connections.outage)
    watches = StreamWatches(spec, clips.submit, resumed=True)
    now = (utc_now() - timedelta(seconds=FRAMES)).timestamp()
    for second in range(FRAMES):
        ref = own.frames.put(
            spec.id, b"jpeg" * 1000, Measures(640, 480, change=0.1), time=now + second, pts=second
        )
        watches.add(ref, quiet=1.0)


def test_a_clip_costs_few_round_trips_and_leaves_little(bench: Bench, trips: Trips) -> None:
    # given a camera that is watched, and a model worker
    own = bench.context
    spec = bench.attach("rtsp://10.0.0.1/x", watch(float(FRAMES)), live=True, fps=1.0)
    assert spec.sampling == Sampling(fps=1.0)
    context.install(own)
    worker = ThreadWorker(
        CLIP_QUEUES,
        own.connections.main,
        slots=8,
        functions={CLIP_JOB: answer},
        stopping=own.stopping,
        lease=600.0,
        on_failed=publish_failure,
    )
    thread = threading.Thread(target=worker.work)
    thread.start()

    # when its clips are answered one after the other, once everything is warm
    counts = []
    try:
        for _ in range(4):
            before, sent = own.results.last_id(), len(trips.sent)
            make_clip(bench, spec)
            own.results.read(before, block=60.0)
            while own.jobs.depths()["watches"] or _has_jobs(own.connections.main):
                threading.Event().wait(0.02)
            took = zip(trips.sent[sent:], trips.commands[sent:], strict=False)
            counts.append([commands for name, commands in took if name not in FOREIGN])
    finally:
        own.stopping.set()
        thread.join()
        context.install(None)

    # then each took few trips with few commands
    assert min(map(len, counts)) <= MAX_TRIPS
    assert min(map(sum, counts)) <= MAX_COMMANDS

    # and left no job, and little besides
    kept = [
        key
        for key in own.connections.main.scan_iter("*")
        if key.startswith((b"rq:job", b"streamer:answer:", b"streamer:in-flight"))
    ]
    size = sum(own.connections.main.memory_usage(key) or 0 for key in kept)
    assert size / len(counts) <= MAX_KEPT, kept


def _has_jobs(client: redis.Redis) -> bool:
    return any(client.scan_iter("rq:job:req_*"))
