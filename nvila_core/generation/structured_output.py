"""Constrain answers to a form: mask the tokens that the form does not allow next."""

import json
import threading
from collections import OrderedDict
from typing import NamedTuple
from weakref import WeakKeyDictionary

import numpy as np
from llguidance import LLMatcher, LLTokenizer, TokenizerWrapper

from nvila_core.errors import PromptError
from nvila_core.generation.draw import Bits
from nvila_core.generation.grammar import LIMITS, grammar_of, schema_error
from nvila_core.generation.sampling import SamplingParams
from nvila_core.generation.schema_bounds import least_rest
from nvila_core.generation.schema_check import CHECKER
from nvila_core.prompt.tokenizer import Tokenizer, byte_of_letter

MAX_CACHED_GRAMMARS = 128
MAX_CACHED_BYTES = 256 << 20
"""Memory that compiling the cached grammars took; all but a few take less than a megabyte."""

_QUOTE, _BACKSLASH = b'"\\'

_Form = tuple[tuple[str, ...], str | None]
"""A choice, or a schema as text."""


class Endings(NamedTuple):
    """The tokens that end JSON, and the bytes of all tokens.

    A token that the tokenizer lacks is None.
    """

    stops: list[int]
    brace: int | None
    bracket: int | None
    quote: int | None
    comma: int | None
    tokens: list[bytes]


