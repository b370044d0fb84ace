"""Attention of the language model: the protocol of its backends, and the one for one sequence."""

from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from nvila_core.models.fp8_rows import RowsFP8
from nvila_core.models.rotation import Rotation


class AttentionBackend(Protocol):
    """Attention of one step's rows over keys and values that the backend holds."""

    def attend(
        self,
        layer: int,
        qkv: Tensor,
        heads: int,
        rotation: Rotation,
        scale: float,
        fp8: bool = False,
    ) -> Tensor | RowsFP8:
        """Rotate and store the rows' keys, store their values, and compute a layer's attention.

        Args:
            layer: index of the layer.
            qkv: [N, heads + 2 * kv heads, head size]: queries, keys and values of N rows, not yet
                rotated; may be overwritten.
            heads: number of query heads.
            rotation: of the rows.
            scale: factor of the scores.
            fp8: whether the product that follows takes rows in FP8.

        Returns:
            [N, heads, head size], or with `fp8` [N, heads * head size] in FP8 where a kernel writes
            that at once.
        """
        ...


class SequenceCache:
    """Keys and values of one sequence, and causal attention over them by PyTorch's SDPA."""

    def __init__(self) -> None:
        self._keys: list[Tensor] = []
        self._values: list[Tensor] = []

    def __len__(self) -> int:
        """Return the number of positions."""
        return self._keys[0].shape[1] if self._keys else 0

    def attend(
        self,
        layer: int,
        qkv: Tensor,
        heads: int,
        rotation: Rotation,
        scale: float,
        fp8: bool = False,
    ) -> Tensor:
        """Append the rows of a layer and attend; see `AttentionBackend`."""
        kv_heads = (qkv.shape[1] - heads) // 2
        rotated = rotation.rotate(qkv[:, : heads + kv_heads]).transpose(0, 1)
        query, key = rotated.split([heads, kv_heads])
        value = qkv[:, heads + kv_heads :].transpose(0, 1)
        if layer == len(self._keys):
            self._keys.append(key)
            self._values.append(value)
        else:
            self._keys[layer] = key = torch.cat([self._keys[layer], key], dim=1)
            self._values[layer] = value = torch.cat([self._values[layer], value], dim=1)
        rows, positions = query.shape[1], key.shape[1]
        mask = None
        if 1 < rows < positions:
            mask = torch.ones(rows, positions, dtype=torch.bool, device=query.device)
            mask = mask.tril(positions - rows)
            # With a mask, grouped queries fall back to a slow kernel on CUDA.
            group = len(query) // len(key)
            key, value = key.repeat_interleave(group, 0), value.repeat_interleave(group, 0)
        out = F.scaled_dot_product_attention(
            query[None],
            key[None],
            value[None],
            attn_mask=mask,
            is_causal=mask is None and rows > 1,
            scale=scale,
            enable_gqa=len(key) != len(query),
        )
        return out[0].transpose(0, 1)
