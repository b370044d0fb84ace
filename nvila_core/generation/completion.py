"""The answer to a request, with its token counts and timings."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from nvila_core.generation.logprobs import TokenLogprob  # imports torch

FinishReason = Literal["stop", "length", "cancelled"]


@dataclass(frozen=True)
class Usage:
    """Token and tile counts of one request.

    Attributes:
        vision_tokens: LLM positions that hold picture features, without line ends.
        prompt_tokens: all LLM positions of the prompt, pictures included.
        completion_tokens: generated tokens, the end-of-turn token included.
        tiles: tiles of the prompt's pictures and frames.
        cached_tokens: prompt positions taken from the prefix cache.
        cached_tiles: tiles that were not encoded, because their features or positions were cached.
    """

    vision_tokens: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    tiles: int = 0
    cached_tokens: int = 0
    cached_tiles: int = 0


@dataclass(frozen=True)
class Timings:
    """Milliseconds of one request.

    Attributes:
        queue_ms: from arrival until the engine first scheduled it; 0 without an engine.
        encode_ms: in vision tower and projector.
        generate_ms: in the language model, including the steps of other requests.
    """

    queue_ms: float = 0.0
    encode_ms: float = 0.0
    generate_ms: float = 0.0


@dataclass(frozen=True)
class Completion:
    """A finished answer.

    Attributes:
        text: the answer, stripped, without special tokens and stop strings.
        token_ids: the generated tokens, the end-of-turn token included.
        finish_reason: "stop" (end of turn, stop string or complete form), "length" or "cancelled".
        usage: token and tile counts.
        timings: milliseconds.
        logprobs: one for each of `token_ids`; None unless `SamplingParams.logprobs` asks for them.
        choice_probabilities: with `SamplingParams(choice=..., logprobs=0)` the probability of each
            choice, together 1; else None. They are the model's own, renormalised over the allowed
            tokens where two choices differ: of "yes" and "no", that of the first token that tells
            them apart. Of longer choices it is the product over the tokens that lead to it,
            whatever temperature drew them. They cost no forward pass beside those of the answer,
            so they are exact where the choices differ from their first token on; choices that
            share a beginning other than the answer's own share its probability equally.
    """

    text: str
    token_ids: list[int]
    finish_reason: FinishReason
    usage: Usage
    timings: Timings = field(default_factory=Timings)
    logprobs: "list[TokenLogprob] | None" = None
    choice_probabilities: dict[str, float] | None = None