class Constraint:
    """The progress of one answer through its form; for one thread at a time.

    Args:
        reserve: tokens that complete the answer from any point in it; 0: it is not JSON.
    """

    def __init__(self, matcher: LLMatcher, endings: Endings, reserve: int = 0) -> None:
        self._matcher, self._endings = matcher, endings
        self._in_string = self._escaped = False
        self.reserve = reserve

    def allowed(self, left: int | None = None) -> Bits:
        """Return the tokens that may come next.

        If at most `reserve` tokens are left, strings, arrays and objects are closed where the form
        allows it. `left` None: the answer need not end yet.

        Raises:
            PromptError: the form is too complex.
        """
        bits = np.frombuffer(self._matcher.compute_bitmask(), dtype=np.uint8)
        self._check()
        if left is not None and left <= self.reserve:
            return self._closing(bits)
        return bits

    def _closing(self, allowed: Bits) -> Bits:
        """Return only a token that closes what is open, if one is allowed."""
        of = self._endings
        closing = [*of.stops, of.brace, of.bracket, of.quote, of.comma]
        if self._in_string:
            closing = [of.quote] if not self._escaped else []
        for token in closing:
            if token is not None and allowed[token // 8] >> token % 8 & 1:
                only = np.zeros_like(allowed)
                only[token // 8] = 1 << token % 8
                return only
        return allowed

    def advance(self, token: int) -> None:
        """Move past the token that was drawn.

        Raises:
            PromptError: the form does not allow the token.
        """
        self._matcher.consume_token(token)
        self._check()
        for byte in self._endings.tokens[token] if self.reserve else b"":
            if self._escaped:
                self._escaped = False
            elif byte == _QUOTE:
                self._in_string = not self._in_string
            else:
                self._escaped = self._in_string and byte == _BACKSLASH

    @property
    def finished(self) -> bool:
        """Whether the answer is complete, so that only the end of the turn may follow."""
        return self._matcher.is_stopped()

    def _check(self) -> None:
        if self._matcher.is_error():
            raise schema_error(self._matcher.get_error())


class TokenTable:
    """The exact bytes of every token of a byte-level BPE, in the interface that llguidance takes.

    Ids without an embedding have no bytes, so that they are never allowed. Added tokens cannot be
    part of an answer; those that end a turn can end it.

    Raises:
        PromptError: the tokenizer is not a byte-level BPE.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._plain = (
            tokenizer.plain_backend
        )  # not `tokenizer`: `_compilers` must not keep it alive
        known = min(tokenizer.num_embeddings, len(tokenizer))
        byte_of = byte_of_letter()
        self.tokens = [b""] * len(tokenizer)
        self.special_token_ids = [i for i in tokenizer.control_ids.values() if i < known]
        self.stop_ids = sorted(i for i in tokenizer.stop_ids if i < known)
        added = {*tokenizer.control_ids.values(), *tokenizer.stop_ids}
        try:
            for text, i in tokenizer.backend.get_vocab(with_added_tokens=True).items():
                if i < known:
                    self.tokens[i] = (
                        text.encode() if i in added else bytes(byte_of[letter] for letter in text)
                    )
            self.eos_token_id, self.bos_token_id = self.stop_ids[0], None
        except (KeyError, IndexError):
            raise PromptError(
                "This checkpoint cannot answer with a choice or a JSON schema, because its "
                "tokenizer is not a byte-level BPE: request free text."
            ) from None

    def __call__(self, text: str | bytes) -> list[int]:
        """Return the ids of `text`; llguidance uses them where the form leaves only one text."""
        if isinstance(text, bytes):
            raise TypeError("text must be str")  # llguidance probes which types are accepted
        ids = self._plain.encode(text, add_special_tokens=False).ids
        # The tokenizer may normalise the text, which would then no longer be that of the form.
        if b"".join(self.tokens[i] for i in ids) == text.encode():
            return ids
        return [self.tokens.index(bytes([byte])) for byte in text.encode()]


class GrammarCompiler:
    """Compiles grammars for one tokenizer, and caches the most recently used. Thread-safe.

    A schema is checked in another process first, so that none takes much time or memory here.

    Attributes:
        compiled: the cached grammars by choice and schema, the most recently used last.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        table = TokenTable(tokenizer)
        self._tokenizer = LLTokenizer(TokenizerWrapper(table), eos_token=table.stop_ids)
        places = {token: i for i, token in reversed(list(enumerate(table.tokens)))}
        brace, bracket, quote, comma = (places.get(byte) for byte in (b"}", b"]", b'"', b","))
        self._endings = Endings(table.stop_ids, brace, bracket, quote, comma, table.tokens)
        self._lock = threading.Lock()
        self._compiling = threading.Lock()
        self.compiled: OrderedDict[_Form, LLMatcher] = OrderedDict()
        self._memory: dict[_Form, int] = {}

    def constraint(self, choice: tuple[str, ...], schema: str | None) -> Constraint:
        """Return a new constraint for a form.

        Raises:
            PromptError: no grammar can follow the form.
        """
        key = (choice, schema)
        constraint = self._cached(key)
        if constraint is not None:
            return constraint
        if schema is None:
            grammar, memory = grammar_of(choice), 0
        else:  # what it costs to compile is known before this process compiles it
            checked = CHECKER.check(schema)
            grammar, memory = checked.grammar, checked.memory
        with self._compiling:  # one at a time: each may take as much memory as the check allows
            constraint = self._cached(key)
            if constraint is not None:
                return constraint
            matcher = LLMatcher(self._tokenizer, grammar, log_level=0, limits=LIMITS)
            if matcher.is_error():
                raise schema_error(matcher.get_error())
            self._keep(key, matcher, memory)
            return self._constraint(matcher, schema)

    def _constraint(self, matcher: LLMatcher, schema: str | None) -> Constraint:
        reserve = 0 if schema is None else least_rest(json.loads(schema))
        return Constraint(matcher.deep_copy(), self._endings, reserve)

    def _cached(self, key: _Form) -> Constraint | None:
        with self._lock:
            matcher = self.compiled.get(key)
            if matcher is None:
                return None
            self.compiled.move_to_end(key)
            return self._constraint(matcher, key[1])

    def _keep(self, key: _Form, matcher: LLMatcher, memory: int) -> None:
        with self._lock:
            self.compiled[key], self._memory[key] = matcher, memory
            while (
                len(self.compiled) > MAX_CACHED_GRAMMARS
                or sum(self._memory.values()) > MAX_CACHED_BYTES
            ):
                oldest, _ = self.compiled.popitem(last=False)
                del self._memory[oldest]


_compilers: WeakKeyDictionary[Tokenizer, GrammarCompiler] = WeakKeyDictionary()
_building = threading.Lock()


def make_constraint(params: SamplingParams, tokenizer: Tokenizer) -> Constraint | None:
    """Return a constraint for the form that `params` require; None for free text. Thread-safe.

    Raises:
        PromptError: no grammar can follow the form, or the tokenizer does not support it.
    """
    if not params.choice and params.json_schema is None:
        return None
    assert params.json_schema is None or isinstance(params.json_schema, str)
    with _building:  # takes half a second for a tokenizer of NVILA's size
        compiler = _compilers.get(tokenizer)
        if compiler is None:
            compiler = _compilers[tokenizer] = GrammarCompiler(tokenizer)
    return compiler.constraint(tuple(params.choice), params.json_schema)
