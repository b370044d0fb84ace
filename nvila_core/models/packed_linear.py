"""Linear layers with weights in the memory layout that suits a few rows at a time on a CPU.

Measured: the libraries that `nn.Linear` calls on a CPU (MKL for float32, oneDNN for bfloat16)
rearrange the whole weight at every call. With hundreds of rows the cost is negligible, but 2 to 32
rows, the size of a decoding step, take up to twice as long as the memory traffic requires.

oneDNN compiles a kernel for each number of rows, 0.6 to 1.2 MB of code in a millisecond, and keeps
1,024 of them. Steps of an engine have any number of rows, so rows of zeros are added up to one of a
few numbers: at most an eighth.

A call of oneDNN takes 14 us before it multiplies. So small weights in float32 are kept transposed
instead, as MKL multiplies them without rearranging.
"""

from functools import cache

import torch
from torch import Tensor, nn
from torch.nn import functional as F

MKLDNN = torch.ops.mkldnn

TOLERANCES = {torch.float32: 1e-5, torch.bfloat16: 2e-2}
"""By dtype that can be packed: largest error of a product, relative to its largest value."""


MAX_TRANSPOSED = 2**19
"""Weights of a float32 layer at most that is faster transposed than in oneDNN's order."""


class TransposedLinear(nn.Module):
    """Replaces a small `nn.Linear` in float32 on a CPU: [..., inputs] to [..., outputs]."""

    weight: Tensor
    bias: Tensor | None

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        weight = linear.weight.detach().t().contiguous()
        self.register_buffer("weight", weight, persistent=False)
        bias = None if linear.bias is None else linear.bias.detach()
        self.register_buffer("bias", bias, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return x W^T + bias."""
        rows = x if x.ndim == 2 else x.reshape(-1, x.shape[-1])
        bias = self.bias
        out = rows.mm(self.weight) if bias is None else torch.addmm(bias, rows, self.weight)
        return out if x.ndim == 2 else out.view(*x.shape[:-1], -1)


class PackedLinear(nn.Module):
    """Replaces an `nn.Linear` in float32 or bfloat16 on a CPU: [..., inputs] to [..., outputs]."""

    weight: Tensor
    bias: Tensor | None

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        weight = MKLDNN._reorder_linear_weight(linear.weight.detach(), None)
        self.register_buffer("weight", weight, persistent=False)
        bias = None if linear.bias is None else linear.bias.detach()
        self.register_buffer("bias", bias, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return x W^T + bias."""
        rows = x.shape[:-1].numel()
        added = round_up_rows(rows) - rows
        if added:
            filled = F.pad(x.reshape(rows, x.shape[-1]), (0, 0, 0, added))
            return self._multiply(filled)[:rows].reshape(*x.shape[:-1], -1)
        return self._multiply(x)

    def _multiply(self, x: Tensor) -> Tensor:
        out: Tensor = MKLDNN._linear_pointwise(x, self.weight, self.bias, "none", [], "")
        return out


def round_up_rows(rows: int) -> int:
    """Return the number of rows to multiply instead of `rows`: up to 16 each, and eight numbers
    from one power of two to the next."""
    step: int = 1 << max(0, (rows - 1).bit_length() - 4)
    return -(-rows // step) * step


def pack_linears(module: nn.Module) -> int:
    """Replace every linear layer on a CPU inside `module` by one that multiplies few rows faster:
    a `TransposedLinear` if it is small, else a `PackedLinear`.

    Returns:
        The number of replaced layers: 0 on another device, or in a dtype that PyTorch's oneDNN
        operations do not multiply on this processor.
    """
    packed = 0
    for name, linear in list(module.named_modules()):
        weight = linear.weight if type(linear) is nn.Linear else None
        if weight is None or weight.device.type != "cpu" or not can_pack(weight.dtype):
            continue
        small = weight.dtype is torch.float32 and weight.numel() <= MAX_TRANSPOSED
        module.set_submodule(name, (TransposedLinear if small else PackedLinear)(linear))
        packed += 1
    return packed


@cache
@torch.inference_mode()
def can_pack(dtype: torch.dtype) -> bool:
    """Return whether the operations, which are not public API of PyTorch, exist and are right.

    For bfloat16 they need a processor with AVX-512.
    """
    if dtype not in TOLERANCES:
        return False
    # Drawing weights would advance the global seed, and `skip_init` imports sympy for a second.
    linear = nn.Linear(24, 40, device="meta")
    linear.weight = nn.Parameter(torch.linspace(-1, 1, 24 * 40).cos().reshape(40, 24))
    linear.bias = nn.Parameter(torch.linspace(0, 1, 40))
    linear.to(dtype)
    x = torch.linspace(-1, 1, 3 * 24).sin().reshape(3, 24).to(dtype)
    expected = F.linear(x.double(), linear.weight.double(), linear.bias.double())
    try:
        error = (PackedLinear(linear)(x).double() - expected).abs().max()
    except (AttributeError, NotImplementedError, RuntimeError, TypeError):
        return False
    return bool(error <= TOLERANCES[dtype] * expected.abs().max())
