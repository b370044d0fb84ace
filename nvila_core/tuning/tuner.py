"""What suits this machine and this model, measured in about a minute.

First every choice alone: dtype and threads by a small request's parts, then how many tiles,
positions and sequences a step should have, by what one of each costs. Then all choices together
against the defaults, in turns, with real requests on two engines. Only that decides: where the
defaults are as good, they stay.
"""

import json
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch

from nvila_core.checkpoint.footprint import main_memory
from nvila_core.engine.engine import BLOCK_SIZE
from nvila_core.errors import NVILAError
from nvila_core.generation.sampling import SamplingParams
from nvila_core.media.video import Video
from nvila_core.model import NVILA
from nvila_core.models.quantize import weight_bytes
from nvila_core.tuning.compiled import compile_layers
from nvila_core.tuning.settings_file import EngineSettings, Tuning, check_writable, write_settings
from nvila_core.tuning.step_timer import Load, StepTimer, cheapest, sweep

SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
STEPS = (64, 128, 192, 256, 384, 512, 1024, 2048, 4096)
LOADS = (Load(8, 32), Load(8, 8), Load(2, 8), Load(1, 4))
"""What both sides are compared with: the first that is small enough for the time there is."""

BETTER = 1.03
"""How much faster the settings must be to be taken, and not for luck."""

ANOTHER_DTYPE = 1.2
"""How much faster another dtype must be: it changes answers a little."""

MOST_POSITIONS = 2**20
SHARE_OF_MEMORY = {"cpu": 0.25, "cuda": 0.85}
"""Of what is free with the model loaded, for keys and values."""


