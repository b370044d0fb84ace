"""Activation functions by the names that checkpoints use."""

from collections.abc import Callable
from functools import partial

from torch import Tensor
from torch.nn import functional as F

Activation = Callable[[Tensor], Tensor]

GELU_TANH: Activation = partial(F.gelu, approximate="tanh")

_OWN: dict[str, Activation] = {
    "gelu": F.gelu,
    "gelu_pytorch_tanh": GELU_TANH,
    "relu": F.relu,
    "silu": F.silu,
}


def activation_function(name: str) -> Activation:
    """Return the function that transformers means by `hidden_act: name`.

    Raises:
        KeyError: transformers has no such activation.
    """
    if name in _OWN:
        return _OWN[name]
    from transformers.activations import ACT2FN  # slow: this import takes seconds

    function: Activation = ACT2FN[name]
    return function
