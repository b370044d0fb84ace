"""A step's work through the language model: from positions to next tokens."""

from collections.abc import Sequence

from torch import Tensor

from nvila_core.engine.batch import Batch, Rows
from nvila_core.engine.kv_cache import KVCache
from nvila_core.engine.scheduler import Work
from nvila_core.engine.tile_encoder import TileEncoder
from nvila_core.model import NVILA


class Runner:
    """Embeds positions of many requests, runs them as one batch, and scores what comes next."""

    def __init__(self, model: NVILA, cache: KVCache, encoder: TileEncoder) -> None:
        self.model, self.cache, self.encoder = model, cache, encoder

    def forward(self, work: list[Work]) -> list[Tensor | int | None]:
        """One batch through the language model.

        Returns:
            For each item its next token, or the scores float32 [vocab] to draw it from, or None
            where positions are left to compute.
        """
        language, vocab = self.model.language, len(self.model.tokenizer)
        rows = [Rows(w.request.computed, w.count, w.request.blocks) for w in work]
        batch = Batch(self.cache, rows, self.model.config.num_heads)
        ordered = [work[i] for i in batch.order]
        ends, at = [], -1
        for item in ordered:
            at += item.count
            if item.count == item.request.pending:
                ends.append(at)
        hidden = language.advance(self.embed(ordered), batch.positions, batch, ends)
        drawn: list[Tensor | int | None] = [None] * len(work)
        if not ends:
            return drawn
        scores = language.head(hidden, vocab)
        best, tokens = (part.tolist() for part in scores.max(-1))
        whose = [i for i in batch.order if work[i].count == work[i].request.pending]
        for row, index in enumerate(whose):
            finite = abs(best[row]) < float("inf")  # also false for NaN
            greedy = work[index].request.sequence.plainly_greedy and finite
            drawn[index] = tokens[row] if greedy else scores[row]
        return drawn

    def embed(self, work: Sequence[Work]) -> Tensor:
        """What the language model is given: [rows, hidden]."""
        language = self.model.language
        ids: list[int] = []
        media: list[tuple[int, Tensor]] = []
        for item in work:
            request, first = item.request, len(ids)
            start, end = request.computed, request.computed + item.count
            prompt = len(request.layout.ids)
            ids += request.layout.ids[start:end].tolist()
            if end > prompt:
                ids += request.sequence.token_ids[max(0, start - prompt) : end - prompt]
            for span in request.layout.within(start, end):
                rows = self.encoder.embed(request, span.index)
                a, b = max(start, span.start), min(end, span.end)
                media.append((first + a - start, rows[a - span.start : b - span.start]))
        embeds = language.embed([language.rows if i < 0 else i for i in ids])
        for place, rows in media:
            embeds[place : place + len(rows)] = rows
        return embeds
