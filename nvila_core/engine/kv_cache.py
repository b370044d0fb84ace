"""The keys and values of all sequences, in blocks that any sequence may use."""

import torch
from torch import Tensor

from nvila_core.errors import NVILAError


class KVCache:
    """Keys and values [num_blocks, block_size, num_kv_heads, head_dim] for every layer.

    They begin as zeros: attention multiplies masked positions by 0, and 0 times NaN is NaN.

    Raises:
        NVILAError: the device has no room for the cache.
    """

    def __init__(
        self,
        *,
        num_layers: int,
        num_kv_heads: int,
        head_dim: int,
        num_blocks: int,
        block_size: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self.num_blocks, self.block_size = num_blocks, block_size
        self.num_kv_heads, self.dtype, self.device = num_kv_heads, dtype, device
        shape = (num_blocks, block_size, num_kv_heads, head_dim)

        def zeros() -> Tensor:
            return torch.zeros(shape, dtype=dtype, device=device)

        try:
            self.keys = [zeros() for _ in range(num_layers)]
            self.values = [zeros() for _ in range(num_layers)]
        except (torch.OutOfMemoryError, RuntimeError) as error:
            raise NVILAError(
                f"There is no room for a key-value cache of {num_blocks * block_size} positions "
                f"({num_layers} layers, {num_kv_heads} heads of {head_dim}, {dtype}) on {device}, "
                "so lower kv_cache_tokens."
            ) from error

    def write(self, layer: int, slots: Tensor, keys: Tensor, values: Tensor) -> None:
        """Store [N, kv heads, head size] at `slots` int64 [N] (block * block_size + offset)."""
        self.keys[layer].flatten(0, 1)[slots] = keys
        self.values[layer].flatten(0, 1)[slots] = values

    def read(self, layer: int, block_tables: Tensor) -> tuple[Tensor, Tensor]:
        """Read keys and values [B, n * block_size, kv heads, head size] of blocks int64 [B, n]."""
        shape = (block_tables.shape[0], -1, *self.keys[layer].shape[2:])
        index = block_tables.flatten()
        return (
            self.keys[layer].index_select(0, index).view(shape),
            self.values[layer].index_select(0, index).view(shape),
        )

    def zero(self, blocks: list[int]) -> None:
        """Zero blocks that hold NaN, before another sequence pads with them."""
        index = torch.tensor(blocks, dtype=torch.long, device=self.device)
        for part in (*self.keys, *self.values):
            part.index_fill_(0, index, 0)
