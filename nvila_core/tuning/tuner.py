"""Tune the engine settings for a model on this machine, in about a minute.

The tuner first makes each choice separately: dtype and threads by the parts of a small request,
then the tiles, positions and sequences of a step by the cost of one of each. It then compares all
choices together with the defaults, alternating between two engines that answer real requests. Only
this comparison decides: the defaults stay unless the new settings are faster.
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

from nvila_core.checkpoint.footprint import free_memory, main_memory
from nvila_core.engine.engine import BLOCK_SIZE
from nvila_core.errors import NVILAError
from nvila_core.generation.sampling import SamplingParams
from nvila_core.media.video import Video
from nvila_core.model import NVILA
from nvila_core.models.memory import CACHE_SHARE
from nvila_core.models.quantize import weight_bytes
from nvila_core.tuning.compiled import compile_layers
from nvila_core.tuning.settings_file import EngineSettings, Tuning, check_writable, write_settings
from nvila_core.tuning.step_timer import Load, StepTimer, cheapest, sweep

SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
"""Tiles and sequences of a step to measure."""
TOKEN_BATCHES = (64, 128, 192, 256, 384, 512, 1024, 2048, 4096)
"""Prompt positions of a step to measure."""
LOADS = (Load(8, 32), Load(8, 8), Load(2, 8), Load(1, 4))
"""Requests of the final comparison: it uses the first one that fits into the time."""
MIN_GAIN = 1.03
"""Median gain that new settings need to be taken."""
MIN_DTYPE_GAIN = 1.2
"""Gain that another dtype needs to be taken: it changes answers slightly."""
MIN_POSITIONS, MAX_POSITIONS = 256, 2**20
"""Limits of the key-value cache, in positions."""


class Tuner:
    """Searches the settings for one model on one device.

    Args:
        load: loads the model in a dtype.
        seconds: approximate duration of tuning, without loading.
        say: receives each line of progress.
        path: path of the checkpoint, to try torch.compile in a separate process; None: do not try.
        quantize: quantization of the model that `load` returns.

    Raises:
        NVILAError: `seconds` is not more than 0.
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
            raise NVILAError(f"The seconds of tuning must be more than 0, not {seconds:g}.")
        self.load, self.seconds, self.path = load, seconds, path
        self.notes: list[str] = []
        self._say = say
        self.model = load("auto")
        self.defaults = EngineSettings.default(self.model.device, quantize)
        self.cuda = self.model.device.type == "cuda"

    def run(self) -> Tuning:
        """Measure, compare and return the settings to use."""
        threads = torch.get_num_threads()
        try:
            return self._run()
        finally:
            torch.set_num_threads(threads)

    def _run(self) -> Tuning:
        budget = self._positions(self.model)
        if budget < self.defaults.kv_cache_tokens:
            self.defaults = replace(self.defaults, kv_cache_tokens=budget)
            self._note(
                "Cache of keys and values: the default does not fit into the free memory, so "
                f"{budget} tokens are used."
            )
        found = self.defaults
        model, timer = self.model, self._timer(self.model)
        if not self.cuda:
            found = self._threads(found, timer)
            found, model = self._dtype(found, timer)
            timer = timer if model is self.model else self._timer(model)
        use_threads(found)
        found = self._sizes(found, timer)
        if self.path is not None and self.seconds >= 20:
            found, model = self._compile(found, model)
        if found == self.defaults:
            return Tuning(found, 1.0, [], self.notes)
        load = self._affordable(timer, found)
        pairs = self._compare(found, model, load)
        if decided(pairs):
            room = self._useful_positions(found, budget)
            size = room * model.config.kv_size * model.dtype.itemsize / 2**20
            self._note(f"Cache of keys and values: {room} tokens, {size:.0f} MiB.")
            return Tuning(replace(found, kv_cache_tokens=room), median(pairs), pairs, self.notes)
        self._note(
            f"All changes together: {median(pairs):.2f} times the requests per second of the "
            "defaults, which is not clearly better."
        )
        return Tuning(self.defaults, 1.0, pairs, self.notes)

    def _useful_positions(self, found: EngineSettings, budget: int) -> int:
        """Return the positions of the cache: the default, or what all sequences together can use.

        Requests that wait and earlier ones whose beginnings are reused get as much again.
        """
        longest = min(self.model.max_model_len, 2 * Load().positions(self.model))
        wanted = 2 * found.max_num_seqs * longest
        return min(budget, max(self.defaults.kv_cache_tokens, wanted))

    def _timer(self, model: NVILA) -> StepTimer:
        return StepTimer(model, max(4096, self._positions(model) // 8))

    def _positions(self, model: NVILA) -> int:
        """Return the positions of the key-value cache that memory has room for."""
        free, _ = free_memory(model.device)
        room = CACHE_SHARE[model.device.type] * free / (model.config.kv_size * model.dtype.itemsize)
        return max(MIN_POSITIONS, min(MAX_POSITIONS, int(room) // 1024 * 1024))

    def _threads(self, found: EngineSettings, timer: StepTimer) -> EngineSettings:
        default = torch.get_num_threads()
        costs: dict[int, float] = {}
        for threads in sorted({default, max(1, default // 2)}, reverse=True):
            torch.set_num_threads(threads)
            costs[threads] = self._small_request(timer)
        torch.set_num_threads(default)
        best = min(costs, key=lambda threads: costs[threads])
        self._note(f"Threads: {best}. A small request takes {format_costs(costs, 's')}.")
        return found if best == default else replace(found, threads=best)

    def _dtype(self, found: EngineSettings, timer: StepTimer) -> tuple[EngineSettings, NVILA]:
        if self.model.dtype is not torch.float32:
            self._note("Dtype: bfloat16, because this processor has instructions for it.")
            return found, self.model
        if main_memory()[0] < 2 * weight_bytes(self.model.language):
            self._note("Dtype: bfloat16 was not tried: a second model does not fit into memory.")
            return found, self.model
        use_threads(found)
        try:
            other = self.load("bfloat16")
        except NVILAError as error:  # quantized layers have kernels for some dtypes only
            self._note(f"Dtype: bfloat16 cannot be used. {error}")
            return found, self.model
        costs = {
            "float32": self._small_request(timer),
            "bfloat16": self._small_request(self._timer(other)),
        }
        taken = costs["float32"] / costs["bfloat16"] >= MIN_DTYPE_GAIN
        chosen = "bfloat16" if taken else "float32"
        self._note(f"Dtype: {chosen}. A small request takes {format_costs(costs, 's')}.")
        return (replace(found, dtype="bfloat16"), other) if taken else (found, self.model)

    def _small_request(self, timer: StepTimer) -> float:
        """Return the seconds for a small request, by parts that are quick to time."""
        return timer.request(Load(1, 8), 1, 32, min(4, timer.max_sequences()))

    def _sizes(self, found: EngineSettings, timer: StepTimer) -> EngineSettings:
        seconds = self.seconds / 10
        tiles = sweep(timer.tiles, SIZES, seconds)
        # At most twice the default, even if more is cheaper: all requests wait for a step to end.
        limit = min(2 * self.defaults.max_num_batched_tokens, timer.blocks * BLOCK_SIZE)
        positions = sweep(timer.prefill, [n for n in TOKEN_BATCHES if n <= limit], seconds)
        fitting = [n for n in SIZES if n <= timer.max_sequences()]
        sequences = sweep(timer.decode, fitting, seconds)
        chosen = replace(
            found,
            step_tiles=cheapest(tiles, 0.05, found.step_tiles),
            max_num_batched_tokens=cheapest(positions, 0.03, found.max_num_batched_tokens),
            max_num_seqs=max(8, cheapest(sequences, 0.05, found.max_num_seqs)),
        )
        for name, size, one, costs in (
            ("Tiles in a step", chosen.step_tiles, "tile", tiles),
            ("Prompt tokens in a step", chosen.max_num_batched_tokens, "token", positions),
            ("Requests at once", chosen.max_num_seqs, "answer token", sequences),
        ):
            spent = format_costs({k: 1000 * c for k, c in costs.items()}, "ms")
            self._note(f"{name}: {size}. One {one} takes {spent}.")
        return chosen

    def _compile(self, found: EngineSettings, model: NVILA) -> tuple[EngineSettings, NVILA]:
        ratio = self._compile_gain(found)
        if ratio is None or ratio < MIN_GAIN:
            return found, model
        try:
            compiled = self.load(found.dtype)
            compile_layers(compiled)
        except (NVILAError, MemoryError, torch.OutOfMemoryError):
            self._note("Compiling: not used, because a second model does not fit into memory.")
            return found, model
        return replace(found, compile=True), compiled

    def _compile_gain(self, found: EngineSettings) -> float | None:
        """Return how many times as fast compiled layers are; None if they do not work in time.

        They are tried in a separate process, which can be stopped.
        """
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
            self._note(f"Compiling: not used, it takes longer than {self.seconds / 3:.0f} s.")
            return None
        lines = done.stdout.splitlines()
        report: dict[str, Any] = json.loads(lines[-1]) if lines else {}
        if "plain" not in report:
            self._note(f"Compiling: not used. {report.get('error', 'It failed.')}")
            return None
        ratio = float(report["plain"] / report["compiled"])
        used = "used" if ratio >= MIN_GAIN else "not used, because it is not faster"
        plain, compiled = report["plain"], report["compiled"]
        self._note(
            f"Compiling: {used}. A small request takes {plain:.3g} s without and {compiled:.3g} s "
            "with it."
        )
        return ratio

    def _affordable(self, timer: StepTimer, found: EngineSettings) -> tuple[Load, int]:
        """Return a request, and how many of it take a twelfth of the time."""
        for load in LOADS:
            seconds = timer.request(
                load,
                found.step_tiles,
                found.max_num_batched_tokens,
                min(8, timer.max_sequences()),
            )
            count = min(2 * found.max_num_seqs, int(self.seconds / 12 / seconds))
            if count >= 4:
                return load, count
        return LOADS[-1], 2

    def _compare(self, found: EngineSettings, model: NVILA, load: tuple[Load, int]) -> list[float]:
        """Return ratios of the defaults' time to that of `found`, alternating which goes first."""
        random = np.random.default_rng(0)
        kind, count = load
        self._note(
            f"Comparison with the defaults: {count} requests of {kind.frames} frame"
            f"{'' if kind.frames == 1 else 's'} and {kind.answer} answer tokens at once."
        )
        prompts = [noise_clip(self.model, kind.frames, random) for _ in range(count)]
        # Both sides get a cache of the same size: a larger one is better, and both must fit.
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
            self._say(f"  {pairs[-1]:.2f} times the requests per second of the defaults")
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
        model: folder or hub id of the checkpoint.
        device: "cpu", "cuda", "cuda:1", or "auto": a GPU if there is one.
        seconds: approximate duration of tuning, without loading.
        out: settings file to write.
        quantize: "int8" or "int4", as the model will be used; None: full precision.
        name: name of the model in the file; default: `model`.
        base: other settings to keep in the file.
        say: receives each line of progress.

    Raises:
        NVILAError: the model cannot be used on this machine, or `out` cannot be written.
    """
    check_writable(out)

    def load(dtype: str) -> NVILA:
        return NVILA.from_pretrained(model, device, dtype, quantize=quantize)

    tuning = Tuner(load, seconds, say, model, quantize).run()
    write_settings(out, tuning, name or model, device, base)
    return tuning


def decided(pairs: list[float]) -> bool:
    """Return whether the ratios show a gain that is more than chance."""
    return median(pairs) >= MIN_GAIN and sum(ratio > 1 for ratio in pairs) > 0.7 * len(pairs)


def use_threads(settings: EngineSettings) -> None:
    """Set PyTorch's number of threads to that of the settings, if they have one."""
    if settings.threads:
        torch.set_num_threads(settings.threads)


def noise_clip(model: NVILA, frames: int, random: np.random.Generator) -> Any:
    """Return a prepared prompt about frames of noise."""
    size = model.config.vision.image_size
    shape = (size, size, 3)
    pictures = [random.integers(0, 256, shape, dtype=np.uint8) for _ in range(frames)]
    return model.prepare([Video(pictures), "What happens?"], num_video_frames=frames)


def seconds_for(settings: EngineSettings, model: NVILA, prompts: list[Any], answer: int) -> float:
    """Return the seconds that a new engine takes to answer all prompts at once."""
    threads = torch.get_num_threads()
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
        torch.set_num_threads(threads)


def format_costs(costs: Mapping[Any, float], unit: str) -> str:
    """Format costs by size: `1.25 ms with 32, 1.2 ms with 64`."""
    return ", ".join(f"{cost:.3g} {unit} with {key}" for key, cost in costs.items())
