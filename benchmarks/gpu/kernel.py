"""The attention kernel: is it right on this card, and how fast beside PyTorch's attention?"""

import random
import sys
import traceback
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from made import SHAPES, Shape, cache
from timing import device_ms
from torch.nn import functional as F

from nvila_core.engine.batch import SequenceSlice
from nvila_core.engine.grouped_attention import GroupedAttention
from nvila_core.engine.kv_cache import KVCache
from nvila_core.models.rotation import Rotation

LIMIT = {torch.float32: 1e-3, torch.bfloat16: 1.5e-2}
"""Largest norm of the difference, as a share of the reference's."""


def slices(draw: random.Random, blocks: int, longest: int) -> list[SequenceSlice]:
    """Return chunks and single rows of sequences of any length, some with a common prefix."""
    free = list(range(blocks))
    draw.shuffle(free)
    made: list[SequenceSlice] = []
    tables: list[list[int]] = [[]]
    for _ in range(draw.randint(1, 24)):
        length = draw.choice([1, 15, 16, 17, draw.randint(1, longest), draw.randint(1, longest)])
        new = draw.choice([1, 1, 1, min(length, draw.randint(2, 300))])
        kept = draw.choice(tables)
        kept = kept[: draw.randint(0, min(len(kept), (length - new) // 16))]
        need = -(-length // 16) - len(kept)
        if need > len(free):
            break
        tables.append(kept + [free.pop() for _ in range(need)])
        made.append(SequenceSlice(length - new, new, tables[-1]))
    return made


def attended(kind: Any, held: KVCache, rows: list[SequenceSlice], merged: Any, heads: int) -> Any:
    """Return the attention of `rows` in their order, from merged queries, keys and values."""
    size = held.keys[0].shape[-1]
    batch = kind(held, heads).plan(rows)
    starts = torch.tensor([0, *[s.count for s in rows]]).cumsum(0).tolist()
    order = torch.tensor(
        [n for i in batch.order for n in range(starts[i], starts[i + 1])], device=merged.device
    )
    inv_freq = 1e6 ** -torch.linspace(0, 1, size // 2, device=merged.device)
    rotation = Rotation(batch.positions, inv_freq, merged.dtype)
    out = batch.attend(0, merged[order], heads, rotation, size**-0.5)
    found = torch.full_like(out, float("nan"))
    found[order] = out
    return found


def errors(
    shape: Shape, dtype: torch.dtype, device: torch.device, draw: random.Random
) -> tuple[float, float]:
    """Return the errors of one random step: of the attention, and of the stored keys."""
    from nvila_core.engine.triton_attention import TritonAttention

    longest, blocks = (6000, 1500) if device.type == "cuda" else (60, 40)
    held = cache(shape, 16 * blocks, device, dtype)
    wide = cache(shape, 16 * blocks, device, torch.float32)
    wide.keys[0].copy_(held.keys[0])
    wide.values[0].copy_(held.values[0])
    rows = slices(draw, blocks, longest)
    heads, size = shape.heads + 2 * shape.kv_heads, shape.hidden // shape.heads
    total = sum(s.count for s in rows)
    merged = torch.randn(total, heads, size, device=device).to(dtype)
    expected = attended(GroupedAttention, wide, rows, merged.float(), shape.heads)
    got = attended(TritonAttention, held, rows, merged, shape.heads).float()
    stored = held.keys[0].float() - wide.keys[0]
    return (
        float((got - expected).norm() / expected.norm()),
        float(stored.norm() / wide.keys[0].norm()),
    )


def check(device: torch.device, dtype: torch.dtype, rounds: int = 5) -> dict[str, Any]:
    """Compare the kernel with PyTorch in float32 on random steps; return the largest errors."""
    draw, found = random.Random(0), {}
    for name in ("2b", "8b") if device.type == "cuda" else ("tiny",):
        shape = replace(SHAPES[name], layers=1)
        label = f"{name} {str(dtype).removeprefix('torch.')}"
        try:
            with torch.inference_mode():
                steps = [errors(shape, dtype, device, draw) for _ in range(rounds)]
        except Exception as error:
            traceback.print_exc(file=sys.stdout)
            found[label] = {"failed": repr(error)[:200], "right": False}
            continue
        worst, stored = (max(column) for column in zip(*steps, strict=True))
        found[label] = {
            "error": worst,
            "stored keys": stored,
            "right": worst <= LIMIT[dtype] and stored <= LIMIT[dtype],
        }
    return found


@torch.inference_mode()
def speed(device: torch.device, small: bool = False) -> dict[str, Any]:
    """Return milliseconds of one layer's attention: the kernel, and PyTorch's groups."""
    from nvila_core.engine.triton_attention import TritonAttention

    found: dict[str, Any] = {}
    dtype = torch.bfloat16
    for name in ("tiny",) if small else ("2b", "8b"):
        shape = replace(SHAPES[name], layers=1)
        heads, kv, size = shape.heads, shape.kv_heads, shape.hidden // shape.heads
        length = 48 if small else 9800
        held = cache(shape, (length + 32) * (2 if small else 32), device, dtype)
        each = -(-(length + 1) // 16)
        mixes = {
            f"decode, {n} rows of {length}": [
                SequenceSlice(length, 1, list(range(i * each, (i + 1) * each))) for i in range(n)
            ]
            for n in ((2,) if small else (1, 8, 32))
        }
        chunk = 16 if small else 2048
        for start in (0, length - length % 16 - chunk):
            blocks = list(range(-(-(start + chunk) // 16)))
            mixes[f"chunk of {chunk} after {start}"] = [SequenceSlice(start, chunk, blocks)]
        for mix, rows in mixes.items():
            total = sum(s.count for s in rows)
            merged = torch.randn(total, heads + 2 * kv, size, device=device, dtype=dtype)
            times = {}
            for label, kind in (("kernel", TritonAttention), ("PyTorch", GroupedAttention)):
                batch = kind(held, heads).plan(rows)
                inv_freq = torch.ones(size // 2, device=device)
                rotation = Rotation(batch.positions, inv_freq, dtype)

                call = partial(batch.attend, 0, merged, heads, rotation, size**-0.5)
                times[label] = device_ms(call, device)
            pairs = sum(s.count * s.start + s.count * (s.count + 1) / 2 for s in rows)
            read = sum(s.end for s in rows) * 2 * kv * size * dtype.itemsize
            times["kernel TFLOP/s"] = 4 * pairs * heads * size / times["kernel"] / 1e9
            times["kernel GB/s"] = read / times["kernel"] / 1e6
            found[f"{name}, {mix}"] = times
        q, k, v = (
            torch.randn(1, n, chunk, size, device=device, dtype=dtype) for n in (heads, kv, kv)
        )
        causal = partial(F.scaled_dot_product_attention, q, k, v, is_causal=True, enable_gqa=True)
        best = device_ms(causal, device)
        found[f"{name}, PyTorch's causal SDPA of {chunk}, not paged"] = {
            "PyTorch": best,
            "PyTorch TFLOP/s": 2 * chunk * chunk * heads * size / best / 1e9,
        }
    return found
