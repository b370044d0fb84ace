"""The Qwen2 language model over embeddings: prompt positions in, next-token logits out."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import DynamicCache, Qwen2Config, Qwen2Model
from transformers.models.qwen2.modeling_qwen2 import Qwen2RotaryEmbedding

from nvila_core.checkpoint.weights import Weights
from nvila_core.models.attention import ATTENTION

if TYPE_CHECKING:
    from nvila_core.engine.batch import Batch


class LanguageModel(nn.Module):
    """transformers' Qwen2 with its output head; see `load_language`.

    The tokenizer may know more tokens than the checkpoint has rows. Their logits are -inf, and
    their embeddings are never looked up.
    """

    def __init__(self, fields: dict[str, Any]) -> None:
        super().__init__()
        self.config = Qwen2Config(**fields)
        self.config._attn_implementation = ATTENTION
        self.model = Qwen2Model(self.config)
        tied = self.config.tie_word_embeddings
        self.lm_head = (
            None if tied else nn.Linear(self.config.hidden_size, self.config.vocab_size, bias=False)
        )

    @property
    def table(self) -> Tensor:
        """The embedding table [rows, hidden]."""
        weight: Tensor = self.model.embed_tokens.weight
        return weight

    @property
    def dtype(self) -> torch.dtype:
        """The dtype that the model computes in."""
        return self.table.dtype

    @property
    def device(self) -> torch.device:
        """Where the model lives."""
        return self.table.device

    @property
    def hidden_size(self) -> int:
        """Width of an embedding."""
        return int(self.config.hidden_size)

    @property
    def rows(self) -> int:
        """Rows of the embedding table: ids from here on have no embedding."""
        return int(self.config.vocab_size)

    def new_cache(self) -> DynamicCache:
        """An empty cache for one sequence."""
        return DynamicCache(config=self.config)

    @torch.inference_mode()
    def embed(self, ids: Sequence[int]) -> Tensor:
        """Embedding rows [len(ids), hidden]; ids without a row give zeros, where media will be."""
        index = torch.tensor(list(ids), dtype=torch.long, device=self.device)
        known = index < self.rows
        embeds: Tensor = self.model.embed_tokens(index.clamp(max=self.rows - 1))
        return embeds * known[:, None]

    @torch.inference_mode()
    def head(self, hidden: Tensor, vocab: int) -> Tensor:
        """float32 logits [vocab] or [rows, vocab] of hidden states [hidden] or [rows, hidden]."""
        if hidden.ndim == 1:
            return self.head(hidden[None], vocab)[0]
        weight = self.table if self.lm_head is None else self.lm_head.weight
        # The table on the left: MKL rearranges what stands on the right, whatever its size.
        logits = (weight @ hidden.T).T.float()
        if vocab <= self.rows:
            return logits[..., :vocab]
        return F.pad(logits, (0, vocab - self.rows), value=float("-inf"))

    @torch.inference_mode()
    def hidden(self, embeds: Tensor, cache: DynamicCache | None = None) -> Tensor:
        """Final hidden states [positions, hidden] of embeddings [positions, hidden].

        With a cache the embeddings continue what the cache holds, and are added to it.
        """
        out = self.model(
            inputs_embeds=embeds[None], past_key_values=cache, use_cache=cache is not None
        )
        states: Tensor = out.last_hidden_state[0]
        return states

    @torch.inference_mode()
    def advance(self, embeds: Tensor, batch: "Batch", wanted: Sequence[int]) -> Tensor:
        """One step's rows [N, hidden], of many sequences, through all layers.

        Keys and values go to the cache that the batch names.

        Returns:
            Final hidden states [W, hidden] of the `wanted` rows. Nobody reads the others', so the
            last layer's feed-forward part is not computed for them.
        """
        hidden = embeds[None]
        rotary = self.model.rotary_emb(hidden, batch.positions)
        step = {"attention_mask": None, "position_embeddings": rotary, "batch": batch}
        *layers, last = self.model.layers
        for layer in layers:
            hidden = layer(hidden, **step)
        seen, _ = last.self_attn(last.input_layernorm(hidden), **step)
        index = torch.tensor(wanted, dtype=torch.long, device=hidden.device)
        left = (hidden + seen)[0, index]
        if wanted:
            left = left + last.mlp(last.post_attention_layernorm(left))
        states: Tensor = self.model.norm(left)
        return states


def load_language(
    fields: dict[str, Any],
    weights: Weights,
    dtype: torch.dtype,
    device: torch.device,
    bits: int | None = None,
) -> LanguageModel:
    """Build the model without allocating it twice and load its weights, in `bits` where given.

    Raises:
        CheckpointError: the weights contradict the config.
    """
    hidden, inner = fields["hidden_size"], fields["intermediate_size"]
    weights.expect(
        "model.embed_tokens.weight", (fields["vocab_size"], hidden), "vocab_size and hidden_size"
    )
    weights.expect_count("model.layers.", fields["num_hidden_layers"], "num_hidden_layers")
    weights.expect("model.layers.0.mlp.gate_proj.weight", (inner, hidden), "intermediate_size")
    with torch.device("meta"):
        model = LanguageModel(fields)
    unused = ["lm_head."] if fields["tie_word_embeddings"] else []
    weights.fill(model, dtype, device, unused=unused, bits=bits)
    model.model.rotary_emb = Qwen2RotaryEmbedding(model.config).to(device)
    return model.eval()
