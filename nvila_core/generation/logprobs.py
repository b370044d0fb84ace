"""How likely the model found each token that it drew, and each choice that it could have made."""

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

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

    @torch.inference_mode()
    def add(self, logits: Tensor, allowed: Tensor, token: int) -> None:
        """Record a token that was drawn.

        Args:
            logits: the model's, float32 [vocab].
            allowed: the same, with -inf for each token that the form does not allow.
            token: the id that was drawn.
        """
        logprobs = logits.log_softmax(-1)
        wanted = [token]
        if self._top:
            wanted += logprobs.topk(min(self._top, len(logprobs))).indices.tolist()
        values = logprobs[torch.tensor(wanted, device=logprobs.device)].tolist()
        (_, own), *top = zip(wanted, values, strict=True)
        alternatives = tuple(
            TokenLogprob(i, self._tokenizer.token_bytes(i), value)
            for i, value in top
            if value > float("-inf")  # such a token has no embedding
        )
        self.tokens.append(
            TokenLogprob(token, self._tokenizer.token_bytes(token), own, alternatives)
        )
        if self._choices is not None:
            self._choices.add(allowed, token)

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

    def add(self, allowed: Tensor, token: int) -> None:
        """Split the branch that is being written, from the logits [vocab] of the next token."""
        if self._open.size < 2:
            return
        ids = (allowed > float("-inf")).nonzero().flatten()
        odds = allowed[ids].double().softmax(-1)
        branches: dict[Branch, float] = defaultdict(float)
        for i, share in zip(ids.tolist(), odds.tolist(), strict=True):
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
