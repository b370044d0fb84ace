"""The Qwen2 language model over embeddings: prompt positions in, next-token logits out."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import DynamicCache, Qwen2Config, Qwen2Model

from nvila_core.models.attention import ATTENTION, AttentionBackend


class LanguageModel(nn.Module):
    """transformers' Qwen2 with its output head.

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
    def advance(
        self,
        embeds: Tensor,
        positions: Tensor,
        backend: AttentionBackend,
        wanted: Sequence[int],
    ) -> Tensor:
        """Run one step's rows, of any number of sequences, through all layers.

        Args:
            embeds: [N, hidden], one row for each new position.
            positions: int64 [1, N], the place of each row in its sequence.
            backend: computes attention, and holds the keys and values of earlier positions.
            wanted: the rows whose hidden states are needed.

        Returns:
            Final hidden states [W, hidden] of the `wanted` rows. The last layer's feed-forward part
            is not computed for the others.
        """
        hidden = embeds[None]
        rotary = self.model.rotary_emb(hidden, positions)
        step = {"attention_mask": None, "position_embeddings": rotary, "backend": backend}
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
