"""The attention function that the language model's layers call, registered with transformers."""

from typing import TYPE_CHECKING, Any

from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

if TYPE_CHECKING:
    from nvila_core.engine.batch import Batch

ATTENTION = "nvila"
"""Under this name transformers finds `attention`."""


def attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    batch: "Batch | None" = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """transformers' attention function: with a `batch` over the cache, otherwise its own SDPA."""
    if batch is None:
        out: tuple[Tensor, None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, scaling=scaling, **kwargs
        )
        return out
    layer: Any = module.layer_idx
    size = query.shape[-1]
    return batch.attend(layer, query[0], key[0], value[0], scaling or size**-0.5)[None], None


AttentionInterface.register(ATTENTION, attention)
AttentionMaskInterface.register(ATTENTION, sdpa_mask)
