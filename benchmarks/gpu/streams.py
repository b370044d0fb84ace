"""Captions of many streams, 100 tokens each.

Either at the workload of NVIDIA VSS, clips of 80 new frames of a tile, or at that of cameras: 10
frames of a still scene in which something moves, at adaptive resolution.
"""

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from statistics import mean, median
from typing import Any

import numpy as np
import torch
from formats import convert
from made import SHAPES, whole

from nvila_core import Engine, SamplingParams, Video

PERIOD = 10.0
"""Seconds of a stream that a clip covers."""

MAX_P95 = 10.0
"""Seconds until the caption of a clip is there, in 95 of 100 cases, for sustained streams."""

MAX_GROWTH = 1.08
"""How much later the last third of clips may be than the middle one: more is a queue that grows."""

WORKERS = 12
PARTS = ("host, before the model", "tower, started", "tower, waited for", "chunk", "decode")


class Clips:
    """Prepared clips, each with tiles that no other has had.

    Args:
        model: prepares them.
        side: pixels of a tile's side.
        frames: of a clip.
    """

    def __init__(self, model: Any, side: int, frames: int) -> None:
        self.model, self.frames = model, frames
        random = np.random.default_rng(0)
        self._pool = random.integers(0, 256, (64, side, side, 3), dtype=np.uint8)
        self._used: deque[Any] = deque()
        self._lock, self._made = threading.Lock(), 0

    def number(self) -> bytes:
        """Return bytes that no other tile has."""
        with self._lock:
            self._made += 1
            return self._made.to_bytes(8, "little")

    def prepare(self) -> Any:
        """Return a new prompt, as a worker makes it of the frames of a clip."""
        pictures = []
        for n in range(self.frames):
            picture = self._pool[n % len(self._pool)].copy()
            picture[0].flat[:8] = np.frombuffer(self.number(), np.uint8)
            pictures.append(picture)
        return self.model.prepare([Video(pictures), "What now?"], num_video_frames=self.frames)

    def take(self) -> Any:
        """Return a prompt that has been used, with new tiles; or make one."""
        try:
            prompt = self._used.popleft()
        except IndexError:
            return self.prepare()
        for tile in prompt.pixels:
            tile[0].flat[:8] = np.frombuffer(self.number(), np.uint8)
        return prompt

    def give_back(self, prompt: Any) -> None:
        """Let a prompt whose request has ended be used again."""
        self._used.append(prompt)


