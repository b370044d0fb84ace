"""Streams that are edited, paused and shared while they run."""

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import redis

from streamer.demo.loopback_camera import LoopbackCamera
from streamer.domain.question import Question
from streamer.domain.stream import StreamState
from streamer.frames.history import FrameHistory
from streamer.questions.queries import Queries
from streamer.queues.models import FILES, WATCHES
from tests.support.ingest_bench import Bench, watch
from tests.support.rtsp_proxy import RtspProxy
from tests.support.videos import write_video
from workers.context import Abandon

Eventually = Callable[..., None]


def test_a_changed_url_is_opened_without_a_restart(
    bench: Bench, loopback: LoopbackCamera, line: RtspProxy, eventually: Eventually
) -> None:
    spec = bench.attach(loopback.url, watch(600.0), live=True, fps=10)
    with bench.run(spec) as slot:
        eventually(lambda: bench.frames.count(spec.id) >= 5)
        other = line.through(loopback.url)
        bench.registry.update(spec.id, secret_url=other, url=other)
        eventually(lambda: line.accepted == 1)
        eventually(lambda: bench.status(spec).state is StreamState.RUNNING)
        count = bench.frames.count(spec.id)
        eventually(lambda: bench.frames.count(spec.id) >= count + 3)
        slot.stop()
    # then the frames of the old one were asked about, and it does not count as a loss
    assert len(bench.requests(WATCHES)) == 1
    assert bench.status(spec).counters.reconnects == 0
    frames = bench.frames.newest(spec.id, 100)
    steps = [b.pts - a.pts for a, b in pairwise(frames)]
    assert min(steps) > 0, [(f.pts, f.time) for f in frames]


def test_a_paused_camera_is_disconnected_and_connected_again(
    bench: Bench, loopback: LoopbackCamera, line: RtspProxy, eventually: Eventually
) -> None:
    spec = bench.attach(line.through(loopback.url), watch(600.0), live=True, fps=10)
    with bench.run(spec) as slot:
        eventually(lambda: bench.frames.count(spec.id) >= 5)
        bench.registry.update(spec.id, paused=True)
        eventually(lambda: bench.status(spec).state is StreamState.PAUSED)
        assert bench.status(spec).error is None
        eventually(lambda: len(bench.requests(WATCHES)) == 1)  # what was seen is asked about
        eventually(lambda: not line.open)  # the camera is not kept busy
        count = bench.frames.count(spec.id)
        bench.registry.update(spec.id, paused=False)
        eventually(lambda: bench.frames.count(spec.id) > count)
        slot.stop()
    assert line.accepted == 2
    assert bench.status(spec).counters.reconnects == 0


def test_a_paused_stream_stays_paused_when_another_worker_takes_it(
    bench: Bench, loopback: LoopbackCamera, line: RtspProxy, eventually: Eventually
) -> None:
    spec = bench.attach(line.through(loopback.url), live=True, paused=True)
    for _ in range(2):
        with bench.run(spec) as slot:
            eventually(lambda: bench.status(spec).state is StreamState.PAUSED)
            slot.stop()
        assert slot.given_back
    assert line.accepted == 0


def test_a_paused_recording_stops_and_loses_nothing(
    bench: Bench, tmp_path: Path, eventually: Eventually
) -> None:
    bench = bench.with_settings(max_file_clips=1)
    write_video(tmp_path / "v.mp4", seconds=6)
    spec = bench.attach(tmp_path / "v.mp4", watch(1.0), fps=5)
    starts: list[float] = []
    with bench.run(spec) as slot:
        eventually(lambda: bench.requests(FILES))
        bench.registry.update(spec.id, paused=True)
        eventually(lambda: bench.status(spec).state is StreamState.PAUSED)
        stopped_at = bench.status(spec).counters.position
        assert stopped_at < 4
        bench.registry.update(spec.id, paused=False)
        while slot.outcome is None or bench.requests(FILES):
            eventually(lambda: bench.requests(FILES) or slot.outcome)
            for request in bench.requests(FILES):
                starts.append((request.data or {})["media_start"])
                assert len(request.frames) == 5
                bench.answer(request)
        slot.join()
    assert starts == [0, 1, 2, 3, 4, 5]
    assert bench.status(spec).state is StreamState.ENDED


def test_watches_and_queries_share_one_decoder(
    bench: Bench, loopback: LoopbackCamera, line: RtspProxy, eventually: Eventually
) -> None:
    context = bench.context
    spec = bench.attach(line.through(loopback.url), watch(0.5), watch(1.0), live=True, fps=10)
    queries = Queries(
        context.connections.main,
        bench.settings,
        FrameHistory(context.connections, bench.settings, bench.frames),
        context.jobs,
        context.results,
    )
    with bench.run(spec) as slot:
        eventually(lambda: {r.watch_id for r in bench.requests(WATCHES)} == {*_ids(spec.watches)})
        for prompt in ("What?", "Where?"):
            queries.ask(Question(prompt=prompt), bench.registry.get(spec.id))
        bench.registry.update(spec.id, watches=[*spec.watches, watch(0.7)])
        eventually(lambda: len({r.watch_id for r in bench.requests(WATCHES)}) == 3)
        slot.stop()
    assert line.accepted == 1
    assert len(bench.requests("queries")) == 2


def _ids(watches: list) -> list[str]:
    return [each.id for each in watches]


def test_a_slot_that_cannot_reach_redis_for_a_lease_abandons_its_stream(
    bench: Bench, loopback: LoopbackCamera, line: RtspProxy, eventually: Eventually
) -> None:
    """Another worker may have taken the stream over by then: two would decode it."""
    bench = bench.with_settings(lease=2.0)
    spec = bench.attach(line.through(loopback.url), live=True, fps=10)
    slot = bench.run(spec)
    with slot:
        eventually(lambda: bench.status(spec).state is StreamState.RUNNING)
        slot.run.follower.registry = _Away()
        eventually(lambda: isinstance(slot.outcome, Abandon))
        slot.outcome = None
    eventually(lambda: not line.open)


class _Away:
    """A registry whose Redis does not answer."""

    def find(self, _stream_id: str, *, fresh: bool) -> object:
        raise redis.exceptions.ConnectionError("gone")


def test_measured_rates_are_those_of_the_camera(
    bench: Bench, loopback: LoopbackCamera, eventually: Eventually
) -> None:
    spec = bench.attach(loopback.url, live=True, fps=1)
    with bench.run(spec) as slot:
        eventually(lambda: (bench.status(spec).counters.measured_fps or 0) > 0)
        eventually(lambda: 5 < (bench.status(spec).counters.measured_fps or 0) < 60)
        counters = bench.status(spec).counters
        slot.stop()
    assert counters.bit_rate is not None
    assert counters.bit_rate > 1000
    assert counters.bytes > 0
    assert bench.status(spec).reported_at is not None


def test_a_full_redis_costs_frames_which_are_counted(
    bench: Bench, loopback: LoopbackCamera, eventually: Eventually
) -> None:
    spec = bench.attach(loopback.url, live=True, fps=10)
    slot = bench.run(spec)
    with slot:
        eventually(lambda: bench.frames.count(spec.id))
        slot.run.intake.store = _Full()
        eventually(lambda: slot.run.counters.dropped.redis_full >= 3)
        slot.stop()
    assert bench.status(spec).state is StreamState.RUNNING
    assert bench.status(spec).counters.dropped.redis_away == 0


class _Full:
    """A frame store whose server has no memory left."""

    def put_all(self, *_args: object, **_kwargs: object) -> object:
        raise redis.exceptions.OutOfMemoryError("command not allowed")
