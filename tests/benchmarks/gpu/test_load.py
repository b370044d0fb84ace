"""The load of the streams parts: clips, arrivals, and the process that sends them to an engine."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path

import numpy as np
import psutil
import pytest
from load import KINDS, MAX_LATE, Arrivals, LoadError, LoadProcess, encode, summary
from slots import QUESTION, Slots, open_jpeg

from nvila_core import NVILA, Engine, EngineStopped, SamplingParams, Video
from streamer.frames.jpeg import from_jpeg

ROOT = Path(__file__).parents[3]
FRAMES = 3
PARAMS = SamplingParams(max_tokens=3, ignore_eos=True)


class Clock:
    """Seconds that only pass when a test says so."""

    now = 100.0

    def __call__(self) -> float:
        """Return the time."""
        return self.now


@pytest.fixture(scope="module")
def model(random_checkpoint: Path) -> NVILA:
    """A tiny model."""
    return NVILA.from_pretrained(random_checkpoint)


@contextmanager
def serving(model: NVILA, kind: str = "new", slots: int = 2) -> Iterator[tuple[Engine, Slots, int]]:
    """Run an engine whose slots are sent clips by a load process: both, and the process's id."""
    side = model.config.processor.size * (2 if kind == "camera" else 1)
    policy = "adaptive" if kind == "camera" else "native"
    with (
        LoadProcess(kind, FRAMES, side, slots) as load,
        Engine(model, kv_cache_tokens=4096) as engine,
        Slots(engine, load, PARAMS, policy) as worker,
    ):
        yield engine, worker, load.pid


