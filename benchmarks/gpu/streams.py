"""Captions of many streams, 100 tokens each.

Either at the workload of NVIDIA VSS, clips of 80 new frames of a tile, or at that of cameras: 10
frames of a still scene in which something moves, at adaptive resolution. Another process sends them
(`load.py`); this one does what a model worker does (`slots.py`).
"""

import time
from collections.abc import Callable
from typing import Any

import torch
from formats import convert
from load import GIVE_UP, PERIOD, LoadProcess
from made import SHAPES, whole
from slots import Slots

from nvila_core import Engine, SamplingParams
from nvila_core.models.memory import MAX_SLOTS

PARTS = ("host, before the model", "tower, started", "tower, waited for", "chunk", "decode")


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

    def now(self) -> tuple[dict[str, float], dict[str, int], float]:
        """Return what has been spent so far."""
        return dict(self.seconds), dict(self.calls), self.cpu

    def since(
        self, before: tuple[dict[str, float], dict[str, int], float], spent: float
    ) -> dict[str, Any]:
        """Return the share of each part in `spent` seconds since `now`, and its milliseconds."""
        found: dict[str, Any] = {}
        seconds, calls, cpu = before
        for part in PARTS:
            share, count = self.seconds[part] - seconds[part], self.calls[part] - calls[part]
            found[f"{part}, share"] = share / spent
            found[f"{part}, ms"] = 1000 * share / max(1, count)
        known = sum(self.seconds[part] - seconds[part] for part in PARTS)
        found["idle and all else, share"] = 1 - known / spent
        found["CPU of the engine's thread, share"] = (self.cpu - cpu) / spent
        return found


def measure(
    device: torch.device,
    name: str = "2b",
    clips: int = 24,
    frames: int = 80,
    seconds: float = 20,
    budget: float = 130,
    fp8: bool = False,
    camera: bool = False,
    slots: int = MAX_SLOTS["cuda"],
) -> dict[str, Any]:
    """Return the streams that clips sent at once amount to, and how many are sustained.

    Args:
        clips: sent at once.
        frames: of a clip.
        seconds: for which a number of streams is tried.
        budget: seconds after which no further number is tried.
        fp8: the tower and the projector have weights and products in FP8.
        camera: the clips are those of cameras, of 720 lines, or two tiles on a CPU.
        slots: clips that are opened, or wait for the engine, at once; others wait outside.

    Returns:
        The results by name. Where the load was too slow, an entry has `right: False`.
    """
    began, on_card = time.perf_counter(), device.type == "cuda"
    side = SHAPES[name].image
    if camera:
        side = 720 if on_card else 2 * side
    params = SamplingParams(max_tokens=100, ignore_eos=True)
    positions = 500_000 if on_card else 20_000
    found: dict[str, Any] = {}
    with LoadProcess("camera" if camera else "new", frames, side, slots) as load:
        model = whole(SHAPES[name], device, torch.bfloat16 if on_card else torch.float32)
        if fp8:
            convert(model.vision.encoder, "fp8")
            convert(model.projector, "fp8")
        policy = "adaptive" if camera else "native"
        with Engine(model, 256, positions) as engine, Slots(engine, load, params, policy) as worker:
            run = Runs(worker, Split(engine), on_card)
            reserved = torch.cuda.memory_reserved(device) if on_card else 0
            worker.run(form="jpeg", count=min(2, clips))  # captures the first graphs
            if on_card:
                reserved = torch.cuda.memory_reserved(device) - reserved
                found["first graphs and workspaces"] = {"MB": reserved / 1e6}
            steps = engine.stats()["steps"]
            entry = found[f"{clips} clips at once"] = run(form="jpeg", count=clips)
            steps = engine.stats()["steps"] - steps
            del entry["sustained"]  # says nothing about clips that come together
            streams = clips * PERIOD / entry["s"]
            entry |= {"streams": streams, "ms a step": 1000 * entry["s"] / steps}
            low, high = 0, max(2, int(1.8 * streams) + 1)
            tried = max(1, int(1.2 * streams))
            while high - low > 1 and time.perf_counter() - began < budget:
                entry = found[f"{tried} streams"] = run.evenly("jpeg", tried, seconds)
                if "right" in entry:
                    break
                low, high = (tried, high) if entry["sustained"] else (low, tried)
                tried = (max(low, int(0.6 * high)) + high) // 2 if low else int(0.8 * high) or 1
            found["sustained"] = {"streams": low, "not": high}
            if low:
                label = f"{low} streams, of frames that need no opening"
                found[label] = run.evenly("pixels", low, seconds / 2)
            found["engine"] = dict(engine.stats())
        if on_card:
            memory = torch.cuda.memory_stats(device)
            found["memory, GB"] = {
                "reserved": memory["reserved_bytes.all.peak"] / 1e9,
                "allocated": memory["allocated_bytes.all.peak"] / 1e9,
            }
    return found


class Runs:
    """Runs of the load, each with where the engine's time went.

    Args:
        worker: answers the clips.
        split: times the engine.
        on_card: whether a load that is too slow makes a run worthless; a rehearsal is so anyway.
    """

    def __init__(self, worker: Slots, split: Split, on_card: bool) -> None:
        self._worker, self._split, self._on_card = worker, split, on_card

    def __call__(self, **order: Any) -> dict[str, Any]:
        """Send clips; see `Load.run`. `right` is False where the load was too slow."""
        before = self._split.now()
        found = self._worker.run(**order)
        if self._on_card and not found["load kept up"]:
            found["right"] = False
        return found | self._split.since(before, found["s"])

    def evenly(self, form: str, streams: int, seconds: float) -> dict[str, Any]:
        """Send the clips of so many streams for a time, one after another."""
        count = max(1, int(streams * seconds / PERIOD))
        return self(form=form, count=count, streams=streams, give_up=GIVE_UP)