class CameraClips(Clips):
    """Clips of cameras that see a still scene, of which the tiles under a moving object are new.

    Args: see `Clips`; `side` is the height of a frame.
    """

    def __init__(self, model: Any, side: int, frames: int) -> None:
        super().__init__(model, side, frames)
        self.scene = np.full((side, side * 16 // 9, 3), 90, np.uint8)
        detail = self._pool[0, : side // 4, : side // 2]
        self.scene[side // 4 : side // 4 + len(detail), side // 2 : side // 2 + side // 2] = detail

    def prepare(self) -> Any:
        """Return a new prompt, as a worker makes it of the frames of a clip."""
        frames, size = [], len(self.scene) // 8
        mark = np.frombuffer(self.number(), np.uint8)
        for number in range(self.frames):
            frame = self.scene.copy()
            left = number * (frame.shape[1] - size) // self.frames
            frame[-2 * size : -size, left : left + size] = 220
            frame[-size - 1, left : left + 8, 0] = mark
            frames.append(frame)
        return self.model.prepare(
            [Video(frames), "What now?"], num_video_frames=self.frames, policy="adaptive"
        )

    def take(self) -> Any:
        """Return a new prompt: with new tiles a used one would be no longer that of a camera."""
        return self.prepare()


class Split:
    """Where the time of the engine's thread goes.

    Args:
        engine: its methods are timed from now on.
    """

    def __init__(self, engine: Engine) -> None:
        self.seconds, self.calls = dict.fromkeys(PARTS, 0.0), dict.fromkeys(PARTS, 0)
        self.cpu = 0.0
        self._engine = engine
        self._time(engine.scheduler, "schedule", lambda *_: PARTS[0])
        self._time(engine.encoder, "start", lambda *_: PARTS[1])
        self._time(engine.encoder, "encode", lambda *_: PARTS[1])
        self._time(engine, "_wait_for_tower", lambda *_: PARTS[2])
        self._time(engine.runner, "launch", self._kind)
        self._time(engine.runner, "launch_next", lambda *_: PARTS[4])
        self._time(engine.runner, "read", lambda step: self._kind(step.scheduled))
        step = engine.step

        def counted() -> bool:
            began = time.thread_time()
            left = step()
            self.cpu += time.thread_time() - began
            return left

        engine.step = counted  # type: ignore[method-assign]

    @staticmethod
    def _kind(scheduled: Any, *_: Any) -> str:
        return PARTS[4] if all(i.num_scheduled_tokens == 1 for i in scheduled) else PARTS[3]

    def _time(self, owner: Any, name: str, kind: Callable[..., str]) -> None:
        call = getattr(owner, name, None)
        if call is None:
            return

        def timed(*args: Any) -> Any:
            began = time.perf_counter()
            try:
                return call(*args)
            finally:
                part = kind(*args)
                self.seconds[part] += time.perf_counter() - began
                self.calls[part] += 1

        setattr(owner, name, timed)

    @contextmanager
    def measured(self, found: dict[str, Any]) -> Iterator[None]:
        """Add to `found` the share of each part in the time until the end, and its milliseconds."""
        seconds, calls, cpu = dict(self.seconds), dict(self.calls), self.cpu
        began = time.perf_counter()
        yield
        spent = time.perf_counter() - began
        for part in PARTS:
            share, count = self.seconds[part] - seconds[part], self.calls[part] - calls[part]
            found[f"{part}, share"] = share / spent
            found[f"{part}, ms"] = 1000 * share / max(1, count)
        known = sum(self.seconds[part] - seconds[part] for part in PARTS)
        found["idle and all else, share"] = 1 - known / spent
        found["CPU of the engine's thread, share"] = (self.cpu - cpu) / spent


class Load:
    """Sends clips and takes the time of their captions.

    Args:
        engine: answers.
        clips: makes the prompts.
        params: of each request.
    """

    def __init__(self, engine: Engine, clips: Clips, params: SamplingParams) -> None:
        self.engine, self.clips, self.params = engine, clips, params

    def at_once(self, count: int) -> float:
        """Return the seconds for clips that are sent together."""
        prompts = [self.clips.take() for _ in range(count)]
        began = time.perf_counter()
        handles = [self.engine.submit(prompt, self.params) for prompt in prompts]
        for handle in handles:
            handle.result()
        spent = time.perf_counter() - began
        for prompt in prompts:
            self.clips.give_back(prompt)
        return spent

    def evenly(self, streams: float, seconds: float, prepare: bool = False) -> dict[str, Any]:
        """Send the clips of so many streams for a time, one after another.

        Args:
            prepare: prepare each of the prompts meanwhile, as a worker does.

        Returns:
            Latencies from when a clip is due, and whether the streams are sustained. It ends early
            if they cannot be.
        """
        count = max(1, int(streams * seconds / PERIOD))
        latencies: dict[int, float] = {}
        failed = threading.Event()

        def answer(number: int, due: float) -> None:
            prompt = self.clips.prepare() if prepare else self.clips.take()
            handle = self.engine.submit(prompt, self.params)
            while not handle.done:
                try:
                    handle.result(0.25)
                except TimeoutError:
                    if failed.is_set():
                        handle.cancel()
            if not failed.is_set():
                latencies[number] = time.perf_counter() - due
                if latencies[number] > 2 * MAX_P95:
                    failed.set()
            if not prepare:
                self.clips.give_back(prompt)

        began = time.perf_counter()
        with ThreadPoolExecutor(count) as threads:
            for number in range(count):
                due = began + number * PERIOD / streams
                time.sleep(max(0.0, due - time.perf_counter()))
                if failed.is_set():
                    break
                threads.submit(answer, number, due)
        if failed.is_set():
            return {"sustained": False, "clips": count, "later than, s": 2 * MAX_P95}
        ordered = [latencies[number] for number in sorted(latencies)]
        third = max(1, count // 3)
        middle, last = mean(ordered[third : 2 * third] or ordered), mean(ordered[-third:])
        ranked = sorted(ordered)
        p95 = ranked[int(0.95 * (count - 1))]
        return {
            "sustained": p95 <= MAX_P95 and last <= MAX_GROWTH * middle + 0.05,
            "clips": count,
            "p50 s": median(ranked),
            "p95 s": p95,
            "mean of the middle third s": middle,
            "mean of the last third s": last,
        }


def measure(
    device: torch.device,
    name: str = "2b",
    clips: int = 24,
    frames: int = 80,
    seconds: float = 20,
    budget: float = 130,
    fp8: bool = False,
    camera: bool = False,
) -> dict[str, Any]:
    """Return the streams that clips sent at once amount to, and how many are sustained.

    Args:
        clips: sent at once.
        frames: of a clip.
        seconds: for which a number of streams is tried.
        budget: seconds after which no further number is tried.
        fp8: the tower and the projector have weights and products in FP8.
        camera: the clips are those of cameras, of 720 lines, or two tiles on a CPU.
    """
    began = time.perf_counter()
    model = whole(SHAPES[name], device, torch.bfloat16 if device.type == "cuda" else torch.float32)
    if fp8:
        convert(model.vision.encoder, "fp8")
        convert(model.projector, "fp8")
    maker = Clips(model, SHAPES[name].image, frames)
    if camera:
        maker = CameraClips(model, 720 if device.type == "cuda" else 224, frames)
    params = SamplingParams(max_tokens=100, ignore_eos=True)
    positions = 500_000 if device.type == "cuda" else 20_000
    found: dict[str, Any] = {}
    with Engine(model, 256, positions) as engine:
        load, split = Load(engine, maker, params), Split(engine)
        with ThreadPoolExecutor(WORKERS) as threads:
            started = time.perf_counter()
            for prompt in threads.map(lambda _: maker.prepare(), range(clips)):
                maker.give_back(prompt)
            each = (time.perf_counter() - started) / clips
        found["preparing, on 12 threads"] = {"s a clip": each}
        reserved = torch.cuda.memory_reserved(device) if device.type == "cuda" else 0
        load.at_once(min(2, clips))  # captures the first graphs
        if device.type == "cuda":
            reserved = torch.cuda.memory_reserved(device) - reserved
            found["first graphs and workspaces"] = {"MB": reserved / 1e6}
        entry = found[f"{clips} clips at once"] = {}
        steps = engine.stats()["steps"]
        with split.measured(entry):
            spent = load.at_once(clips)
        steps = engine.stats()["steps"] - steps
        streams = clips * PERIOD / spent
        entry |= {"s": spent, "streams": streams, "ms a step": 1000 * spent / steps}
        low, high = 0, max(2, int(1.8 * streams) + 1)
        tried = max(1, int(1.2 * streams))
        while high - low > 1 and time.perf_counter() - began < budget:
            entry = {}
            with split.measured(entry):
                result = load.evenly(tried, seconds)
            found[f"{tried} streams"] = result | entry
            low, high = (tried, high) if result["sustained"] else (low, tried)
            tried = (max(low, int(0.6 * high)) + high) // 2 if low else int(0.8 * high) or 1
        found["sustained"] = {"streams": low, "not": high}
        if low:
            entry = {}
            with split.measured(entry):
                result = load.evenly(low, seconds / 2, prepare=True)
            found[f"{low} streams, preparing each clip"] = result | entry
        found["engine"] = dict(engine.stats())
        if device.type == "cuda":
            memory = torch.cuda.memory_stats(device)
            found["memory, GB"] = {
                "reserved": memory["reserved_bytes.all.peak"] / 1e9,
                "allocated": memory["allocated_bytes.all.peak"] / 1e9,
            }
    return found
