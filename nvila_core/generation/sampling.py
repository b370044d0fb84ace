"""Choose the next token: greedy by default, as the original implementation does."""

import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite
from numbers import Integral, Real
from typing import Any

import numpy as np

from nvila_core.errors import PromptError, is_unicode
from nvila_core.generation.draw import Bits, Draw
from nvila_core.generation.grammar import check_choice, schema_text
from nvila_core.generation.logprobs import MAX_TOP_LOGPROBS

MIN_TEMPERATURE = 1e-5
"""Below, logits divided by it overflow; 0 is greedy."""

MAX_TEMPERATURE = 100
MAX_PENALTY = 100


def is_integer(value: object) -> bool:
    """Return whether a value is a whole number, of Python or NumPy, and not a bool."""
    if type(value) is int:  # asking an abstract class takes longer
        return True
    return isinstance(value, Integral) and not isinstance(value, bool)


def is_number(value: object) -> bool:
    """Return whether a value is a finite real number that a float can hold, and not a bool."""
    try:
        if type(value) is float:
            return isfinite(value)
        return not isinstance(value, bool) and isinstance(value, Real) and isfinite(value)
    except OverflowError:
        return False


@dataclass(frozen=True)
class SamplingParams:
    """How to sample an answer, when to stop, and which form it must have.

    Attributes:
        max_tokens: maximum number of generated tokens; fewer where the context ends first.
        temperature: 0 is greedy; higher is more random.
        top_p: sample from the fewest tokens whose probabilities add up to this.
        top_k: sample from this many of the most likely tokens; 0 means all.
        seed: makes sampling repeatable: the random number of a token depends on the seed and on how
            many tokens were drawn before it. None uses a new random seed for each request.
        repetition_penalty: above 1 makes tokens of the prompt and the answer less likely, but the
            end-of-turn tokens of the prompt.
        stop: a string or strings that end the answer; they are not part of it.
        ignore_eos: continue to `max_tokens` through end-of-turn tokens.
        choice: the answer is exactly one of these strings.
        json_schema: the answer is JSON that fits this schema, given as an object or as text; stored
            as text.
        logprobs: the completion has the log-probability of each of its tokens and of this many of
            the most likely ones, 0 to 20, and of a choice the probabilities; None: neither, which
            is fastest. See `TokenLogprob` and `Completion.choice_probabilities`.

    Raises:
        PromptError: a value is out of range, or two of them contradict each other.

    Example:
        >>> SamplingParams(max_tokens=8, stop="END").stop
        ('END',)
        >>> SamplingParams(temperature=-1)
        Traceback (most recent call last):
        ...
        nvila_core.errors.PromptError: Invalid sampling parameters: temperature must be 0 or more.
    """

    max_tokens: int = 512
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int | None = None
    repetition_penalty: float = 1.0
    stop: str | Sequence[str] = ()
    ignore_eos: bool = False
    choice: Sequence[str] = ()
    json_schema: dict[str, Any] | str | None = None
    logprobs: int | None = None

    def __post_init__(self) -> None:
        object.__setattr__(
            self, "stop", (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)
        )
        for name in ("max_tokens", "top_k", "seed", "logprobs"):
            value = getattr(self, name)
            optional = name in ("seed", "logprobs")
            if not (optional and value is None) and not is_integer(value):
                raise PromptError(f"Invalid sampling parameters: {name} must be a whole number.")
        for name in ("temperature", "top_p", "repetition_penalty"):
            if not is_number(getattr(self, name)):
                raise PromptError(f"Invalid sampling parameters: {name} must be a number.")
        temperature, penalty = self.temperature, self.repetition_penalty
        rules = (
            (self.max_tokens >= 1, "max_tokens must be at least 1"),
            (temperature >= 0, "temperature must be 0 or more"),
            (
                temperature == 0 or MIN_TEMPERATURE <= temperature <= MAX_TEMPERATURE,
                f"temperature must be 0 (greedy) or from {MIN_TEMPERATURE:g} to {MAX_TEMPERATURE}",
            ),
            (0 < self.top_p <= 1, "top_p must be above 0 and at most 1"),
            (self.top_k >= 0, "top_k must be 0 (all) or more"),
            (penalty > 0, "repetition_penalty must be above 0"),
            (
                1 / MAX_PENALTY <= penalty <= MAX_PENALTY,
                f"repetition_penalty must be from {1 / MAX_PENALTY:g} to {MAX_PENALTY}",
            ),
            (
                self.seed is None or -(2**63) <= self.seed < 2**64,
                "seed must be at least -2**63 and below 2**64",
            ),
            (
                self.logprobs is None or 0 <= self.logprobs <= MAX_TOP_LOGPROBS,
                f"logprobs must be from 0 to {MAX_TOP_LOGPROBS}, or None",
            ),
            (all(isinstance(s, str) and s for s in self.stop), "stop must hold non-empty strings"),
            (
                all(not isinstance(s, str) or is_unicode(s) for s in self.stop),
                "stop holds half of a character (a lone surrogate)",
            ),
        )
        for holds, rule in rules:
            if not holds:
                raise PromptError(f"Invalid sampling parameters: {rule}.")
        self._check_form()

    def _check_form(self) -> None:
        """Check the form, except whether a grammar can follow the schema: compiling shows that."""
        object.__setattr__(self, "choice", check_choice(self.choice, self.stop_strings))
        if self.json_schema is not None:
            object.__setattr__(self, "json_schema", schema_text(self.json_schema))
        constrained = bool(self.choice) or self.json_schema is not None
        rules = (
            (not self.choice or self.json_schema is None, "give choice or json_schema, not both"),
            (
                not (self.ignore_eos and constrained),
                "ignore_eos cannot be combined with choice or json_schema",
            ),
        )
        for holds, rule in rules:
            if not holds:
                raise PromptError(f"Invalid sampling parameters: {rule}.")

    @property
    def stop_strings(self) -> tuple[str, ...]:
        """`stop` as a tuple."""
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)