def is_running(pid: int) -> bool:
    """Return whether a process runs, and is not just waiting to be collected by its parent."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_latencies_count_from_when_a_clip_was_due() -> None:
    # given a clip that was made in time, and waited for a slot of the worker
    clock = Clock()
    arrivals = Arrivals(clock, give_up=None)
    arrivals.sent(0, due=100.0, made_at=99.0, sent_at=104.0)
    # when it is answered
    clock.now = 106.0
    arrivals.answered(0)
    # then its wait is part of its latency, and no fault of the load
    found = arrivals.result(1)
    assert (found["p50 s"], found["longest wait for a slot s"]) == (6.0, 4.0)
    assert (found["load: made too late, s"], found["load kept up"]) == (0.0, True)
    assert arrivals.all_answered(0)


@pytest.mark.parametrize(("late", "kept_up"), [(MAX_LATE, True), (MAX_LATE + 0.125, False)])
def test_a_load_that_makes_clips_too_late_says_so(late: float, kept_up: bool) -> None:
    # given clips of which one was made after it was due
    arrivals = Arrivals(Clock(), give_up=None)
    arrivals.sent(0, due=90.0, made_at=89.0, sent_at=90.0)
    arrivals.sent(1, due=91.0, made_at=91.0 + late, sent_at=91.0 + late)
    # when all are answered
    arrivals.answered(0)
    arrivals.answered(1)
    # then
    found = arrivals.result(2)
    assert found["load: made too late, s"] == late
    assert found["load kept up"] is kept_up


def test_a_run_is_given_up_when_a_clip_has_no_answer_for_long() -> None:
    # given two clips
    clock = Clock()
    arrivals = Arrivals(clock, give_up=20.0)
    arrivals.sent(0, due=100.0, made_at=100.0, sent_at=100.0)
    arrivals.sent(1, due=105.0, made_at=105.0, sent_at=105.0)
    clock.now = 119.0
    assert not arrivals.too_slow()
    # when the first is answered just before the time, and the second not for long after it
    arrivals.answered(0)
    clock.now = 124.0
    assert not arrivals.too_slow()
    clock.now = 126.0
    # then
    assert arrivals.too_slow()
    assert not arrivals.all_answered(0)
    assert arrivals.result(2)["sustained"] is False


@pytest.mark.parametrize(
    ("latencies", "sustained"),
    [
        ([3.0] * 60, True),
        ([3.0] * 57 + [11.0] * 3, False),  # the last clips, of a queue that grows
        ([9.9] * 58 + [10.1, 3.0], True),
        ([11.0] * 60, False),
        ([3.0] * 40 + [3.5] * 20, False),
        ([5.0], True),
    ],
)
def test_streams_are_sustained_while_no_queue_grows(
    latencies: list[float], sustained: bool
) -> None:
    assert summary(latencies)["sustained"] is sustained


@pytest.mark.parametrize(("kind", "side"), [("new", 112), ("new", 448), ("camera", 224)])
def test_no_clip_repeats_a_tile_of_another_but_of_what_stands_still(
    kind: str, side: int, model: NVILA
) -> None:
    # given clips, as a worker opens them
    clips = KINDS[kind](FRAMES, side)
    policy = "adaptive" if kind == "camera" else "native"
    prompts = []
    for number in (0, 1, 2, 3 * 2**20):
        size = (clips.measures[0].width, clips.measures[0].height)
        opened = [
            open_jpeg(np.frombuffer(encode(frame), np.uint8), size, size)
            for frame in clips.frames(number)
        ]
        assert opened[0].shape == (*size[::-1], 3)
        plan = model.plan(clips.measures, policy)
        prompts.append(model.prepare([Video(opened, sampled=True), QUESTION], plan=plan))
    # when their tiles are compared
    tiles = [{tile.tobytes() for tile in prompt.pixels} for prompt in prompts]
    both = set.intersection(*tiles)
    # then new pictures have none in common, and cameras those without the object
    if kind == "new":
        assert len(set.union(*tiles)) == 4 * FRAMES
    else:
        assert both
        for one, other in pairwise(tiles):
            assert one & other == both
        assert all(len(one - both) >= FRAMES for one in tiles)


def test_a_clip_of_new_pictures_is_the_published_prompt(model: NVILA) -> None:
    # given the frames of a clip
    clips = KINDS["new"](FRAMES, model.config.processor.size)
    parts = [Video(clips.frames(0), sampled=True), QUESTION]
    # when a worker plans it
    planned = model.prepare(parts, plan=model.plan(clips.measures, "native"))
    # then it is the prompt of the published rule
    published = model.prepare(parts, num_video_frames=FRAMES)
    assert planned.token_ids == published.token_ids
    assert np.array_equal(planned.pixels, published.pixels)


@pytest.mark.parametrize("enough", [(320, 180), (160, 90), (161, 90), (40, 20), (640, 360)])
def test_frames_are_opened_as_a_worker_opens_them(enough: tuple[int, int]) -> None:
    # given a frame
    clips = KINDS["camera"](1, 180)
    jpeg = encode(clips.frames(7)[0])
    # when it is opened, no larger than needed
    opened = open_jpeg(np.frombuffer(jpeg, np.uint8), (320, 180), enough)
    # then it is what the service's own decoder returns
    expected = from_jpeg(jpeg, 320, 180, enough)
    assert opened.shape == expected.shape
    assert float(np.abs(opened.astype(int) - expected).mean()) < 1


@pytest.mark.parametrize("kind", ["new", "camera"])
def test_another_process_sends_the_clips(kind: str, model: NVILA) -> None:
    # given an engine, and a load process
    with serving(model, kind) as (engine, worker, pid):
        # when it sends more clips at once than there are slots, and then clips of streams
        at_once = worker.run(form="jpeg", count=5)
        evenly = worker.run(form="pixels", count=4, streams=100)
        # then the engine has answered all of them
        assert (at_once["clips"], evenly["clips"]) == (5, 4)
        stats = engine.stats()
        assert (stats["finished"], stats["failed"]) == (9, 0)
        assert stats["completion_tokens"] == 9 * 3
        if kind == "new":
            assert stats["tiles"] == stats["encoded_tiles"] == 9 * FRAMES
        else:
            assert stats["cached_tiles"] > 0
        # and the processor time of each process is reported
        for found in (at_once, evenly):
            assert found["CPU s of the load"] > 0
            assert found["CPU s of the engine's process"] > 0
            assert found["p95 s"] > 0
        # and the load has no PyTorch
        libraries = {Path(area.path).name for area in psutil.Process(pid).memory_maps()}
        assert any("cv2" in name for name in libraries)
        assert not any("torch" in name for name in libraries)
    assert not is_running(pid)


def test_what_is_not_sustained_is_cancelled(model: NVILA) -> None:
    # given an engine, and streams whose answers are wanted at once
    with serving(model) as (engine, worker, _):
        # when
        found = worker.run(form="jpeg", count=8, streams=1000, give_up=0.0)
        # then the run is given up, and no clip is left in the engine
        assert found["sustained"] is False
        stats = engine.stats()
        assert (stats["running"], stats["waiting"]) == (0, 0)
        # and the slots serve the next run
        assert worker.run(form="jpeg", count=3)["clips"] == 3


def test_the_load_ends_when_the_engine_fails(model: NVILA) -> None:
    # given an engine that has stopped
    def ask() -> None:
        with serving(model) as (engine, worker, pid):
            pids.append(pid)
            engine.stop()
            worker.run(form="jpeg", count=2)

    pids: list[int] = []
    # when a clip is sent, then the run fails, and no process is left
    with pytest.raises(EngineStopped):
        ask()
    assert not is_running(pids[0])


def test_a_load_that_dies_ends_the_run(model: NVILA) -> None:
    # given a load that has been killed
    with serving(model) as (_, worker, pid):
        os.kill(pid, signal.SIGKILL)
        # when clips are asked for, then the run fails instead of waiting for ever
        with pytest.raises(LoadError):
            worker.run(form="jpeg", count=2)


def test_a_load_that_cannot_make_clips_ends_the_run(model: NVILA) -> None:
    # given an order that the load cannot carry out
    with serving(model) as (_, worker, _), pytest.raises(LoadError, match="ZeroDivisionError"):
        worker.run(form="jpeg", count=2, streams=0)


def test_the_load_does_not_outlive_its_parent(eventually: Callable[..., None]) -> None:
    # given a program with a load process
    program = (
        "from load import LoadProcess\n"
        "load = LoadProcess('new', 2, 56, 1)\n"
        "print(load.pid, flush=True)\n"
        "load.receive()"
    )
    path = os.pathsep.join((str(ROOT), str(ROOT / "benchmarks" / "gpu")))
    with subprocess.Popen(
        [sys.executable, "-c", program],
        env={**os.environ, "PYTHONPATH": path},
        stdout=subprocess.PIPE,
        text=True,
    ) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        assert is_running(pid)
        # when it is killed
        parent.kill()
    # then
    eventually(lambda: not is_running(pid))
