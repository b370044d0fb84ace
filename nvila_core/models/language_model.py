"""The Qwen2 language model over embeddings: embedded positions in, next-token logits out."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import DynamicCache, Qwen2Config, Qwen2Model

from nvila_core.models.attention import ATTENTION, AttentionBackend


class LanguageModel(nn.Module):
    """transformers' Qwen2 with its output head; `checkpoint.loader` loads it.

    The tokenizer may have more tokens than the checkpoint has embedding rows. Logits of the others
    are -inf, and their embeddings are never looked up.
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
    def embedding_table(self) -> Tensor:
        """The embedding table [num_embeddings, hidden]."""
        weight: Tensor = self.model.embed_tokens.weight
        return weight

    @property
    def dtype(self) -> torch.dtype:
        """The dtype in which the model computes."""
        return self.embedding_table.dtype

    @property
    def device(self) -> torch.device:
        """The device that holds the model."""
        return self.embedding_table.device

    @property
    def hidden_size(self) -> int:
        """Width of an embedding."""
        return int(self.config.hidden_size)

    @property
    def num_embeddings(self) -> int:
        """Rows of the embedding table; higher ids have no embedding."""
        return int(self.config.vocab_size)

    def new_cache(self) -> DynamicCache:
        """Return an empty cache for one sequence."""
        return DynamicCache(config=self.config)

    @torch.inference_mode()
    def embed(self, ids: Sequence[int]) -> Tensor:
        """Return the embeddings [len(ids), hidden]; zeros for ids without one, such as media."""
        index = torch.tensor(list(ids), dtype=torch.long, device=self.device)
        known = index < self.num_embeddings
        embeds: Tensor = self.model.embed_tokens(index.clamp(max=self.num_embeddings - 1))
        return embeds * known[:, None]

    @torch.inference_mode()
    def logits(self, hidden: Tensor, vocab: int) -> Tensor:
        """Return float32 logits [vocab] or [N, vocab] of hidden states [hidden] or [N, hidden]."""
        if hidden.ndim == 1:
            return self.logits(hidden[None], vocab)[0]
        weight = self.embedding_table if self.lm_head is None else self.lm_head.weight
        # The table is the left operand: MKL rearranges the right one, however large it is.
        logits = (weight @ hidden.T).T.float()
        if vocab <= self.num_embeddings:
            return logits[..., :vocab]
        return F.pad(logits, (0, vocab - self.num_embeddings), value=float("-inf"))

    @torch.inference_mode()
    def hidden_states(self, embeds: Tensor, cache: DynamicCache | None = None) -> Tensor:
        """Return the final hidden states [positions, hidden] of embeddings [positions, hidden].

        With a cache, the embeddings continue the cached positions, and are added to them.
        """
        out = self.model(
            inputs_embeds=embeds[None], past_key_values=cache, use_cache=cache is not None
        )
        states: Tensor = out.last_hidden_state[0]
        return states

    @torch.inference_mode()
    def forward_step(
        self,
        embeds: Tensor,
        positions: Tensor,
        backend: AttentionBackend,
        rows: Sequence[int],
    ) -> Tensor:
        """Run one step's rows, of any number of sequences, through all layers.

        Args:
            embeds: [N, hidden], one row for each new position.
            positions: int64 [1, N], the position of each row in its sequence.
            backend: computes attention; holds the keys and values of earlier positions.
            rows: the rows whose hidden states are needed.

        Returns:
            Final hidden states [len(rows), hidden]. The last layer's feed-forward part is not
            computed for other rows.
        """
        hidden = embeds[None]
        rotary = self.model.rotary_emb(hidden, positions)
        step = {"attention_mask": None, "position_embeddings": rotary, "backend": backend}
        *layers, last = self.model.layers
        for layer in layers:
            hidden = layer(hidden, **step)
        attended, _ = last.self_attn(last.input_layernorm(hidden), **step)
        index = torch.tensor(rows, dtype=torch.long, device=hidden.device)
        needed = (hidden + attended)[0, index]
        if rows:
            needed = needed + last.mlp(last.post_attention_layernorm(needed))
        states: Tensor = self.model.norm(needed)
        return states
