"""Choose how attention is computed: by the Triton kernel on a GPU, in PyTorch elsewhere."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional as F

from nvila_core.engine.background_tower import BackgroundTower
from nvila_core.engine.batch import AttentionPlanner, SequenceSlice
from nvila_core.engine.grouped_attention import GroupedAttention
from nvila_core.engine.kv_cache import KVCache
from nvila_core.errors import first_line
from nvila_core.model import NVILA
from nvila_core.models.fused import add_rms_norm, gated
from nvila_core.models.kernels import Switch
from nvila_core.models.rotation import Rotation

if TYPE_CHECKING:
    from nvila_core.engine.decode_graphs import DecodeGraphs  # imports Triton

TOLERANCE = {torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 3e-2}
"""Largest difference from what PyTorch computes, for values of the size of one."""

CHECKED = (SequenceSlice(37, 1, [3, 0, 5]), SequenceSlice(11, 40, [1, 7, 2, 6]))
"""A single row and a chunk, over blocks out of order."""


def choose_attention(cache: KVCache, num_heads: int) -> AttentionPlanner:
    """Return the attention for a cache's device.

    On a GPU, the kernels first compute a small step. If they fail or are wrong, they are not used
    in this process, and a warning says so.
    """
    if cache.device.type != "cuda" or Switch.disabled:
        return GroupedAttention(cache, num_heads)
    try:
        from nvila_core.engine.triton_attention import TritonAttention

        attention = TritonAttention(cache, num_heads)
        problem = check_kernels(cache, num_heads)
    except Exception as error:  # which one depends on Triton, its compiler and the driver
        problem = f"{type(error).__name__}: {first_line(error)}"
    if not problem:
        return attention
    Switch.turn_off(cache.device, problem)
    return GroupedAttention(cache, num_heads)


def make_graphs(
    model: NVILA, attention: AttentionPlanner, max_model_len: int
) -> "DecodeGraphs | None":
    """Return what runs decode steps as CUDA graphs; None where attention does not allow it.

    Args:
        model: computes the steps.
        attention: what `choose_attention` returned.
        max_model_len: positions at most of a sequence.
    """
    if isinstance(attention, GroupedAttention) or model.device.type != "cuda":
        return None
    from nvila_core.engine.decode_graphs import DecodeGraphs
    from nvila_core.engine.triton_attention import TritonAttention

    assert isinstance(attention, TritonAttention)
    return DecodeGraphs(model.language, attention, max_model_len, len(model.tokenizer))


def make_tower(model: NVILA) -> BackgroundTower | None:
    """Return what encodes tiles beside the steps; None on a CPU, which has no room beside them."""
    return BackgroundTower(model) if model.device.type == "cuda" else None


@torch.inference_mode()
def check_kernels(cache: KVCache, num_heads: int) -> str:
    """Compare a layer's kernels with PyTorch on a small step; return what is wrong, or nothing.

    Args:
        cache: the check makes a small one of the same kind.
        num_heads: query heads of a layer.
    """
    return check_layer(cache, num_heads) or check_attention(cache, num_heads)


def check_layer(cache: KVCache, num_heads: int) -> str:
    """Compare norm, residual and gate; see `check_kernels`."""
    device, dtype, rows = cache.device, cache.dtype, 3
    hidden = num_heads * cache.keys[0].shape[-1]
    generator = torch.Generator().manual_seed(1)
    x, residual, gate, up = (
        torch.randn(rows, hidden, generator=generator).to(device, dtype) for _ in range(4)
    )
    weight = torch.linspace(0.5, 1.5, hidden).to(device, dtype)

    def compute() -> list[Tensor]:
        with torch.cuda.device_of(x):  # Triton launches on the current device
            made: list[Any] = [
                *add_rms_norm(x, residual, weight, 1e-6),
                add_rms_norm(x, None, weight, 1e-6)[0],
                gated(torch.cat([gate, up], 1), F.silu),
            ]
        return made

    found = compute()
    with Switch.off():
        expected = compute()
    return differing(
        (
            "norm differs",
            "sum before the norm differs",
            "norm without a sum differs",
            "gate differs",
        ),
        expected,
        found,
    )


def differing(names: Sequence[str], expected: Sequence[Tensor], found: Sequence[Tensor]) -> str:
    """Return which of the tensors differ by more than `TOLERANCE`, and by how much; or nothing."""
    for name, right, got in zip(names, expected, found, strict=True):
        difference = float((right.float() - got.float()).abs().max())
        if not difference <= TOLERANCE[right.dtype] * max(1.0, float(right.abs().max())):
            return f"the {name} by {difference:.2g}"
    return ""


def check_attention(cache: KVCache, num_heads: int) -> str:
    """Compare rotation, what is stored in the cache, and attention; see `check_kernels`."""
    from nvila_core.engine.triton_attention import TritonAttention

    head_dim, device, dtype = cache.keys[0].shape[-1], cache.device, cache.dtype
    generator = torch.Generator().manual_seed(0)

    def noise(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(device, dtype)

    rows = sum(s.count for s in CHECKED)
    qkv = noise(rows, num_heads + 2 * cache.num_kv_heads, head_dim)
    content = noise(2, 9, cache.block_size, cache.num_kv_heads, head_dim)
    inv_freq = 100.0 ** -torch.linspace(0, 1, head_dim // 2, device=device)
    found: list[Tensor] = []
    for kind in (GroupedAttention, TritonAttention):
        small = KVCache(
            num_layers=1,
            num_kv_heads=cache.num_kv_heads,
            head_dim=head_dim,
            num_blocks=8,
            block_size=cache.block_size,
            dtype=dtype,
            device=device,
        )
        small.keys[0].copy_(content[0])
        small.values[0].copy_(content[1])
        batch = kind(small, num_heads).plan(CHECKED)
        rotation = Rotation(batch.positions, inv_freq, dtype)
        with torch.cuda.device_of(qkv):  # Triton launches on the current device
            out: Any = batch.attend(0, qkv.clone(), num_heads, rotation, head_dim**-0.5)
        found += [out, small.keys[0], small.values[0]]
    return differing(
        ("attention differs", "stored keys differ", "stored values differ"), found[:3], found[3:]
    )
