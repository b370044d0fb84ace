"""Where a model runs, and in which numbers."""

import torch

from .errors import NVILAError

DTYPES = {
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
}


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
