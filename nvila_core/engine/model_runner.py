"""Run a step's scheduled positions through the language model."""

from collections.abc import Sequence
from itertools import islice
from math import isfinite

from torch import Tensor

from nvila_core.engine.batch import AttentionPlanner, SequenceSlice
from nvila_core.engine.scheduler import ScheduledRequest
from nvila_core.engine.tile_encoder import TileEncoder
from nvila_core.errors import NotFinite
from nvila_core.model import NVILA


class ModelRunner:
    """Runs the scheduled positions of many requests as one batch."""

    def __init__(self, model: NVILA, attention: AttentionPlanner, encoder: TileEncoder) -> None:
        self.model, self.attention, self.encoder = model, attention, encoder

    def forward(self, scheduled: list[ScheduledRequest]) -> list[Tensor | int | NotFinite | None]:
        """Run one batch through the language model.

        Returns:
            For each request its next token, or logits float32 [vocab] to draw it from, or None
            where positions of the prompt remain to be computed; NotFinite where what was computed
            for it is NaN or infinite.
        """
        language, vocab = self.model.language, len(self.model.tokenizer)
        slices = [self._slice(item) for item in scheduled]
        batch = self.attention.plan(slices)
        ordered = [scheduled[i] for i in batch.order]
        complete = [i for i in batch.order if slices[i].complete]
        embeds = self.embed(ordered, batch.ids)
        hidden = language.forward_step(embeds, batch.positions, batch, batch.last_rows)
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
        finite = iter(batch.are_finite().tolist())
        for index, item in zip(batch.order, ordered, strict=True):
            if not all(list(islice(finite, item.num_scheduled_tokens))):
                drawn[index] = NotFinite()
        return drawn

    def embed(self, scheduled: Sequence[ScheduledRequest], ids: Tensor) -> Tensor:
        """Return the embeddings [rows, hidden] of the scheduled positions, whose tokens are `ids`."""
        embeds = self.model.language.embed_rows(ids)
        first = 0
        for item in scheduled:
            request = item.request
            start = request.num_computed_tokens
            end = start + item.num_scheduled_tokens
            for span in request.layout.overlapping(start, end):
                rows = self.encoder.embed_media(request, span.index)
                a, b = max(start, span.start), min(end, span.end)
                place = first + a - start
                embeds[place : place + b - a] = rows[a - span.start : b - span.start]
            first += item.num_scheduled_tokens
        return embeds

    def _slice(self, item: ScheduledRequest) -> SequenceSlice:
        """Return the positions of a scheduled request, with their tokens."""
        request, count = item.request, item.num_scheduled_tokens
        start = request.num_computed_tokens
        end, prompt = start + count, len(request.layout.ids)
        ids: list[int] = request.layout.ids[start:end].tolist()
        if end > prompt:
            ids += request.sequence.token_ids[max(0, start - prompt) : end - prompt]
        return SequenceSlice(start, count, request.blocks, ids, count == request.num_new_tokens)