class Tuner:
    """Searches for one model on one device.

    Args:
        load: loads the model in a dtype.
        seconds: to take, about, loading not counted.
        say: is told what is found as it is found.
        path: of the checkpoint, for trying torch.compile in a process of its own; None: not tried.
        quantize: as what `load` loads is quantized.
    """

    def __init__(
        self,
        load: Callable[[str], NVILA],
        seconds: float,
        say: Callable[[str], None] = lambda line: None,
        path: str | None = None,
        quantize: str | None = None,
    ) -> None:
        if not seconds > 0:
            raise NVILAError(f"seconds must be more than 0, not {seconds:g}.")
        self.load, self.seconds, self.path = load, seconds, path
        self.notes: list[str] = []
        self._say = say
        self.model = load("auto")
        self.defaults = EngineSettings.default(self.model.device, quantize)
        self.cuda = self.model.device.type == "cuda"

    def run(self) -> Tuning:
        """Measure and decide."""
        threads = torch.get_num_threads()
        try:
            return self._run()
        finally:
            torch.set_num_threads(threads)

    def _run(self) -> Tuning:
        budget = self._positions(self.model)
        if budget < self.defaults.kv_cache_tokens:
            self.defaults = replace(self.defaults, kv_cache_tokens=budget)
            self._note(f"the default kv_cache_tokens does not fit: {budget} instead")
        found = replace(self.defaults, kv_cache_tokens=budget)
        model, timer = self.model, self._timer(self.model)
        if not self.cuda:
            found = self._threads(found, timer)
            found, model = self._dtype(found, timer)
            timer = timer if model is self.model else self._timer(model)
        use_threads(found)
        found = self._sizes(found, timer)
        if self.path is not None and self.seconds >= 20:
            found, model = self._compile(found, model)
        if found == replace(self.defaults, kv_cache_tokens=budget):
            return Tuning(found, 1.0, [], self.notes)
        load = self._affordable(timer, found)
        pairs = self._compare(found, model, load)
        if decided(pairs):
            return Tuning(found, median(pairs), pairs, self.notes)
        self._note(f"together they are {median(pairs):.2f} times as fast: not better for sure")
        return Tuning(replace(self.defaults, kv_cache_tokens=budget), 1.0, pairs, self.notes)

    def _timer(self, model: NVILA) -> StepTimer:
        return StepTimer(model, max(4096, self._positions(model) // 8))

    def _positions(self, model: NVILA) -> int:
        """Positions of keys and values that there is room for."""
        free = torch.cuda.mem_get_info(model.device)[0] if self.cuda else main_memory()[0]
        room = (
            SHARE_OF_MEMORY[model.device.type]
            * free
            / (model.config.kv_size * model.dtype.itemsize)
        )
        return max(256, min(MOST_POSITIONS, int(room) // 1024 * 1024))

    def _threads(self, found: EngineSettings, timer: StepTimer) -> EngineSettings:
        most = torch.get_num_threads()
        costs: dict[int, float] = {}
        for threads in sorted({most, max(1, most // 2)}, reverse=True):
            torch.set_num_threads(threads)
            costs[threads] = self._small(timer)
        torch.set_num_threads(most)
        best = min(costs, key=lambda threads: costs[threads])
        self._note(f"threads {best}: {compared(costs, 's')}")
        # As many as there are is the default.
        return found if best == most else replace(found, threads=best)

    def _dtype(self, found: EngineSettings, timer: StepTimer) -> tuple[EngineSettings, NVILA]:
        if main_memory()[0] < 2 * weight_bytes(self.model.language):
            self._note("no room for the model in another dtype: not tried")
            return found, self.model
        use_threads(found)
        try:
            other = self.load("bfloat16")
        except NVILAError as error:  # quantized layers have kernels for some dtypes only
            self._note(f"dtype bfloat16: {error}")
            return found, self.model
        costs = {"float32": self._small(timer), "bfloat16": self._small(self._timer(other))}
        faster = costs["float32"] / costs["bfloat16"]
        taken = faster >= ANOTHER_DTYPE
        self._note(f"dtype {'bfloat16' if taken else 'float32'}: {compared(costs, 's')}")
        return (replace(found, dtype="bfloat16"), other) if taken else (found, self.model)

    def _small(self, timer: StepTimer) -> float:
        """Seconds for a request by its parts, of little things that are quick to time."""
        return timer.request(Load(1, 8), 1, 32, min(4, timer.max_sequences()))

    def _sizes(self, found: EngineSettings, timer: StepTimer) -> EngineSettings:
        each = self.seconds / 10
        tiles = sweep(timer.tiles, SIZES, each)
        # No more than twice the usual: cheaper or not, everybody waits for the end of a step.
        most = min(2 * self.defaults.max_num_batched_tokens, timer.blocks * BLOCK_SIZE)
        steps = [s for s in STEPS if s <= most]
        reading = sweep(timer.reading, steps, each)
        sequences = sweep(timer.generating, [s for s in SIZES if s <= timer.max_sequences()], each)
        for name, costs in (
            ("a tile, by tiles a step", tiles),
            ("a position, by positions a step", reading),
            ("a token, by sequences a step", sequences),
        ):
            self._note(f"{name}: {compared({k: 1000 * c for k, c in costs.items()}, 'ms')}")
        return replace(
            found,
            step_tiles=cheapest(tiles, 0.05, found.step_tiles),
            max_num_batched_tokens=cheapest(reading, 0.03, found.max_num_batched_tokens),
            max_num_seqs=max(8, cheapest(sequences, 0.05, found.max_num_seqs)),
        )

    def _compile(self, found: EngineSettings, model: NVILA) -> tuple[EngineSettings, NVILA]:
        ratio = self._compile_gain(found)
        if ratio is None or ratio < BETTER:
            return found, model
        try:
            compiled = self.load(found.dtype)
            compile_layers(compiled)
        except (NVILAError, MemoryError, torch.OutOfMemoryError):
            self._note("compile: there was no room for it")
            return found, model
        return replace(found, compile=True), compiled

    def _compile_gain(self, found: EngineSettings) -> float | None:
        """How much faster compiled layers are, tried in another process, which can be stopped."""
        assert self.path is not None
        command = [sys.executable, "-m", "nvila_core.tuning.compiled", self.path]
        command += ["--device", str(self.model.device), "--dtype", found.dtype]
        command += ["--threads", str(found.threads or torch.get_num_threads())]
        command += ["--quantize", found.quantize] if found.quantize else []
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, timeout=self.seconds / 3, check=False
            )
        except subprocess.TimeoutExpired:
            self._note(f"compile: not done within {self.seconds / 3:.0f} s, so not used")
            return None
        lines = done.stdout.splitlines()
        told: dict[str, Any] = json.loads(lines[-1]) if lines else {}
        if "plain" not in told:
            self._note(f"compile: {told.get('error', 'it does not work here')}")
            return None
        self._note(f"compile: {compared(told, 's')}")
        return float(told["plain"] / told["compiled"])

    def _affordable(self, timer: StepTimer, found: EngineSettings) -> tuple[Load, int]:
        """A load, and how many requests, that takes a twelfth of the time."""
        slice_ = self.seconds / 12
        for load in LOADS:
            each = timer.request(
                load,
                found.step_tiles,
                found.max_num_batched_tokens,
                min(8, timer.max_sequences()),
            )
            count = min(2 * found.max_num_seqs, int(slice_ / each))
            if count >= 4:
                return load, count
        return LOADS[-1], 2

    def _compare(self, found: EngineSettings, model: NVILA, load: tuple[Load, int]) -> list[float]:
        """Ratios of the defaults' time to that of `found`; the sides take turns in who is first."""
        random = np.random.default_rng(0)
        kind, count = load
        self._note(f"compared on {count} requests of {kind.frames} frames and {kind.answer} tokens")
        prompts = [noise_clip(self.model, kind.frames, random) for _ in range(count)]
        # The size of the cache is not compared: more of it is better, and both must fit in turn.
        tuned = replace(found, kv_cache_tokens=self.defaults.kv_cache_tokens)
        sides = ((self.defaults, self.model), (tuned, model))
        for settings, own in sides:
            seconds_for(settings, own, prompts[:1], 1)
        ends = time.perf_counter() + self.seconds / 2
        pairs: list[float] = []
        while len(pairs) < 3 or (time.perf_counter() < ends and len(pairs) < 11):
            order = sides if len(pairs) % 2 else sides[::-1]
            spent = [seconds_for(s, m, prompts, kind.answer) for s, m in order]
            plain, other = spent if len(pairs) % 2 else spent[::-1]
            pairs.append(plain / other)
            self._say(f"  {pairs[-1]:.2f} times the requests a second of the defaults")
        return pairs

    def _note(self, line: str) -> None:
        self.notes.append(line)
        self._say(line)


def tune_to_file(
    model: str,
    device: str,
    seconds: float,
    out: Path,
    *,
    quantize: str | None = None,
    name: str | None = None,
    base: Mapping[str, Any] | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> Tuning:
    """Tune a checkpoint and write the settings file.

    Args:
        model: folder or hub id.
        quantize: "int8" or "int4", as the model will be used; None: full precision.
        name: what the file calls the model; default: `model`.
        base: other settings that the file is to keep.

    Raises:
        NVILAError: the model cannot be used here, or `out` cannot be written.
    """
    check_writable(out)

    def load(dtype: str) -> NVILA:
        return NVILA.from_pretrained(model, device, dtype, quantize=quantize)

    tuning = Tuner(load, seconds, say, model, quantize).run()
    write_settings(out, tuning, name or model, device, base)
    return tuning


def decided(pairs: list[float]) -> bool:
    """Whether the ratios say that it is better, beyond luck."""
    return median(pairs) >= BETTER and sum(ratio > 1 for ratio in pairs) > 0.7 * len(pairs)


def use_threads(settings: EngineSettings, every: int = 0) -> None:
    """Have PyTorch use as many threads as the settings say, or `every`."""
    if settings.threads or every:
        torch.set_num_threads(settings.threads or every)


def noise_clip(model: NVILA, frames: int, random: np.random.Generator) -> Any:
    """A prepared prompt about frames of noise."""
    size = model.config.vision.image_size
    shape = (size, size, 3)
    pictures = [random.integers(0, 256, shape, dtype=np.uint8) for _ in range(frames)]
    return model.prepare([Video(pictures), "What happens?"], num_video_frames=frames)


def seconds_for(settings: EngineSettings, model: NVILA, prompts: list[Any], answer: int) -> float:
    """How long a new engine takes for all prompts at once."""
    every = torch.get_num_threads()
    use_threads(settings)
    try:
        engine = settings.engine(model)
        params = SamplingParams(max_tokens=answer, ignore_eos=True)
        began = time.perf_counter()
        handles = [engine.submit(prompt, params) for prompt in prompts]
        while engine.step():
            pass
        for handle in handles:
            handle.result()
        return time.perf_counter() - began
    finally:
        torch.set_num_threads(every)


def compared(costs: Mapping[Any, float], unit: str) -> str:
    """`32 1.25 ms, 64 1.2 ms`."""
    return ", ".join(f"{key} {cost:.3g} {unit}" for key, cost in costs.items())
