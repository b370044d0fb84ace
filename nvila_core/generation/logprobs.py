"""How likely the model found each token that it drew, and each choice that it could have made."""

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nvila_core.generation.draw import Draw, tokens_of
from nvila_core.models.staging import stage
from nvila_core.prompt.tokenizer import Tokenizer

MAX_TOP_LOGPROBS = 20
"""Maximum number of alternatives of one token."""


@dataclass(frozen=True)
class TokenLogprob:
    """A token and the natural logarithm of its probability.

    The probability is that of the model's own distribution, before temperature, top_k, top_p,
    repetition penalty and grammar change it: a token that a grammar forced may be unlikely, or
    have -inf.

    Attributes:
        token_id: its id.
        token: its bytes, which need not be whole characters.
        logprob: at most 0.
        top: the most likely tokens of its position, the likeliest first; they have no `top`.
    """

    token_id: int
    token: bytes
    logprob: float
    top: "tuple[TokenLogprob, ...]" = ()

    @property
    def text(self) -> str:
        """The token as text, with a replacement character for each incomplete one."""
        return self.token.decode(errors="replace")


@dataclass(frozen=True)
class Wanted:
    """What is recorded of the token of one row.

    Attributes:
        row: its row of logits.
        place: its place among the tokens that are drawn.
        top: number of alternatives.
        ids: tokens whose logits are needed too.
    """

    row: int
    place: int
    top: int
    ids: NDArray[np.int64]


@dataclass(frozen=True)
class Likelihood:
    """How likely one token and others were.

    Attributes:
        own: the log-probability of the token.
        top: ids and log-probabilities of the likeliest tokens, the likeliest first.
        ids: tokens, and `logits`: theirs.
    """

    own: float
    top: list[tuple[int, float]]
    ids: list[int]
    logits: list[float]


class Likelihoods:
    """Log-probabilities of drawn tokens, computed where their logits are, without waiting.

    Args:
        logits: the model's, float32 [M, vocab].
        tokens: int64 [N], those that are drawn.
        wanted: what is recorded.

    Attributes:
        numbers: int32 [numbers], to be copied to the host: a few for each of `wanted`.
    """

    @torch.inference_mode()
    def __init__(self, logits: Tensor, tokens: Tensor, wanted: Sequence[Wanted]) -> None:
        self._wanted = wanted
        self._top = min(max(each.top for each in wanted), logits.shape[1])
        self._width = max(len(each.ids) for each in wanted)
        ids = np.zeros((len(wanted), self._width), np.int64)
        for row, each in zip(ids, wanted, strict=True):
            row[: len(each.ids)] = each.ids
        rows, places, others = stage(
            [
                np.array([each.row for each in wanted]),
                np.array([each.place for each in wanted]),
                ids,
            ],
            logits.device,
        )
        chosen = logits.index_select(0, rows)
        logprobs = chosen.log_softmax(-1)
        drawn = tokens.index_select(0, places)[:, None].clamp(min=0)
        values, best = logprobs.topk(self._top)
        floats = torch.cat([logprobs.gather(1, drawn), values, chosen.gather(1, others)], 1)
        self.numbers = torch.cat([floats.view(torch.int32), best.int()], 1).flatten()

    def read(self, numbers: Iterator[int]) -> list[Likelihood]:
        """Return an entry for each of `wanted`, of the next of the host's copy of `numbers`."""
        found = []
        for each in self._wanted:
            bits = list(islice(numbers, 1 + self._top + self._width))
            own, *floats = np.array(bits, np.int32).view(np.float32).tolist()
            best = list(islice(numbers, self._top))
            top = list(zip(best, floats, strict=False))[: each.top]
            logits = floats[self._top :][: len(each.ids)]
            found.append(Likelihood(own, top, each.ids.tolist(), logits))
        return found


