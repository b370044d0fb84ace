"""Run a step's scheduled positions through the language model."""

from collections.abc import Sequence
from itertools import islice
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from nvila_core.engine.batch import AttentionPlanner, SequenceSlice
from nvila_core.engine.scheduler import ScheduledRequest
from nvila_core.engine.tile_encoder import TileEncoder
from nvila_core.errors import NotFinite
from nvila_core.model import NVILA

if TYPE_CHECKING:
    from nvila_core.engine.decode_graphs import DecodeGraphs  # imports Triton


class ModelRunner:
    """Runs the scheduled positions of many requests as one batch.

    Args:
        model: computes.
        attention: plans the attention of each step.
        encoder: has the features of pictures.
        graphs: run steps in which every request decodes; None: they run as the others do.
    """

    def __init__(
        self,
        model: NVILA,
        attention: AttentionPlanner,
        encoder: TileEncoder,
        graphs: "DecodeGraphs | None" = None,
    ) -> None:
        self.model, self.attention, self.encoder = model, attention, encoder
        self.graphs = graphs

    def forward(self, scheduled: list[ScheduledRequest]) -> list[Tensor | int | NotFinite | None]:
        """Run one batch through the language model.

        Returns:
            For each request its next token, or logits float32 [vocab] to draw it from, or None
            where positions of the prompt remain to be computed; NotFinite where what was computed
            for it is NaN or infinite.
        """
        language, vocab = self.model.language, len(self.model.tokenizer)
        slices = [self._slice(item) for item in scheduled]
        graph = self.graphs.run(slices) if self.graphs is not None else None
        if graph is not None:
            logits, outcome = graph
            tokens, finite, sound = outcome.tolist()
            order = complete = list(range(len(scheduled)))
        else:
            batch = self.attention.plan(slices)
            order = batch.order
            complete = [i for i in order if slices[i].complete]
            embeds = self.embed([scheduled[i] for i in order], batch.ids)
            hidden = language.forward_step(embeds, batch.positions, batch, batch.last_rows)
            logits = language.logits(hidden, vocab)
            maxima, best = logits.max(-1)
            numbers = torch.cat([best, maxima.isfinite(), batch.are_finite()]).tolist()
            count = len(complete)
            tokens, finite = numbers[:count], numbers[count : 2 * count]
            sound = numbers[2 * count :]
        drawn: list[Tensor | int | NotFinite | None] = [None] * len(scheduled)
        for row, index in enumerate(complete):
            if not finite[row]:
                drawn[index] = NotFinite()
            elif scheduled[index].request.sequence.is_greedy:
                drawn[index] = tokens[row]
            else:
                drawn[index] = logits[row]
        flags = iter(sound)
        for index in order:
            if not all(list(islice(flags, slices[index].count))):
                drawn[index] = NotFinite()
        return drawn

    def embed(self, scheduled: Sequence[ScheduledRequest], ids: Tensor) -> Tensor:
        """Return embeddings [rows, hidden] of the scheduled positions, whose tokens are `ids`."""
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
