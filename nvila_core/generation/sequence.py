"""The state of one generation: its tokens, its text so far, and why it stopped."""

from codecs import getincrementaldecoder
from typing import Any

from torch import Tensor

from nvila_core.errors import NotFinite, PromptError
from nvila_core.generation.completion import Completion, FinishReason, Timings, Usage
from nvila_core.generation.draw import NO_TOKEN_POSSIBLE, Draw, draw_tokens
from nvila_core.generation.logprobs import (
    Likelihood,
    Likelihoods,
    LogprobRecorder,
    TokenLogprob,
)
from nvila_core.generation.sampling import SamplingParams, TokenSampler
from nvila_core.generation.structured_output import make_constraint
from nvila_core.prompt.builder import Prompt
from nvila_core.prompt.tokenizer import Tokenizer

UNFINISHED = "\ufffd"
"""Text of a token that ends in the middle of a character."""

MIN_SETTLED_TOKENS = 16
"""Minimum number of tokens to decode together before their text is settled, where a token's bytes
are not known."""


class Sequence:
    """The state of one generation; holds no model.

    `NVILA.prefill` and `NVILA.decode`, or an `Engine`, compute its tokens.

    Args:
        prompt: the prepared prompt.
        params: how to sample.
        tokenizer: the model's.
        max_model_len: maximum number of positions of prompt and answer together.

    Attributes:
        token_ids: the generated tokens.
        text: the text of `token_ids` so far.
        finish_reason: None while unfinished.
        cache: keys and values of all positions but the newest token's; unused by an engine.
    """

    def __init__(
        self, prompt: Prompt, params: SamplingParams, tokenizer: Tokenizer, max_model_len: int
    ) -> None:
        self.prompt, self.params, self.tokenizer = prompt, params, tokenizer
        self.max_tokens = min(params.max_tokens, max_model_len - prompt.num_tokens)
        # The template ends every turn with the token that is to end the answer too.
        ignored = {tokenizer.image_id, tokenizer.video_id, *tokenizer.stop_ids}
        self.sampler = TokenSampler(params, [i for i in prompt.token_ids if i not in ignored])
        self.constraint = make_constraint(params, tokenizer)
        self.recorder = (
            None
            if params.logprobs is None
            else LogprobRecorder(params.logprobs, tuple(params.choice), tokenizer)
        )
        self.token_ids: list[int] = []
        self.finish_reason: FinishReason | None = None if self.max_tokens > 0 else "length"
        self.cache: Any = None
        self.cached_tokens = self.cached_tiles = 0
        self.queue_ms = self.encode_ms = self.generate_ms = 0.0
        self.text, self.sent = "", 0
        self._decoded = Detokenizer(tokenizer)
        self._draw: Draw | None = None

    @property
    def is_greedy(self) -> bool:
        """Whether the next token is the most likely one, whatever it is."""
        return self.sampler.is_greedy and self.constraint is None

    @property
    def draws_blindly(self) -> bool:
        """Whether how a token is drawn does not depend on the tokens before it."""
        return self.constraint is None and not self.sampler.is_penalised

    def next_draw(self, ahead: int = 0) -> Draw:
        """Return what drawing the next token needs; the same until `take` is called.

        Args:
            ahead: tokens that are drawn before it and not taken yet: 0, unless `draws_blindly`.

        Raises:
            PromptError: the form is too complex.
        """
        if ahead:
            return self.sampler.next(len(self.token_ids) + ahead)
        if self._draw is not None:
            return self._draw
        allowed = None
        if self.constraint is not None:
            left = self.max_tokens - len(self.token_ids)
            # The first half of the tokens is for content, however many the ending may need.
            allowed = self.constraint.allowed(None if 2 * left > self.max_tokens else left)
        self._draw = self.sampler.next(len(self.token_ids), allowed)
        return self._draw

    def take(self, token: int, likelihood: Likelihood | None = None) -> None:
        """Append the token that was drawn as `next_draw` says.

        Args:
            token: its id.
            likelihood: how likely it was, where a recorder wants it.

        Raises:
            PromptError: none was possible.
        """
        if token == NO_TOKEN_POSSIBLE:
            raise PromptError(
                "The model cannot answer in the requested form, because it has no token for what "
                "must come next: request another form."
            )
        if self.recorder is not None and likelihood is not None:
            self.recorder.add(token, likelihood)
        self._draw = None
        self.sampler.note(token)
        if self.constraint is not None:
            self.constraint.advance(token)
        self.append(token)

    def accept(self, logits: Tensor) -> int:
        """Draw the next token from float32 logits [vocab] and append it.

        Raises:
            NotFinite: no logit is finite, or one is NaN or infinitely high.
            PromptError: the form is too complex, or the model has no token for it.
        """
        if not bool(logits.max().isfinite()):
            raise NotFinite
        draw = self.next_draw()
        tokens = draw_tokens(logits[None], [draw])
        likelihood = None
        if self.recorder is not None:
            wanted = self.recorder.wanted(0, 0, draw, len(logits))
            found = Likelihoods(logits[None], tokens, [wanted])
            (likelihood,) = found.read(iter(found.numbers.tolist()))
        token = int(tokens)
        self.take(token, likelihood)
        return token

    def append(self, token: int) -> None:
        """Append a drawn token, and finish the sequence if it ends the answer."""
        self.token_ids.append(token)
        ended = token in self.tokenizer.stop_ids and not self.params.ignore_eos
        self.text = self._decoded.add(token).lstrip()
        cuts = [place for s in self.params.stop_strings if (place := self.text.find(s)) >= 0]
        if cuts:
            self.text = self.text[: min(cuts)]
        complete = self.constraint is not None and self.constraint.finished
        if ended or cuts or complete:
            self.finish("stop")
        elif len(self.token_ids) >= self.max_tokens:
            self.finish("length")

    def finish(self, reason: FinishReason) -> None:
        """End the sequence and drop its cache."""
        self.finish_reason, self.cache = reason, None
        self.text = self.text.strip()

    def take_delta(self) -> str:
        """Return the text since the last call that no later token can change."""
        settled = len(self.text) if self.finish_reason else self.settled_length()
        delta = self.text[self.sent : settled]
        self.sent = max(self.sent, settled)
        return delta

    def take_logprobs(self) -> list[TokenLogprob]:
        """Return the log-probabilities of the tokens drawn since the last call, if recorded."""
        return [] if self.recorder is None else self.recorder.take()

    def settled_length(self) -> int:
        """Return the length of the text that cannot change any more.

        White space at the end, an incomplete character and the beginning of a stop string may still
        change.
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
        """Return the answer of a finished sequence."""
        assert self.finish_reason is not None
        usage = Usage(
            vision_tokens=self.prompt.vision_tokens,
            prompt_tokens=self.prompt.num_tokens,
            completion_tokens=len(self.token_ids),
            tiles=self.prompt.tiles,
            cached_tokens=self.cached_tokens,
            cached_tiles=self.cached_tiles,
        )
        timings = Timings(self.queue_ms, self.encode_ms, self.generate_ms)
        recorder = self.recorder
        return Completion(
            self.text,
            list(self.token_ids),
            self.finish_reason,
            usage,
            timings,
            logprobs=None if recorder is None else list(recorder.tokens),
            choice_probabilities=None if recorder is None else recorder.choice_probabilities,
        )


class Detokenizer:
    """Decodes a growing list of ids without decoding all of it again for every token."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._settled = ""
        self._decoder = getincrementaldecoder("utf-8")("replace")
        self._open: list[int] = []
        """Tokens whose text is not settled; of tokenizers that are no byte-level BPE."""

    def add(self, token: int) -> str:
        """Append a token and return the whole text."""
        if not self._tokenizer.is_byte_level:
            return self._add_to_open(token)
        if token not in self._tokenizer.special_ids:
            self._settled += self._decoder.decode(self._tokenizer.token_bytes(token))
        incomplete, _ = self._decoder.getstate()
        return self._settled + incomplete.decode(errors="replace")

    def _add_to_open(self, token: int) -> str:
        self._open.append(token)
        tail = self._tokenizer.decode(self._open)
        if len(self._open) >= MIN_SETTLED_TOKENS and not tail.endswith(UNFINISHED):
            self._settled += tail
            self._open = []
            return self._settled
        return self._settled + tail
