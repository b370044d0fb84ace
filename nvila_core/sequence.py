"""One request while it is generated: its tokens, its cache, its text so far, and why it stopped."""

from typing import Any

from torch import Tensor

from .completion import Completion, FinishReason, Timings, Usage
from .prompt import Prompt
from .sampling import Sampler, SamplingParams
from .tokens import Tokenizer

UNFINISHED = "\ufffd"


class Sequence:
    """The state of one generation. It holds no model; `NVILA.prefill` and `NVILA.decode` advance
    it.

    Attributes:
        token_ids: what has been generated.
        finish_reason: None while it runs.
        cache: keys and values of all positions but the newest token's.
    """

    def __init__(
        self, prompt: Prompt, params: SamplingParams, tokenizer: Tokenizer, context: int
    ) -> None:
        self.prompt, self.params, self.tokenizer = prompt, params, tokenizer
        self.limit = min(params.max_tokens, context - prompt.num_tokens)
        media = (tokenizer.image_id, tokenizer.video_id)
        self.sampler = Sampler(params, [i for i in prompt.token_ids if i not in media])
        self.token_ids: list[int] = []
        self.finish_reason: FinishReason | None = None if self.limit > 0 else "length"
        self.cache: Any = None
        self.cached_tokens = 0
        self.queue_ms = self.encode_ms = self.generate_ms = 0.0
        self.text, self.sent = "", 0

    @property
    def positions(self) -> int:
        """LLM positions that the sequence may come to fill."""
        return self.prompt.num_tokens + max(0, self.limit)

    def accept(self, logits: Tensor) -> int:
        """Draw the next token from float32 logits [vocab] and see whether it ends the answer."""
        token = self.sampler.draw(logits)
        self.token_ids.append(token)
        ended = token in self.tokenizer.stop_ids and not self.params.ignore_eos
        self.text = self.tokenizer.decode(self.token_ids).lstrip()
        cuts = [place for s in self.params.stop_strings if (place := self.text.find(s)) >= 0]
        if cuts:
            self.text = self.text[: min(cuts)]
        if ended or cuts:
            self.finish("stop")
        elif len(self.token_ids) >= self.limit:
            self.finish("length")
        return token

    def finish(self, reason: FinishReason) -> None:
        """End the sequence and let go of its cache."""
        self.finish_reason, self.cache = reason, None
        self.text = self.text.strip()

    def take_delta(self) -> str:
        """The text that is new since the last call and that no later token can change."""
        settled = len(self.text) if self.finish_reason else self.settled()
        delta = self.text[self.sent : settled]
        self.sent = max(self.sent, settled)
        return delta

    def settled(self) -> int:
        """Length of the text without what may still change: white space, half a character, half a
        stop string.
        """
        text = self.text.rstrip(UNFINISHED).rstrip()
        held = (
            n
            for stop in self.params.stop_strings
            for n in range(min(len(stop) - 1, len(text)), 0, -1)
            if text.endswith(stop[:n])
        )
        return len(text[: len(text) - max(held, default=0)].rstrip())

    def completion(self) -> Completion:
        """The answer; the sequence must have finished."""
        assert self.finish_reason is not None
        usage = Usage(
            vision_tokens=self.prompt.vision_tokens,
            prompt_tokens=self.prompt.num_tokens,
            completion_tokens=len(self.token_ids),
            tiles=self.prompt.tiles,
            cached_tokens=self.cached_tokens,
        )
        timings = Timings(self.queue_ms, self.encode_ms, self.generate_ms)
        return Completion(self.text, list(self.token_ids), self.finish_reason, usage, timings)
