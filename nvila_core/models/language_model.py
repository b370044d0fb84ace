"""The Qwen2 language model over embeddings: embedded positions in, next-token logits out."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nvila_core.config import LanguageConfig
from nvila_core.models.attention import AttentionBackend, SequenceCache
from nvila_core.models.packed_linear import round_up_rows
from nvila_core.models.qwen2 import Qwen2Decoder


class LanguageModel(nn.Module):
    """Qwen2 with its output head; `checkpoint.loader` loads it.

    The tokenizer may have more tokens than the checkpoint has embedding rows. Logits of the others
    are -inf, and their embeddings are never looked up.
    """

    def __init__(self, config: LanguageConfig) -> None:
        super().__init__()
        self.config = config
        self.model = Qwen2Decoder(config)
        tied = config.tie_word_embeddings
        self.lm_head = (
            None if tied else nn.Linear(config.hidden_size, config.vocab_size, bias=False)
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
        return self.config.hidden_size

    @property
    def num_embeddings(self) -> int:
        """Rows of the embedding table; higher ids have no embedding."""
        return self.config.vocab_size

    @torch.inference_mode()
    def embed(self, ids: Sequence[int]) -> Tensor:
        """Return the embeddings [len(ids), hidden]; zeros for ids without one, such as media."""
        return self.embed_rows(torch.tensor(list(ids), dtype=torch.long, device=self.device))

    @torch.inference_mode()
    def embed_rows(self, ids: Tensor) -> Tensor:
        """Return the embeddings [N, hidden] of ids [N]; zeros for ids without one."""
        last = self.num_embeddings - 1
        known = (ids >= 0) & (ids <= last)
        embeds: Tensor = self.model.embed_tokens(ids.clamp(0, last))
        return embeds * known[:, None]

    @torch.inference_mode()
    def logits(self, hidden: Tensor, vocab: int) -> Tensor:
        """Return float32 logits [vocab] or [N, vocab] of hidden states [hidden] or [N, hidden]."""
        if hidden.ndim == 1:
            return self.logits(hidden[None], vocab)[0]
        weight = self.embedding_table if self.lm_head is None else self.lm_head.weight
        rows = len(hidden)
        if weight.device.type == "cpu" and weight.dtype is not torch.float32:
            # oneDNN compiles this product for each number of rows; MKL, for float32, does not.
            hidden = F.pad(hidden, (0, 0, 0, round_up_rows(rows) - rows))
        # The table is the left operand: MKL rearranges the right one, however large it is.
        logits = (weight @ hidden.T).T[:rows].float()
        if vocab <= self.num_embeddings:
            return logits[..., :vocab]
        return F.pad(logits, (0, vocab - self.num_embeddings), value=float("-inf"))

    @torch.inference_mode()
    def hidden_states(self, embeds: Tensor, cache: SequenceCache | None = None) -> Tensor:
        """Return the final hidden states [positions, hidden] of embeddings [positions, hidden].

        With a cache, the embeddings continue the cached positions, and are added to them.
        """
        cache = SequenceCache() if cache is None else cache
        start = len(cache)
        positions = torch.arange(start, start + len(embeds), device=embeds.device)
        states: Tensor = self.model(embeds, positions, cache)
        return states

    @torch.inference_mode()
    def forward_step(
        self,
        embeds: Tensor,
        positions: Tensor,
        backend: AttentionBackend,
        rows: Sequence[int] | Tensor,
    ) -> Tensor:
        """Run one step's rows, of any number of sequences, through all layers.

        Args:
            embeds: [N, hidden], one row for each new position.
            positions: [N], the position of each row in its sequence.
            backend: computes attention; holds the keys and values of earlier positions.
            rows: [M], the rows whose hidden states are needed, ascending.

        Returns:
            Final hidden states [M, hidden]. The last layer's feed-forward part is not
            computed for other rows.
        """
        index = torch.as_tensor(rows, device=embeds.device)
        states: Tensor = self.model(embeds, positions, backend, index)
        return states
