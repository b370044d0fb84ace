"""The keys and values of all sequences, in blocks that any sequence may use."""

import mmap
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor

from nvila_core.errors import NVILAError


@dataclass(frozen=True)
class StoredSequence:
    """Where the cache keeps the first positions of a sequence.

    Attributes:
        length: number of positions.
        first_slot: of the first position; the others follow it, unless there is `blocks`.
        blocks: int64 [blocks], where these do not lie one after another.
    """

    length: int
    first_slot: int
    blocks: Tensor | None


class KVCache:
    """Keys and values [num_blocks + 1, block_size, num_kv_heads, head_dim] for every layer.

    Attention multiplies masked positions by 0, and 0 times NaN is NaN. So everything in the cache
    must be finite, also what is never read on purpose: it begins as zeros, and the engine zeroes
    what a step wrote unless all of it is finite.

    Attributes:
        padding_block: a block beyond the `num_blocks` of the pool, always zero, with which shorter
            block tables are padded.

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
        self.padding_block = num_blocks
        self.num_kv_heads, self.dtype, self.device = num_kv_heads, dtype, device
        shape = (num_layers, 2, num_blocks + 1, block_size, num_kv_heads, head_dim)
        try:
            self._storage = _zeros(shape, dtype, device)
        except (torch.OutOfMemoryError, RuntimeError, OSError, OverflowError) as error:
            raise NVILAError(
                f"There is no room for a key-value cache of {num_blocks * block_size} positions "
                f"({num_layers} layers, {num_kv_heads} heads of {head_dim}, {dtype}) on {device}, "
                "so lower kv_cache_tokens."
            ) from error
        self.keys = list(self._storage[:, 0])
        self.values = list(self._storage[:, 1])
        slots = self._storage.flatten(2, 3)
        self._key_slots, self._value_slots = list(slots[:, 0]), list(slots[:, 1])

    def write(self, layer: int, slots: Tensor, keys: Tensor, values: Tensor) -> None:
        """Store [N, kv heads, head size] at `slots` int64 [N] (block * block_size + offset)."""
        self._key_slots[layer].index_copy_(0, slots, keys)
        self._value_slots[layer].index_copy_(0, slots, values)

    def locate(self, blocks: Sequence[int], length: int) -> StoredSequence:
        """Return where the first `length` positions are stored of a sequence with a block table."""
        used = blocks[: -(-length // self.block_size)]
        index = None
        if not is_run(used):
            index = torch.tensor(used, dtype=torch.long, device=self.device)
        return StoredSequence(length, used[0] * self.block_size, index)

    def read_sequence(self, layer: int, stored: StoredSequence) -> tuple[Tensor, Tensor]:
        """Return keys and values [1, kv heads, length, head size] of one sequence.

        They are not copied where they lie one after another.
        """
        all_keys, all_values = self._key_slots[layer], self._value_slots[layer]
        _, heads, size = all_keys.shape
        if stored.blocks is not None:
            keys = self.keys[layer].index_select(0, stored.blocks).flatten(0, 1)
            values = self.values[layer].index_select(0, stored.blocks).flatten(0, 1)
            return (
                keys[: stored.length].transpose(0, 1)[None],
                values[: stored.length].transpose(0, 1)[None],
            )
        # One call each instead of three.
        shape, strides = (1, heads, stored.length, size), (0, size, heads * size, 1)
        place = stored.first_slot * heads * size
        return (
            all_keys.as_strided(shape, strides, all_keys.storage_offset() + place),
            all_values.as_strided(shape, strides, all_values.storage_offset() + place),
        )

    def read(self, layer: int, block_tables: Tensor) -> tuple[Tensor, Tensor]:
        """Read keys and values [B, n * block_size, kv heads, head size] of blocks int64 [B, n]."""
        shape = (block_tables.shape[0], -1, *self.keys[layer].shape[2:])
        index = block_tables.flatten()
        return (
            self.keys[layer].index_select(0, index).view(shape),
            self.values[layer].index_select(0, index).view(shape),
        )

    def are_finite(self, slots: Tensor) -> Tensor:
        """Return bool [N]: whether keys and values at `slots` int64 [N] are finite in all layers.

        Finite logits do not prove it: an infinite key can have weight 0 for one query, and make the
        scores of another NaN.
        """
        rows = self._storage.flatten(2, 3).index_select(2, slots)
        return rows.isfinite().all(dim=-1).all(dim=-1).all(dim=1).all(dim=0)

    def zero(self, blocks: Sequence[int]) -> None:
        """Zero blocks that may hold NaN, before another sequence owns them."""
        index = torch.tensor(blocks, dtype=torch.long, device=self.device)
        self._storage.index_fill_(2, index, 0)


def is_run(blocks: Sequence[int]) -> bool:
    """Return whether blocks lie one after another."""
    first = blocks[0]
    return blocks[-1] - first == len(blocks) - 1 and blocks == list(range(first, blocks[-1] + 1))


def _zeros(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return zeros. On a CPU a part of them takes memory only once it is written, so that an idle
    worker does not hold the memory of a full cache."""
    if device.type != "cpu":
        return torch.zeros(shape, dtype=dtype, device=device)
    private = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
    return torch.frombuffer(mmap.mmap(-1, prod(shape) * dtype.itemsize, private), dtype=dtype).view(
        shape
    )
