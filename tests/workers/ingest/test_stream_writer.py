"""Cameras while Redis is silent: frames wait within bounds, then are dropped and counted."""

import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from streamer.demo.loopback_camera import LoopbackCamera
from streamer.local.redis_server import EmbeddedServer
from streamer.queues.models import WATCHES
from streamer.redis_client import connections as connections_module
from streamer.redis_client.connections import Connections
from streamer.settings import Settings
from tests.support.ingest_bench import Bench, watch
from workers.ingest import stream_writer
from workers.ingest.stream_writer import StreamWriter

Eventually = Callable[..., None]


def test_a_camera_is_read_on_while_the_server_of_its_frames_is_frozen(
    settings: Settings,
    loopback: LoopbackCamera,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    eventually: Eventually,
) -> None:
    # given a camera whose frames have a server of their own, which would be waited for for ever
    monkeypatch.setattr(connections_module, "FRAMES_TIMEOUT", 600.0)
    monkeypatch.setattr(stream_writer, "MAX_WAITING_FRAMES", 4)
    monkeypatch.setattr(stream_writer, "_PATIENCE", 0.2)
    with EmbeddedServer(tmp_path / "frames", persistent=False, max_memory=64 << 20) as server:
        apart = settings.model_copy(update={"frames_redis_url": server.url})
        with Connections(apart) as opened:
            bench = Bench(apart, opened)
            spec = bench.attach(loopback.url, watch(0.5), live=True, fps=10)
            with bench.run(spec) as slot:
                counters = slot.run.counters
                eventually(lambda: counters.sampled > 3)
                # when that server freezes
                assert server.pid is not None
                os.kill(server.pid, signal.SIGSTOP)
                try:
                    # then the camera is read on; a few frames wait, and the others are counted
                    eventually(lambda: counters.dropped.redis_away > 3)
                    decoded, dropped = counters.decoded, counters.dropped.redis_away
                    eventually(lambda: counters.decoded > decoded + 40)
                    assert counters.dropped.redis_away > dropped
                    stored = counters.sampled
                finally:
                    os.kill(server.pid, signal.SIGCONT)
                # and when it goes on, those that waited are stored, and then new ones
                eventually(lambda: counters.sampled > stored + 8)
                slot.stop()
            assert bench.frames.count(spec.id) == counters.sampled
            asked = [frame.id for clip in bench.requests(WATCHES) for frame in clip.frames]
            assert asked == sorted(asked)


@pytest.fixture(autouse=True)
def _patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let no step count as slow because the machine is busy."""
    monkeypatch.setattr(stream_writer, "_PATIENCE", 60.0)
    monkeypatch.setattr(stream_writer, "_FLUSH", 60.0)


def hold(held: threading.Event) -> None:
    assert held.wait(60)


def writer(refused: bool = False) -> StreamWriter:
    return StreamWriter(refused=lambda: refused)


def test_steps_run_in_order_and_all_of_them_before_the_end() -> None:
    done: list[int] = []
    with writer() as steps:
        for n in range(500):
            if n % 3:
                assert steps.offer(1000, lambda n=n: done.append(n))  # type: ignore[misc]
            else:
                steps.then(lambda n=n: done.append(n))  # type: ignore[misc]
    assert done == list(range(500))


def test_only_the_last_of_several_replaceable_steps_in_a_row_is_run() -> None:
    done: list[str] = []
    held = threading.Event()
    with writer() as steps:
        steps.then(lambda: hold(held))
        for name in ("a", "b", "c"):
            steps.then(lambda name=name: done.append(name), replaceable=True)  # type: ignore[misc]
        steps.offer(1, lambda: done.append("frame"))
        steps.then(lambda: done.append("d"), replaceable=True)
        held.set()
    assert done == ["c", "frame", "d"]


@pytest.mark.parametrize("bound", ["frames", "bytes"])
def test_frames_beyond_the_bound_are_dropped_once_redis_is_silent(
    monkeypatch: pytest.MonkeyPatch, bound: str
) -> None:
    # given a step that does not end
    monkeypatch.setattr(stream_writer, "_PATIENCE", 0.1)
    monkeypatch.setattr(
        stream_writer, "MAX_WAITING_FRAMES" if bound == "frames" else "MAX_WAITING_BYTES", 10
    )
    held = threading.Event()
    done: list[int] = []
    with writer() as steps:
        steps.then(lambda: hold(held))
        # when more frames come than may wait
        taken = [
            steps.offer(1 if bound == "frames" else 2, lambda n=n: done.append(n))  # type: ignore[misc]
            for n in range(20)
        ]
        # then the first ones wait, and the others are dropped
        room = 10 if bound == "frames" else 5
        assert taken == [True] * room + [False] * (20 - room)
        held.set()
    assert done == list(range(room))


def test_a_server_that_is_known_to_refuse_frames_is_not_waited_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(stream_writer, "_PATIENCE", 600.0)
    monkeypatch.setattr(stream_writer, "MAX_WAITING_FRAMES", 1)
    held = threading.Event()
    with writer(refused=True) as steps:
        steps.then(lambda: hold(held))
        assert steps.offer(1, lambda: None)
        assert not steps.offer(1, lambda: None)
        held.set()


def test_an_error_of_a_step_is_raised_by_the_next_one_or_by_the_end() -> None:
    def fail() -> None:
        raise ValueError("of a step")

    def fail_at_the_end() -> None:
        raise ValueError("at the end")

    failed, steps = threading.Event(), writer()
    with pytest.raises(ValueError, match="the end"), steps:  # noqa: PT012
        steps.then(fail)
        steps.then(failed.set)
        assert failed.wait(60)
        with pytest.raises(ValueError, match="of a step"):
            steps.offer(1, lambda: None)
        steps.then(fail_at_the_end)


def test_the_end_does_not_wait_for_ever_and_counts_what_is_left(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(stream_writer, "_FLUSH", 0.1)
    held = threading.Event()
    with writer() as steps:
        steps.then(lambda: hold(held))
        steps.offer(1, lambda: None)
        steps.offer(1, lambda: None)
    assert steps.waiting == 2
    held.set()