class LogprobRecorder:
    """Records the log-probabilities of one answer, token by token.

    Args:
        top: number of alternatives of each token.
        choices: the allowed answers; empty for any other form.
        tokenizer: the model's.

    Attributes:
        tokens: one entry for each drawn token.
    """

    def __init__(self, top: int, choices: Sequence[str], tokenizer: Tokenizer) -> None:
        self._top, self._tokenizer = top, tokenizer
        self._choices = ChoiceTree(choices, tokenizer) if choices else None
        self.tokens: list[TokenLogprob] = []
        self._taken = 0

    def take(self) -> list[TokenLogprob]:
        """Return the entries since the last call."""
        taken = self.tokens[self._taken :]
        self._taken = len(self.tokens)
        return taken

    def wanted(self, row: int, place: int, draw: Draw, vocab: int) -> Wanted:
        """Return what to record of the next token.

        Args:
            row, place: see `Wanted`.
            draw: how it is drawn.
            vocab: tokens that have logits.
        """
        ids = np.zeros(0, np.int64)
        if self._choices is not None and self._choices.is_open:
            assert draw.allowed is not None
            ids = tokens_of(draw.allowed, vocab)
        return Wanted(row, place, self._top, ids)

    def add(self, token: int, likelihood: Likelihood) -> None:
        """Record a token that was drawn, and what `wanted` asked for."""
        alternatives = tuple(
            TokenLogprob(i, self._tokenizer.token_bytes(i), value)
            for i, value in likelihood.top
            if value > float("-inf")  # such a token has no embedding
        )
        own = TokenLogprob(token, self._tokenizer.token_bytes(token), likelihood.own, alternatives)
        self.tokens.append(own)
        if self._choices is not None:
            self._choices.add(likelihood.ids, likelihood.logits, token)

    @property
    def choice_probabilities(self) -> dict[str, float] | None:
        """See `Completion.choice_probabilities`."""
        return self._choices.probabilities() if self._choices is not None else None


class Branch(NamedTuple):
    """The choices with a common beginning: a range of all choices, sorted."""

    first: int
    end: int

    @property
    def size(self) -> int:
        """How many choices it has."""
        return self.end - self.first


class ChoiceTree:
    """The probability of each allowed answer, along the tokens of the one that is being written.

    The choices form a tree of their common beginnings. At each step the model's distribution over
    the allowed tokens, renormalised, is split between the branches; the drawn token leads into one
    of them, and its share is split further at the next step, until one choice is left.

    Only the branch that was drawn is followed, so no forward pass is needed beside those of the
    answer. Where a branch that was not drawn still holds several choices, they share it equally.
    """

    def __init__(self, choices: Sequence[str], tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._choices = tuple(choices)
        self._texts = sorted(choice.encode() for choice in choices)
        self._shares = [0.0] * len(self._texts)
        self._open = Branch(0, len(self._texts))
        self._written, self._mass = b"", 1.0

    @property
    def is_open(self) -> bool:
        """Whether the next token splits the branch that is being written."""
        return self._open.size > 1

    def add(self, ids: Sequence[int], logits: Sequence[float], token: int) -> None:
        """Split the branch that is being written, by the logits of the allowed tokens `ids`."""
        if not self.is_open:
            return
        odds = np.exp(np.array(logits) - max(logits))  # 0 for a token without an embedding
        odds /= odds.sum()
        branches: dict[Branch, float] = defaultdict(float)
        for i, share in zip(ids, odds.tolist(), strict=True):
            branches[self._branch_of(i)] += share
        drawn = self._branch_of(token)
        for branch, share in branches.items():
            if branch != drawn:
                self._divide(branch, self._mass * share)
        self._open, self._mass = drawn, self._mass * branches[drawn]
        self._written += self._tokenizer.token_bytes(token)

    def _branch_of(self, token: int) -> "Branch":
        """Return the choices that may still be meant after a token that the form allows."""
        if token in self._tokenizer.stop_ids:
            first = bisect_left(self._texts, self._written)
            return Branch(first, first + 1)
        written = self._written + self._tokenizer.token_bytes(token)
        # No text has the byte 0xff, so all that begin with `written` come before it.
        return Branch(
            bisect_left(self._texts, written), bisect_left(self._texts, written + b"\xff")
        )

    def _divide(self, branch: "Branch", mass: float) -> None:
        for place in range(branch.first, branch.end):
            self._shares[place] += mass / branch.size

    def probabilities(self) -> dict[str, float]:
        """Return the probability of each choice; together they are 1."""
        rest = self._mass / self._open.size
        found = {
            text: share + (rest if self._open.first <= place < self._open.end else 0.0)
            for place, (text, share) in enumerate(zip(self._texts, self._shares, strict=True))
        }
        return {choice: found[choice.encode()] for choice in self._choices}
