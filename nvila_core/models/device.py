"""Where a model runs, in which numbers, and in steps of which size."""

from dataclasses import dataclass

import torch

from nvila_core.errors import NVILAError

DTYPES = {
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
}


@dataclass(frozen=True)
class StepSize:
    """Most LLM positions, and most tiles through the vision tower, in a step of the engine."""

    tokens: int
    tiles: int


STEP_SIZES = {"cpu": StepSize(128, 16), "cuda": StepSize(2048, 32)}
"""By kind of device: as few positions as keep it busy, because all others wait for a step's end.

On two cores 192 positions were no better than 128 at 8 questions on one clip, and a first token
among 8 captions came 1.6 times as late as on an idle engine, 1.1 times with 128 (docs/engine.md). A
GPU multiplies a hundred times and more while it fetches a weight, so its steps are larger; how
large is best has not been measured. Tiles are as many as those positions can ask for: 2048 are 17
tiles of 121 tokens with a line end each, so 16 would hold them up.
"""


def choose_device(device: str | torch.device) -> torch.device:
    """The device that is asked for.

    Raises:
        NVILAError: it is unknown or not there.
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        place = torch.device(device)
    except RuntimeError:
        raise NVILAError(
            f"The device {device!r} is unknown; use 'auto', 'cpu' or 'cuda'."
        ) from None
    if place.type == "cuda" and not torch.cuda.is_available():
        raise NVILAError("No CUDA device is here; use device 'cpu' or 'auto'.")
    return place


def choose_dtype(dtype: str | torch.dtype, device: torch.device) -> torch.dtype:
    """The dtype that is asked for.

    Raises:
        NVILAError: it is not one the model can compute in.
    """
    if dtype == "auto":
        return torch.float32 if device.type == "cpu" else torch.bfloat16
    kind = DTYPES.get(dtype) if isinstance(dtype, str) else dtype
    if kind not in DTYPES.values():
        raise NVILAError(
            f"The dtype {dtype!r} is not supported; use 'auto' or one of {', '.join(DTYPES)}."
        )
    assert kind is not None
    return kind


def step_size(device: torch.device) -> StepSize:
    """How large the engine's steps are on a device where nobody says otherwise."""
    return STEP_SIZES.get(device.type, STEP_SIZES["cpu"])
