"""The attention function of the language model's layers, registered with transformers."""

from typing import Any, Protocol

from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

ATTENTION = "nvila"
"""Name under which `attention` is registered with transformers."""


class AttentionBackend(Protocol):
    """Attention of one step's rows over keys and values that the backend holds."""

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        """Store the rows' keys and values, and compute one layer's attention.

        Args:
            layer: index of the layer.
            query: [heads, N, head size] of N rows.
            key: [kv heads, N, head size].
            value: [kv heads, N, head size].
            scale: factor of the scores.

        Returns:
            [N, heads, head size].
        """
        ...


def attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    backend: AttentionBackend | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attend through `backend` where one is given, otherwise through transformers' own SDPA."""
    if backend is None:
        out: tuple[Tensor, None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, scaling=scaling, **kwargs
        )
        return out
    layer: Any = module.layer_idx
    size = query.shape[-1]
    return backend.attend(layer, query[0], key[0], value[0], scaling or size**-0.5)[None], None


AttentionInterface.register(ATTENTION, attention)
AttentionMaskInterface.register(ATTENTION, sdpa_mask)
