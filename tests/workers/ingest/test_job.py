"""The job of a stream: a run that breaks down is reported in the stream's state and restarted."""

import threading
from collections.abc import Callable, Iterator

import pytest

from streamer.demo.loopback_camera import LoopbackCamera
from streamer.domain.stream import StreamSpec, StreamState
from streamer.errors import ErrorCode, StreamerError
from tests.support.clocks import SkippingClock
from tests.support.ingest_bench import Bench
from workers import context
from workers.context import GiveBack
from workers.ingest.job import run_stream
from workers.ingest.live_run import LiveRun


class StreamJob:
    """The job of a stream, in a thread that the test can stop."""

    def __init__(self, spec: StreamSpec) -> None:
        self.spec = spec
        self.stopped = threading.Event()
        self.outcome: BaseException | None = None
        self._thread = threading.Thread(target=self._work, daemon=True)

    def _work(self) -> None:
        context.enter_slot(self.stopped)
        try:
            run_stream(self.spec.id)
        except BaseException as error:
            self.outcome = error

    def __enter__(self) -> "StreamJob":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stopped.set()
        self._thread.join(120)
        assert not self._thread.is_alive()


@pytest.fixture
def bench(bench: Bench) -> Iterator[Bench]:
    bench.context.clock = SkippingClock()
    context.install(bench.context)
    yield bench
    context.install(None)


@pytest.mark.parametrize("place", ["__init__", "_run", "_look"])
@pytest.mark.parametrize(
    ("error", "code"),
    [
        (RuntimeError("an unforeseen failure"), ErrorCode.INTERNAL),
        (StreamerError(ErrorCode.MODEL_FAILED, "A sentence."), ErrorCode.MODEL_FAILED),
    ],
)
def test_a_run_that_breaks_down_is_told_and_started_again(
    bench: Bench,
    loopback: LoopbackCamera,
    eventually: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
    place: str,
    error: Exception,
    code: ErrorCode,
) -> None:
    # given a stream whose run breaks down three times, wherever it does
    broken = threading.Event()
    broken.set()
    original, attempts = getattr(LiveRun, place), []

    def break_down(self: LiveRun, *args: object, **kwargs: object) -> object:
        if broken.is_set():
            attempts.append(bench.status(spec).state)
            raise error
        return original(self, *args, **kwargs)

    monkeypatch.setattr(LiveRun, place, break_down)
    spec = bench.attach(loopback.url, live=True)
    with StreamJob(spec) as job:
        # then its state says why, and it is tried again
        eventually(lambda: len(attempts) >= 3)
        eventually(lambda: bench.status(spec).state is StreamState.FAILED)
        received = bench.status(spec).error
        assert received is not None
        assert received.code is code
        assert job.outcome is None
        # and it runs as soon as it can
        broken.clear()
        eventually(lambda: bench.status(spec).state is StreamState.RUNNING)
        assert bench.status(spec).error is None
    assert isinstance(job.outcome, GiveBack)


def test_a_stream_that_waits_to_be_started_again_can_be_stopped(
    bench: Bench, eventually: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    attempts = []

    def break_down(self: LiveRun) -> None:
        attempts.append(1)
        raise RuntimeError

    monkeypatch.setattr(LiveRun, "_run", break_down)
    spec = bench.attach("rtsp://127.0.0.1:1/x", live=True)
    with StreamJob(spec) as job:
        eventually(lambda: attempts)
    assert isinstance(job.outcome, GiveBack)
    # and a detached one ends
    with StreamJob(spec) as job:
        eventually(lambda: len(attempts) >= 2)
        bench.registry.delete(spec.id)
        eventually(lambda: not job._thread.is_alive())
    assert job.outcome is None
