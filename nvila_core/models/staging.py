"""Copy a step's numbers to the device of the model and back: all of them in one copy."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

ALIGNMENT = 64
"""Bytes: every array begins at a multiple, as vector loads and Triton's specialization like it."""

_DTYPES = {
    "uint8": torch.uint8,
    "int32": torch.int32,
    "int64": torch.int64,
    "float32": torch.float32,
    "float64": torch.float64,
}


def stage(arrays: Sequence[NDArray[Any]], device: torch.device) -> list[Tensor]:
    """Copy arrays to a device, by one asynchronous copy from pinned memory.

    Returns:
        A tensor for each array, with its shape and dtype: views of one tensor. On a CPU they share
        the arrays' memory.
    """
    if device.type == "cpu":
        return [torch.from_numpy(np.ascontiguousarray(array)) for array in arrays]
    sizes = [-(-array.nbytes // ALIGNMENT) * ALIGNMENT for array in arrays]
    host = torch.empty(sum(sizes), dtype=torch.uint8, pin_memory=device.type == "cuda")
    view, start, places = host.numpy(), 0, []
    for array, size in zip(arrays, sizes, strict=True):
        view[start : start + array.nbytes] = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
        places.append(slice(start, start + array.nbytes))
        start += size
    there = host.to(device, non_blocking=True)
    return [
        there[place].view(_DTYPES[array.dtype.name]).view(array.shape)
        for place, array in zip(places, arrays, strict=True)
    ]


class Fetch:
    """Whole numbers on their way from a device.

    Args:
        numbers: [N]; may be overwritten by what the device computes later.
    """

    def __init__(self, numbers: Tensor) -> None:
        self._arrived: Any = None
        if numbers.device.type != "cuda":
            self._host = numbers.clone()
            return
        self._host = torch.empty(numbers.shape, dtype=numbers.dtype, pin_memory=True)
        self._host.copy_(numbers, non_blocking=True)
        self._arrived = torch.cuda.Event()
        self._arrived.record(torch.cuda.current_stream(numbers.device))

    def read(self) -> list[int]:
        """Return the numbers, when the device has computed them: the only wait of a step."""
        if self._arrived is not None:
            self._arrived.synchronize()
        return [int(number) for number in self._host.tolist()]
