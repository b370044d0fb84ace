"""Run a step's scheduled positions through the language model."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from nvila_core.engine.batch import AttentionPlanner, SequenceSlice
from nvila_core.engine.request import Request
from nvila_core.engine.scheduler import ScheduledRequest
from nvila_core.engine.tile_encoder import TileEncoder
from nvila_core.errors import NotFinite, PromptError
from nvila_core.generation.draw import Draw, draw_tokens
from nvila_core.generation.logprobs import Likelihood, Likelihoods, Wanted
from nvila_core.model import NVILA
from nvila_core.models.staging import Fetch

if TYPE_CHECKING:
    from nvila_core.engine.decode_graphs import DecodeGraphs  # imports Triton


@dataclass(frozen=True)
class LikelyToken:
    """A token, and how likely it was."""

    token: int
    likelihood: Likelihood


Drawn = LikelyToken | int | Exception | None
"""What a step gives a request: its next token, with how likely it was if that is recorded; None
where positions of the prompt remain to be computed; NotFinite where what was computed for it is NaN
or infinite; another exception where no token can be drawn."""


@dataclass(frozen=True)
class Launched:
    """Rows that the device computes, and where it leaves the results.

    Attributes:
        order: the requests of the rows.
        complete: the requests of `logits`.
        logits: float32 [M, vocab].
        likeliest: int32 [M], the token with the highest logit.
        finite: int32 [M], 1 where that logit is finite.
        sound: int32 [N], 1 where the keys and values of a row are finite.
    """

    order: list[int]
    complete: list[int]
    logits: Tensor
    likeliest: Tensor
    finite: Tensor
    sound: Tensor


@dataclass(frozen=True)
class Sampled:
    """Tokens that the device draws, and that are not simply the likeliest.

    Attributes:
        requests: who gets them.
        recorded: those of `requests` for whom is recorded how likely the token was.
        likelihoods: of `recorded`; None without any.
        numbers: int32, to be copied to the host: the tokens, then the likelihoods.
    """

    requests: list[int]
    recorded: list[int]
    likelihoods: Likelihoods | None
    numbers: list[Tensor]


@dataclass(frozen=True, eq=False)
class LaunchedStep:
    """A step that the device computes.

    Attributes:
        scheduled: what is computed.
        slices: the positions of each.
        launched: the parts of the batch.
        sampled: for each part the tokens that are not simply the likeliest.
        drawn: for each request the error because of which no token can be drawn, or None.
        numbers: the results, on their way.
        by_graph: whether a graph computes all of it, and no draw depends on the tokens before it:
            the next step can be started before this one has been read.
    """

    scheduled: list[ScheduledRequest]
    slices: list[SequenceSlice]
    launched: list[Launched]
    sampled: list[Sampled]
    drawn: list[Drawn]
    numbers: Fetch
    by_graph: bool


class ModelRunner:
    """Runs the scheduled positions of many requests as one batch.

    Args:
        model: computes.
        attention: plans the attention of each step.
        encoder: has the features of pictures.
        graphs: compute the requests of a step that decode; None: they run with the others.
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

    def forward(self, scheduled: list[ScheduledRequest]) -> list[Drawn]:
        """Run one batch through the language model, and return what each request gets.

        The host waits for the device once: it prepares the draws while the device computes.
        """
        return self.read(self.launch(scheduled))

    def launch(self, scheduled: list[ScheduledRequest]) -> LaunchedStep:
        """Start one batch."""
        slices = [self._slice(item) for item in scheduled]
        launched = self._replay(slices)
        replayed = {index for part in launched for index in part.order}
        rest = [index for index in range(len(scheduled)) if index not in replayed]
        if rest:
            launched.append(self._launch(scheduled, slices, rest))
        by_graph = not rest and all(i.request.sequence.draws_blindly for i in scheduled)
        return self._started(scheduled, slices, launched, by_graph)

    def launch_next(self, step: LaunchedStep, rows: Sequence[int]) -> LaunchedStep | None:
        """Start the step after one that is computed by a graph and that has not been read.

        Its tokens stay on the device. None where no graph has been captured.

        Args:
            step: its requests have blocks for one more position.
            rows: the requests of `step` that go on.
        """
        assert self.graphs is not None
        slices = []
        for row in rows:
            s = step.slices[row]
            slices.append(SequenceSlice(s.end, 1, s.blocks, s.ids))
        graph = self.graphs.run(slices, rows)
        if graph is None:
            return None
        order = list(range(len(rows)))
        launched = [Launched(order, order, graph[0], *graph[1].unbind())]
        return self._started([step.scheduled[row] for row in rows], slices, launched, True, 1)

    def _started(
        self,
        scheduled: list[ScheduledRequest],
        slices: list[SequenceSlice],
        launched: list[Launched],
        by_graph: bool,
        ahead: int = 0,
    ) -> LaunchedStep:
        """Draw tokens, and let all results travel to the host.

        Args:
            ahead: tokens of each request that have been drawn and not been read.
        """
        drawn: list[Drawn] = [None] * len(scheduled)
        numbers: list[Tensor] = []
        sampled: list[Sampled] = []
        # A step that is started before this one has been read takes its tokens from there.
        into = self.graphs.latest if by_graph and self.graphs is not None else None
        for part in launched:
            found = self._sample(scheduled, part, drawn, into, ahead)
            sampled.append(found)
            numbers += [part.likeliest, part.finite, part.sound, *found.numbers]
        fetch = Fetch(torch.cat(numbers))
        return LaunchedStep(scheduled, slices, launched, sampled, drawn, fetch, by_graph)

    def read(self, step: LaunchedStep) -> list[Drawn]:
        """Return what each request gets, when the device has computed it."""
        scheduled, slices, drawn = step.scheduled, step.slices, step.drawn
        found = iter(step.numbers.read())
        for part, sampled in zip(step.launched, step.sampled, strict=True):
            count = len(part.complete)
            likeliest, finite = list(islice(found, count)), list(islice(found, count))
            sound = [all(list(islice(found, slices[index].count))) for index in part.order]
            for row, index in enumerate(part.complete):
                if is_likeliest(scheduled[index].request):
                    drawn[index] = likeliest[row]
            tokens = {index: next(found) for index in sampled.requests}
            read = [] if sampled.likelihoods is None else sampled.likelihoods.read(found)
            likely = dict(zip(sampled.recorded, read, strict=True))
            for index, token in tokens.items():
                drawn[index] = LikelyToken(token, likely[index]) if index in likely else token
            checks = zip((*part.complete, *part.order), (*finite, *sound), strict=True)
            for index, good in checks:
                if not good:
                    drawn[index] = NotFinite()
        return drawn

    def _replay(self, slices: Sequence[SequenceSlice]) -> list[Launched]:
        """Compute the requests that decode by a graph, if there is one."""
        if self.graphs is None:
            return []
        single = [index for index, s in enumerate(slices) if self.graphs.takes(s)]
        graph = self.graphs.run([slices[index] for index in single])
        if graph is None:
            return []
        logits, outcome = graph
        return [Launched(single, single, logits, *outcome.unbind())]

    def _launch(
        self,
        scheduled: Sequence[ScheduledRequest],
        slices: Sequence[SequenceSlice],
        chosen: Sequence[int],
    ) -> Launched:
        """Compute the requests `chosen` as one batch."""
        language = self.model.language
        batch = self.attention.plan([slices[index] for index in chosen])
        order = [chosen[place] for place in batch.order]
        embeds = self.embed([scheduled[index] for index in order], batch.ids)
        hidden = language.forward_step(embeds, batch.positions, batch, batch.last_rows)
        logits = language.logits(hidden, len(self.model.tokenizer))
        highest, likeliest = logits.max(-1)
        return Launched(
            order,
            [index for index in order if slices[index].complete],
            logits,
            likeliest.int(),
            highest.isfinite().int(),
            batch.are_finite().int(),
        )

    def _sample(
        self,
        scheduled: Sequence[ScheduledRequest],
        part: Launched,
        drawn: list[Drawn],
        into: Tensor | None,
        ahead: int,
    ) -> Sampled:
        """Draw tokens that are not simply the likeliest, or of which is recorded how likely they
        were.

        Args:
            scheduled, part: the step, and the part of it.
            drawn: the error goes there of a request whose next token cannot be drawn.
            into: see `draw_tokens`.
            ahead: see `Sequence.next_draw`.
        """
        rows: list[int] = []
        draws: list[Draw] = []
        wanted: list[Wanted] = []
        recorded: list[int] = []
        vocab = part.logits.shape[1]
        for row, index in enumerate(part.complete):
            sequence = scheduled[index].request.sequence
            if is_likeliest(scheduled[index].request):
                continue
            try:
                draw = sequence.next_draw(ahead)
            except PromptError as error:
                drawn[index] = error
                continue
            if sequence.recorder is not None:
                wanted.append(sequence.recorder.wanted(row, len(rows), draw, vocab))
                recorded.append(index)
            rows.append(row)
            draws.append(draw)
        if not rows:
            return Sampled([], [], None, [])
        tokens = draw_tokens(part.logits, draws, rows, into)
        likelihoods = Likelihoods(part.logits, tokens, wanted) if wanted else None
        numbers = [tokens.int(), *([likelihoods.numbers] if likelihoods is not None else [])]
        return Sampled([part.complete[row] for row in rows], recorded, likelihoods, numbers)

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


def is_likeliest(request: Request) -> bool:
    """Return whether a request's next token is the likeliest, and nothing else of it is needed."""
    return request.sequence.is_greedy and request.sequence.recorder is None
