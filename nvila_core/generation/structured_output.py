"""Answers of a given form: before each token, those that the form does not allow are ruled out."""

import threading
from collections import OrderedDict
from weakref import WeakKeyDictionary

import numpy as np
import torch
from llguidance import LLMatcher, LLTokenizer, TokenizerWrapper
from torch import Tensor
from transformers.convert_slow_tokenizer import bytes_to_unicode

from nvila_core.errors import PromptError
from nvila_core.generation.grammar import LIMITS, grammar_of, schema_error
from nvila_core.generation.sampling import SamplingParams
from nvila_core.prompt.tokenizer import Tokenizer

CACHED_GRAMMARS = 128


class Constraint:
    """How far one answer is in its form. For one thread at a time."""

    def __init__(self, matcher: LLMatcher) -> None:
        self._matcher = matcher

    def mask(self, logits: Tensor) -> Tensor:
        """float32 logits [vocab] with -inf for every token that may not come next.

        Raises:
            PromptError: the form is too involved to follow, or the model lacks its tokens.
        """
        bits = np.frombuffer(self._matcher.compute_bitmask(), dtype=np.uint8)
        self._check()
        allowed = np.unpackbits(bits, bitorder="little", count=len(logits)).astype(bool)
        masked = logits.masked_fill(~torch.from_numpy(allowed).to(logits.device), float("-inf"))
        if not bool((masked > float("-inf")).any()):
            raise PromptError(
                "The answer cannot be given in the form asked for, because the model has no token "
                "for what must come next: ask for another form."
            )
        return masked

    def advance(self, token: int) -> None:
        """Take the token that was drawn.

        Raises:
            PromptError: `mask` had ruled it out.
        """
        self._matcher.consume_token(token)
        self._check()

    @property
    def finished(self) -> bool:
        """Whether the answer is complete and nothing but the end of the turn may follow."""
        return self._matcher.is_stopped()

    def _check(self) -> None:
        if self._matcher.is_error():
            raise schema_error(self._matcher.get_error())


class TokenTable:
    """A byte-level BPE as the library wants it: the exact bytes of every token.

    Ids without an embedding row have none, so they are never allowed. Added tokens cannot be part
    of an answer; those that end a turn can end it.

    Raises:
        PromptError: the tokenizer is of another kind.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._plain = tokenizer.plain  # not `tokenizer`, which this table must not keep alive
        self._known = known = min(tokenizer.rows, len(tokenizer))
        byte_of = {letter: byte for byte, letter in bytes_to_unicode().items()}
        self.tokens = [b""] * len(tokenizer)
        self.special_token_ids = [i for i in tokenizer.control_ids.values() if i < known]
        self.stop_ids = sorted(i for i in tokenizer.stop_ids if i < known)
        added = {*tokenizer.control_ids.values(), *tokenizer.stop_ids}
        try:
            for text, i in tokenizer.raw.get_vocab(with_added_tokens=True).items():
                if i < known:
                    self.tokens[i] = (
                        text.encode() if i in added else bytes(byte_of[letter] for letter in text)
                    )
            self.eos_token_id, self.bos_token_id = self.stop_ids[0], None
        except (KeyError, IndexError):
            raise PromptError(
                "This checkpoint's tokenizer cannot be held to a choice or a JSON schema, because "
                "it is not a byte-level BPE: ask for free text."
            ) from None

    def __call__(self, text: str | bytes) -> list[int]:
        """Ids of `text`, which the library allows alone where the form leaves no other text."""
        if isinstance(text, bytes):
            raise TypeError("text is wanted")  # it probes for what is taken
        ids = self._plain.encode(text, add_special_tokens=False).ids
        if max(ids, default=0) < self._known:
            return ids
        return [self.tokens.index(bytes([byte])) for byte in text.encode()]


class Vocabulary:
    """The grammars compiled for one tokenizer, the latest of them kept. Thread-safe."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        table = TokenTable(tokenizer)
        self._tokenizer = LLTokenizer(TokenizerWrapper(table), eos_token=table.stop_ids)
        self._lock = threading.Lock()
        self._compiled: OrderedDict[tuple[tuple[str, ...], str | None], LLMatcher] = OrderedDict()

    def constraint(self, choice: tuple[str, ...], schema: str | None) -> Constraint:
        """A fresh constraint; compiled forms are kept.

        Raises:
            PromptError: the form cannot be followed.
        """
        key = (choice, schema)
        with self._lock:
            matcher = self._compiled.get(key)
            if matcher is not None:
                self._compiled.move_to_end(key)
                return Constraint(matcher.deep_copy())
        matcher = LLMatcher(self._tokenizer, grammar_of(choice, schema), log_level=0, limits=LIMITS)
        if matcher.is_error():
            raise schema_error(matcher.get_error())
        with self._lock:
            self._compiled[key] = matcher
            while len(self._compiled) > CACHED_GRAMMARS:
                self._compiled.popitem(last=False)
            return Constraint(matcher.deep_copy())


_vocabularies: WeakKeyDictionary[Tokenizer, Vocabulary] = WeakKeyDictionary()
_building = threading.Lock()


def constraint_for(params: SamplingParams, tokenizer: Tokenizer) -> Constraint | None:
    """What `params` ask of the answer's form; None for free text. May be called in any thread.

    Raises:
        PromptError: the form cannot be followed, or not with this tokenizer.
    """
    if not params.choice and params.json_schema is None:
        return None
    assert params.json_schema is None or isinstance(params.json_schema, str)
    with _building:  # which takes half a second for a tokenizer of the true size
        vocabulary = _vocabularies.get(tokenizer)
        if vocabulary is None:
            vocabulary = _vocabularies[tokenizer] = Vocabulary(tokenizer)
    return vocabulary.constraint(tuple(params.choice), params.json_schema)
