"""Where Triton's kernels run: on a GPU, unless they are missing or do not work there."""

import importlib
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from types import ModuleType

import torch
from torch import Tensor

from nvila_core.errors import first_line


class Switch:
    """Turns the kernels off, or on for a processor too, where Triton interprets them."""

    disabled = False
    interpreted = False

    @classmethod
    @contextmanager
    def off(cls) -> Iterator[None]:
        """Let PyTorch compute meanwhile."""
        before, cls.disabled = cls.disabled, True
        try:
            yield
        finally:
            cls.disabled = before

    @classmethod
    def turn_off(cls, device: torch.device, problem: str) -> None:
        """Let PyTorch compute in this process from now on, with a warning that says why."""
        cls.disabled = True
        warnings.warn(
            f"The Triton kernels do not work on {device} ({problem}), so PyTorch computes instead, "
            "which is slower: check that the versions of triton and torch match, and that a C "
            "compiler is installed.",
            RuntimeWarning,
            stacklevel=3,
        )


def try_kernels(device: torch.device) -> None:
    """Launch one kernel, and turn all of them off if it does not compile or run.

    It is the first thing that a model needs to know. The engine compares the numbers of a layer's
    kernels with PyTorch's (`nvila_core.engine.attention_choice`), and `quantize.check_kernel` those
    of quantized layers, with the kernels that write rows in FP8 for them.
    """
    x = torch.zeros(2, device=device)
    kernels = kernels_for(x)
    if kernels is None:
        return
    try:
        with torch.cuda.device_of(x):
            kernels.silu_mul[(1,)](x, torch.empty_like(x), 1, 1, 16)
    except Exception as error:  # which one depends on Triton, its compiler and the driver
        Switch.turn_off(device, f"{type(error).__name__}: {first_line(error)}")


def kernels_for(x: Tensor, module: str = "layer") -> ModuleType | None:
    """Return the kernels of a module of `nvila_core.kernels`, or None where PyTorch computes."""
    if Switch.disabled or not (x.is_cuda or Switch.interpreted):
        return None
    return load(module)


def power_of_two(size: int) -> int:
    """Return the smallest power of two that is at least `size`, as Triton's tensors need."""
    return 1 << (size - 1).bit_length()


@cache
def load(module: str) -> ModuleType | None:
    """Import a module of kernels; None without Triton."""
    try:
        return importlib.import_module(f"nvila_core.kernels.{module}")
    except ImportError:
        return None
