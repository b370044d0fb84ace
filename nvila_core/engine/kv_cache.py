"""The keys and values of all sequences, in blocks that any sequence may use."""

import torch
from torch import Tensor

from nvila_core.errors import NVILAError
from nvila_core.models.language_model import LanguageModel


class KVCache:
    """Keys and values [blocks, block_size, kv heads, head size] for every layer.

    They begin as zeros: a masked position is multiplied by nothing, but nothing times NaN is NaN.

    Raises:
        NVILAError: the device has no room for it.
    """

    def __init__(self, language: LanguageModel, blocks: int, block_size: int) -> None:
        config = language.config
        heads = int(config.num_key_value_heads)
        size = int(
            getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        )
        self.blocks, self.block_size = blocks, block_size
        shape = (blocks, block_size, heads, size)
        layers = int(config.num_hidden_layers)

        def zeros() -> Tensor:
            return torch.zeros(shape, dtype=language.dtype, device=language.device)

        try:
            self.keys = [zeros() for _ in range(layers)]
            self.values = [zeros() for _ in range(layers)]
        except (torch.OutOfMemoryError, RuntimeError) as error:
            raise NVILAError(
                f"There is no room for a cache of {blocks * block_size} positions "
                f"({layers} layers, {heads} heads of {size}, {language.dtype}) on "
                f"{language.device}, so lower kv_cache_tokens."
            ) from error

    def write(self, layer: int, slots: Tensor, keys: Tensor, values: Tensor) -> None:
        """Store [N, kv heads, head size] at `slots` int64 [N] (block * block_size + offset)."""
        self.keys[layer].flatten(0, 1)[slots] = keys
        self.values[layer].flatten(0, 1)[slots] = values

    def read(self, layer: int, tables: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values [B, n * block_size, kv heads, head size] of blocks int64 [B, n]."""
        shape = (tables.shape[0], -1, *self.keys[layer].shape[2:])
        index = tables.flatten()
        return (
            self.keys[layer].index_select(0, index).view(shape),
            self.values[layer].index_select(0, index).view(shape),
        )

    def scrub(self, blocks: list[int]) -> None:
        """Zero blocks whose content went wrong, before somebody else pads with them."""
        index = torch.tensor(blocks, dtype=torch.long, device=self.keys[0].device)
        for part in (*self.keys, *self.values):
            part.index_fill_(0, index, 0)
