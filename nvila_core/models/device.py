"""Choose the device and dtype of a model, and the size of the engine's steps on it."""

from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch

from nvila_core.config import LanguageConfig
from nvila_core.errors import NVILAError
from nvila_core.models.packed_linear import can_pack

DTYPES = {
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
}


BFLOAT16_FEATURES = {"avx512_bf16", "amx_bf16"}
"""Features of x86 processors that multiply bfloat16."""


@dataclass(frozen=True)
class StepLimits:
    """Maximum numbers of LLM positions and of tiles to encode in a step of the engine."""

    max_num_batched_tokens: int
    step_tiles: int


STEP_LIMITS = {"cpu": StepLimits(128, 16), "cuda": StepLimits(2048, 32)}
"""By type of device: the fewest positions that keep it busy, so that steps end soon.

On two cores 192 positions were no better than 128 at 8 questions on one clip, and a first token
among 8 captions came 1.6 times as late as on an idle engine, 1.1 times with 128 (docs/engine.md). A
GPU multiplies a hundred times and more while it fetches a weight, so its steps are larger; the best
size has not been measured. There are as many tiles as those positions can need: 2048 positions are
17 tiles of 121 tokens with a line end each, for which 16 would not be enough. On a GPU that a large
model leaves little memory, `step_limits` lowers both.
"""

STEP_SHARE = 0.25
"""Share of a GPU's memory beside weights and cache that a step's positions take, at most. The rest
is for tiles, graphs and what the allocator cannot use."""

MIN_STEP_POSITIONS = 256


def choose_device(device: str | torch.device) -> torch.device:
    """Return the device of that name; "auto" is a GPU where there is one, else the CPU.

    Raises:
        NVILAError: the device is unknown or not available.
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        chosen = torch.device(device)
    except RuntimeError:
        raise NVILAError(f"Unknown device {device!r}: use 'auto', 'cpu' or 'cuda'.") from None
    if chosen.type == "cuda" and not torch.cuda.is_available():
        raise NVILAError("No CUDA device is available: use device 'cpu' or 'auto'.")
    return chosen


def choose_dtype(dtype: str | torch.dtype, device: torch.device) -> torch.dtype:
    """Return the dtype of that name; "auto" is bfloat16, or float32 on a CPU that lacks it.

    Raises:
        NVILAError: the model cannot compute in the dtype.
    """
    if dtype == "auto":
        fast = device.type != "cpu" or (multiplies_bfloat16() and can_pack(torch.bfloat16))
        return torch.bfloat16 if fast else torch.float32
    chosen = DTYPES.get(dtype) if isinstance(dtype, str) else dtype
    if chosen not in DTYPES.values():
        raise NVILAError(f"Unsupported dtype {dtype!r}: use 'auto' or one of {', '.join(DTYPES)}.")
    assert chosen is not None
    return chosen


@cache
def multiplies_bfloat16(cpuinfo: Path = Path("/proc/cpuinfo")) -> bool:
    """Return whether this processor has instructions that multiply bfloat16.

    Args:
        cpuinfo: file in which Linux lists the processor's features; where there is none, no.
    """
    try:
        lines = cpuinfo.read_text().splitlines()
    except OSError:
        return False
    features = next((line.split() for line in lines if line.startswith("flags")), [])
    return not BFLOAT16_FEATURES.isdisjoint(features)


def activation_bytes(config: LanguageConfig, dtype: torch.dtype) -> int:
    """Return the bytes that a step needs for each position: the widest layer's intermediate values.

    These are gate, up and their product; and the residual, its norm, queries, keys, values and the
    attention output, which together have about six times the hidden size.
    """
    return dtype.itemsize * (3 * config.intermediate_size + 6 * config.hidden_size)


def step_limits(device: torch.device, row_bytes: int = 0, free: int = 0) -> StepLimits:
    """Return the default limits of an engine's step.

    Args:
        device: its type decides where memory does not.
        row_bytes: see `activation_bytes`; 0: the memory is not looked at.
        free: bytes of a GPU that are free beside weights and cache.
    """
    limits = STEP_LIMITS.get(device.type, STEP_LIMITS["cpu"])
    if device.type != "cuda" or not row_bytes:
        return limits
    most = limits.max_num_batched_tokens
    fitting = int(free * STEP_SHARE) // row_bytes // MIN_STEP_POSITIONS * MIN_STEP_POSITIONS
    positions = min(most, max(MIN_STEP_POSITIONS, fitting))
    return StepLimits(positions, limits.step_tiles * positions // most)


def is_device_lost(error: BaseException) -> bool:
    """Return whether an exception means that the device's context is broken for good."""
    return isinstance(error, torch.AcceleratorError) and not isinstance(
        error, torch.OutOfMemoryError
    )
