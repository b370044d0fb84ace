"""What came out of a request, what it cost, and how long it took."""

from dataclasses import dataclass, field
from typing import Literal

FinishReason = Literal["stop", "length", "cancelled"]


@dataclass(frozen=True)
class Usage:
    """Counts of one request.

    Attributes:
        vision_tokens: LLM positions that hold picture features, line ends not counted.
        prompt_tokens: all LLM positions of the prompt, pictures included.
        completion_tokens: generated tokens, the end-of-turn token included.
        tiles: pictures given to the vision tower.
        cached_tokens: prompt positions that did not have to be computed.
        cached_tiles: tiles that did not have to go through the vision tower.
    """

    vision_tokens: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    tiles: int = 0
    cached_tokens: int = 0
    cached_tiles: int = 0


@dataclass(frozen=True)
class Timings:
    """Milliseconds: waiting for the engine, in tower and projector, and in the language model."""

    queue_ms: float = 0.0
    encode_ms: float = 0.0
    generate_ms: float = 0.0


@dataclass(frozen=True)
class Completion:
    """An answer.

    Attributes:
        text: without special tokens and stop strings, stripped.
        token_ids: what was generated, the end-of-turn token included.
        finish_reason: "stop", "length" or "cancelled".
    """

    text: str
    token_ids: list[int]
    finish_reason: FinishReason
    usage: Usage
    timings: Timings = field(default_factory=Timings)
