"""Grammars for answers of a given form: one of several strings, or JSON that fits a schema.

Does not import torch, so that a service can check a form before a request reaches a model.
"""

import json
from collections.abc import Iterable, Sequence
from typing import Any

from llguidance import LLMatcher, LLParserLimits, LLTokenizer

from nvila_core.errors import PromptError, first_line, shorten
from nvila_core.generation.schema_bounds import bounded
from nvila_core.generation.schema_limits import check_schema_length, check_shape

LIMITS = LLParserLimits(
    verbose_errors=False,  # verbose errors repeat the whole schema
    max_lexer_states=50_000,  # a kilobyte each, and about ten for a token of a long answer
)
JSON_STYLE: Any = {
    # As Python's json module writes it, on one line: where white space is free, a model may indent
    # until its tokens run out.
    "item_separator": ", ",
    "key_separator": ": ",
    "whitespace_flexible": False,
    "whitespace_pattern": None,
    # Refuse what the grammar cannot guarantee.
    "lenient": False,
    "coerce_one_of": False,
}


def check_choice(choice: object, stop: Sequence[str] = ()) -> tuple[str, ...]:
    """Return `choice` as a tuple without duplicates.

    Raises:
        PromptError: `choice` is not a list of strings, or a string in it can never be an answer.
    """
    strings = () if isinstance(choice, str) or not isinstance(choice, Iterable) else tuple(choice)
    good = all(isinstance(s, str) and s and s.isprintable() for s in strings)
    if not good or (choice and not strings):
        raise PromptError("The choice must be a list of strings, each on one line and not empty.")
    for s in strings:
        if s != s.strip():
            raise PromptError(f"The choice {shorten(s)!r} has white space around it: remove it.")
        cut = next((end for end in stop if end in s), None)
        if cut is not None:
            raise PromptError(
                f"The choice {shorten(s)!r} contains the stop string {shorten(cut)!r}, which would "
                "end it early: change one of them."
            )
    return tuple(dict.fromkeys(strings))


def schema_text(schema: object) -> str:
    """Return a JSON schema, given as an object or as text, as canonical text.

    Keys keep their order, because the answer has its keys in the same order.

    Raises:
        PromptError: the schema is not a JSON object, or too large.
    """
    if isinstance(schema, str):
        check_schema_length(schema)
    try:
        value = json.loads(schema) if isinstance(schema, str) else schema
        text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
        text.encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise PromptError(f"The JSON schema is not JSON: {first_line(error)}.") from None
    if not isinstance(value, dict):
        raise PromptError('The JSON schema must be an object, such as {"type": "object"}.')
    check_shape(text)
    return text


def grammar_of(choice: Sequence[str] = (), schema: str | None = None, *, bound: bool = True) -> str:
    """Return llguidance's grammar of a checked choice or of a checked schema, which it bounds
    unless `bound` is false.

    Raises:
        PromptError: the schema uses a feature that the grammar cannot guarantee, or no answer can
            fit it.
    """
    if schema is None:
        return LLMatcher.grammar_from_lark("start: " + " | ".join(map(json.dumps, choice)))
    try:
        wanted = json.loads(schema)
        text = json.dumps(bounded(wanted) if bound else wanted, ensure_ascii=False)
        grammar = LLMatcher.grammar_from_json_schema(text, overrides=JSON_STYLE)
    except (AttributeError, TypeError):  # a keyword has a value that no schema may have there
        raise schema_error("A keyword has a value of the wrong type") from None
    except (ValueError, RecursionError) as error:
        raise schema_error(first_line(error)) from None
    failed, messages = LLMatcher.validate_grammar_with_warnings(grammar, limits=LIMITS)
    if messages:  # a warning means that an answer may not fit the schema
        raise schema_error(messages[0])
    assert not failed
    return grammar


def is_complete(text: str, finish_reason: str, *, choice: Sequence[str], schema: bool) -> bool:
    """Return whether `text` is a whole answer of a form, and not the beginning of one.

    An answer is cut by `max_tokens`, by a cancellation and, in JSON, by a stop string.
    """
    if finish_reason != "stop":
        return False
    if choice:
        return text in choice
    if schema:
        try:
            json.loads(text)
        except ValueError:
            return False
    return True


def fits_schema(value: Any, schema: str) -> str | None:
    """Return a JSON value as text that the grammar of `schema` allows; None if it does not fit.

    White space and the order of keys are those of the grammar, wherever the value came from.

    Raises:
        PromptError: see `grammar_of`.
    """
    text = json.dumps(_in_order(value, json.loads(schema)), ensure_ascii=False)
    tokenizer = LLTokenizer("byte")
    # The bounds limit what the engine's model writes; a finished answer may exceed them.
    matcher = LLMatcher(tokenizer, grammar_of(schema=schema, bound=False), limits=LIMITS)
    fits = matcher.consume_tokens(tokenizer.tokenize_bytes(text.encode(errors="replace")))
    return text if fits and matcher.is_accepting() else None


def _in_order(value: Any, schema: Any) -> Any:
    """Return a value with the keys of its objects in the order of their schemas' properties."""
    if not isinstance(schema, dict):
        return value
    if isinstance(value, dict):
        named = schema.get("properties")
        named = named if isinstance(named, dict) else {}
        keys = [key for key in named if key in value] + [key for key in value if key not in named]
        return {key: _in_order(value[key], named.get(key)) for key in keys}
    if isinstance(value, list):
        return [_in_order(item, schema.get("items")) for item in value]
    return value


def schema_error(reason: str) -> PromptError:
    """Return the error for a schema that the grammar cannot follow, with the library's reason."""
    plain = shorten(" ".join(reason.split()), 240).rstrip(".")
    return PromptError(f"The JSON schema cannot be followed ({plain}): simplify it.")