def random_number(seed: int, index: int) -> float:
    """Return number `index` of a seed (0 to 2**64 - 1), at least 0 and below 1."""
    return float(np.random.Generator(np.random.Philox(counter=index, key=seed)).random())


class TokenSampler:
    """What drawing the tokens of one sequence needs, token by token.

    The random number of a token is that of a counter-based generator (Philox, Salmon et al. 2011):
    a function of the seed and of the token's index. So it is known before the tokens are, and the
    same when a token is drawn again.

    Args:
        params: temperature, top_k, top_p, seed and repetition penalty.
        prompt_ids: ids that the repetition penalty applies to, besides those drawn.
    """

    def __init__(self, params: SamplingParams, prompt_ids: Sequence[int]) -> None:
        self.params = params
        self._used: Bits | None = None
        if params.repetition_penalty != 1.0:
            self._used = np.zeros(0, np.uint8)
            for token in set(prompt_ids):
                self.note(token)
        self._seed = secrets.randbits(64) if params.seed is None else params.seed % 2**64

    @property
    def is_greedy(self) -> bool:
        """Whether the most likely token is drawn."""
        return self._used is None and self.params.temperature == 0

    @property
    def is_penalised(self) -> bool:
        """Whether a draw depends on the tokens drawn before it."""
        return self._used is not None

    def next(self, index: int, allowed: Bits | None = None) -> Draw:
        """Return what drawing a token needs.

        Args:
            index: how many tokens are drawn before it.
            allowed: the tokens that may come next; None: all.
        """
        params = self.params
        return Draw(
            temperature=params.temperature,
            top_k=params.top_k,
            top_p=params.top_p,
            penalty=params.repetition_penalty,
            number=random_number(self._seed, index) if params.temperature > 0 else 0.0,
            used=self._used,
            allowed=allowed,
        )

    def note(self, token: int) -> None:
        """Count a token that was drawn."""
        if self._used is None:
            return
        place, bit = divmod(token, 8)
        if place >= len(self._used):
            grown = np.zeros(max(place + 1, 2 * len(self._used)), np.uint8)
            grown[: len(self._used)] = self._used
            self._used = grown
        self._used[place] |= 1 << bit
