"""Run a step's scheduled positions through the language model."""

from collections.abc import Sequence
from itertools import islice
from math import isfinite

from torch import Tensor

from nvila_core.engine.batch import PagedBatch, SequenceSlice
from nvila_core.engine.kv_cache import KVCache
from nvila_core.engine.scheduler import ScheduledRequest
from nvila_core.engine.tile_encoder import TileEncoder
from nvila_core.errors import NotFinite
from nvila_core.model import NVILA


class ModelRunner:
    """Runs the scheduled positions of many requests as one batch."""

    def __init__(self, model: NVILA, cache: KVCache, encoder: TileEncoder) -> None:
        self.model, self.cache, self.encoder = model, cache, encoder

    def forward(self, scheduled: list[ScheduledRequest]) -> list[Tensor | int | NotFinite | None]:
        """Run one batch through the language model.

        Returns:
            For each request its next token, or logits float32 [vocab] to draw it from, or None
            where positions of the prompt remain to be computed; NotFinite where what was computed
            for it is NaN or infinite.
        """
        language, vocab = self.model.language, len(self.model.tokenizer)
        slices = [
            SequenceSlice(
                item.request.num_computed_tokens, item.num_scheduled_tokens, item.request.blocks
            )
            for item in scheduled
        ]
        batch = PagedBatch(self.cache, slices, self.model.config.num_heads)
        ordered = [scheduled[i] for i in batch.order]
        complete, last_rows, rows = [], [], 0
        for index, item in zip(batch.order, ordered, strict=True):
            rows += item.num_scheduled_tokens
            if item.num_scheduled_tokens == item.request.num_new_tokens:
                complete.append(index)
                last_rows.append(rows - 1)
        hidden = language.forward_step(self.embed(ordered), batch.positions, batch, last_rows)
        drawn: list[Tensor | int | NotFinite | None] = [None] * len(scheduled)
        if complete:
            logits = language.logits(hidden, vocab)
            maxima, tokens = (part.tolist() for part in logits.max(-1))
            for row, index in enumerate(complete):
                if not isfinite(maxima[row]):
                    drawn[index] = NotFinite()
                elif scheduled[index].request.sequence.is_greedy:
                    drawn[index] = tokens[row]
                else:
                    drawn[index] = logits[row]
        finite = iter(self.cache.are_finite(batch.slots).tolist())
        for index, item in zip(batch.order, ordered, strict=True):
            if not all(list(islice(finite, item.num_scheduled_tokens))):
                drawn[index] = NotFinite()
        return drawn

    def embed(self, scheduled: Sequence[ScheduledRequest]) -> Tensor:
        """Return the embeddings [rows, hidden] of the scheduled positions."""
        language = self.model.language
        ids: list[int] = []
        media: list[tuple[int, Tensor]] = []
        for item in scheduled:
            request, first = item.request, len(ids)
            start = request.num_computed_tokens
            end = start + item.num_scheduled_tokens
            prompt = len(request.layout.ids)
            ids += request.layout.ids[start:end].tolist()
            if end > prompt:
                ids += request.sequence.token_ids[max(0, start - prompt) : end - prompt]
            for span in request.layout.overlapping(start, end):
                rows = self.encoder.embed_media(request, span.index)
                a, b = max(start, span.start), min(end, span.end)
                media.append((first + a - start, rows[a - span.start : b - span.start]))
        embeds = language.embed([language.num_embeddings if i < 0 else i for i in ids])
        for place, rows in media:
            embeds[place : place + len(rows)] = rows
        return embeds
