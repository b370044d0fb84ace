"""How the next token is chosen: greedy by default, as the original does."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from nvila_core.errors import PromptError
from nvila_core.generation.grammar import check_choice, schema_text


@dataclass(frozen=True)
class SamplingParams:
    """What to generate and when to stop.

    Attributes:
        max_tokens: most tokens to generate; less where the context ends first.
        temperature: 0 is greedy; higher is more random.
        top_p: sample from the fewest tokens whose probabilities add up to this.
        top_k: sample from this many of the likeliest tokens; 0 means all.
        seed: makes sampling repeatable; None draws anew every time.
        repetition_penalty: above 1 makes tokens of the prompt and the answer less likely.
        stop: strings that end the answer; they are not part of it.
        ignore_eos: go on to `max_tokens` through end-of-turn tokens.
        choice: the answer is exactly one of these strings.
        json_schema: the answer is JSON that fits this schema, given as an object or as text; kept
            as text.
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

    def __post_init__(self) -> None:
        object.__setattr__(
            self, "stop", (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)
        )
        rules = (
            (self.max_tokens >= 1, "max_tokens must be at least 1"),
            (0 <= self.temperature < float("inf"), "temperature must be 0 or more"),
            (0 < self.top_p <= 1, "top_p must be above 0 and at most 1"),
            (self.top_k >= 0, "top_k must be 0 (all) or more"),
            (0 < self.repetition_penalty < float("inf"), "repetition_penalty must be above 0"),
            (all(isinstance(s, str) and s for s in self.stop), "stop must hold non-empty strings"),
        )
        for holds, rule in rules:
            if not holds:
                raise PromptError(f"The sampling parameters are wrong: {rule}.")
        self._check_form()

    def _check_form(self) -> None:
        """Whether a schema can be followed shows only when it is compiled."""
        object.__setattr__(self, "choice", check_choice(self.choice, self.stop_strings))
        if self.json_schema is not None:
            object.__setattr__(self, "json_schema", schema_text(self.json_schema))
        constrained = bool(self.choice) or self.json_schema is not None
        rules = (
            (not self.choice or self.json_schema is None, "give choice or json_schema, not both"),
            (
                not (self.ignore_eos and constrained),
                "ignore_eos does not go with choice or json_schema",
            ),
        )
        for holds, rule in rules:
            if not holds:
                raise PromptError(f"The sampling parameters are wrong: {rule}.")

    @property
    def stop_strings(self) -> tuple[str, ...]:
        """`stop` as a tuple."""
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)


class Sampler:
    """Draws the tokens of one sequence.

    Args:
        prompt_ids: ids that the repetition penalty counts as used, besides what is drawn.
    """

    def __init__(self, params: SamplingParams, prompt_ids: Sequence[int]) -> None:
        self.params = params
        self.used = set(prompt_ids) if params.repetition_penalty != 1.0 else None
        self.generator: torch.Generator | None = None
        if params.temperature > 0:
            self.generator = torch.Generator()
            if params.seed is None:
                self.generator.seed()
            else:
                self.generator.manual_seed(params.seed)

    @property
    def plainly_greedy(self) -> bool:
        """Whether `draw` is no more than an argmax."""
        return self.used is None and self.generator is None

    @torch.inference_mode()
    def draw(self, logits: Tensor) -> int:
        """The next token from float32 logits [vocab]."""
        if self.used is not None:
            logits = self.penalise(logits)
        token = int(logits.argmax()) if self.generator is None else self.sample(logits.cpu())
        if self.used is not None:
            self.used.add(token)
        return token

    def penalise(self, logits: Tensor) -> Tensor:
        """Divide positive and multiply negative logits of used tokens by the penalty."""
        assert self.used is not None
        used = [i for i in self.used if i < logits.shape[0]]
        index = torch.tensor(used, dtype=torch.long, device=logits.device)
        penalty, values = self.params.repetition_penalty, logits[index]
        return logits.index_copy(
            0, index, torch.where(values > 0, values / penalty, values * penalty)
        )

    def sample(self, logits: Tensor) -> int:
        """One draw from the softmax after temperature, top_k and top_p, in this order."""
        params = self.params
        values, order = (logits / params.temperature).sort(descending=True, stable=True)
        if params.top_k:
            values, order = values[: params.top_k], order[: params.top_k]
        chances = values.softmax(-1)
        if params.top_p < 1:
            before = chances.cumsum(-1) - chances
            chances = torch.where(before < params.top_p, chances, 0.0)
        return int(order[torch.multinomial(chances, 1, generator=self.generator)])
