"""Linear layers whose weights lie in memory as oneDNN reads them: for few rows at a time on a CPU.

Measured: MKL, which `nn.Linear` calls for float32, rearranges the whole weight at every call. With
one row it does not, and with hundreds it does not matter, but 2 to 32 rows, which is what a step
of generating is, wait for memory up to twice as long as they need to.
"""

from functools import cache

import torch
from torch import Tensor, nn
from torch.nn.utils import skip_init

OPERATIONS = torch.ops.mkldnn


class PackedLinear(nn.Module):
    """Stands in for an `nn.Linear` in float32 on a CPU: [..., inputs] to [..., outputs]."""

    weight: Tensor
    bias: Tensor | None

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        weight = OPERATIONS._reorder_linear_weight(linear.weight.detach(), None)
        self.register_buffer("weight", weight, persistent=False)
        bias = None if linear.bias is None else linear.bias.detach()
        self.register_buffer("bias", bias, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """x W^T + bias."""
        out: Tensor = OPERATIONS._linear_pointwise(x, self.weight, self.bias, "none", [], "")
        return out


def pack_linears(module: nn.Module) -> int:
    """Put a PackedLinear in the place of every linear layer inside `module` that it can replace.

    Returns:
        How many were replaced: none where the device, the dtype or this PyTorch is not for it.
    """
    packed = 0
    for name, linear in list(module.named_modules()):
        weight = linear.weight if type(linear) is nn.Linear else None
        if weight is None or weight.device.type != "cpu" or weight.dtype != torch.float32:
            continue
        if not available():
            break
        module.set_submodule(name, PackedLinear(linear))
        packed += 1
    return packed


@cache
@torch.inference_mode()
def available() -> bool:
    """Whether the operations, which are not part of PyTorch's public API, do what they should."""
    linear = skip_init(nn.Linear, 24, 40)  # drawing weights would disturb everybody's seed
    linear.weight.copy_(torch.linspace(-1, 1, 24 * 40).cos().reshape(40, 24))
    linear.bias.copy_(torch.linspace(0, 1, 40))
    x = torch.linspace(-1, 1, 3 * 24).sin().reshape(3, 24)
    try:
        return bool(torch.allclose(PackedLinear(linear)(x), linear(x), rtol=1e-4, atol=1e-5))
    except (AttributeError, NotImplementedError, RuntimeError, TypeError):
        return False
