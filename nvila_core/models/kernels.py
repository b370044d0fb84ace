"""Where Triton's kernels run: on a GPU, unless they are missing or have failed their check."""

from functools import cache
from types import ModuleType

from torch import Tensor


class Switch:
    """Turns the kernels off, or on for a processor too, where Triton interprets them."""

    disabled = False
    interpreted = False


def kernels_for(x: Tensor) -> ModuleType | None:
    """Return the kernels of `nvila_core.kernels.layer`, or None where PyTorch computes."""
    if Switch.disabled or not (x.is_cuda or Switch.interpreted):
        return None
    return load()


@cache
def load() -> ModuleType | None:
    """Import the kernels; None without Triton."""
    try:
        from nvila_core.kernels import layer
    except ImportError:
        return None
    return layer
