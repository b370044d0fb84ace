"""The form that an answer must have, as a grammar: one of some strings, or JSON of a schema.

Free of torch, so that a service can check a form long before a model sees it.
"""

import json
from collections.abc import Iterable, Sequence
from typing import Any

from llguidance import LLMatcher, LLParserLimits

from nvila_core.errors import PromptError, first_line, shorten

LIMITS = LLParserLimits(verbose_errors=False)  # else errors repeat the whole schema
JSON_STYLE: Any = {
    # as Python's json writes it, on one line: with white space left free, a model may go on
    # indenting until its tokens run out
    "item_separator": ", ",
    "key_separator": ": ",
    "whitespace_flexible": False,
    "whitespace_pattern": None,
    # what cannot be kept to the letter is refused
    "lenient": False,
    "coerce_one_of": False,
}


def check_choice(choice: object, stop: Sequence[str] = ()) -> tuple[str, ...]:
    """`choice` as a tuple.

    Raises:
        PromptError: it is no list of strings, or one of them could never be an answer.
    """
    strings = () if isinstance(choice, str) or not isinstance(choice, Iterable) else tuple(choice)
    good = all(isinstance(s, str) and s and s.isprintable() for s in strings)
    if not good or (choice and not strings):
        raise PromptError("The choice must be a list of strings on one line each, none empty.")
    for s in strings:
        if s != s.strip():
            raise PromptError(f"The choice {shorten(s)!r} has white space around it: remove it.")
        cut = next((end for end in stop if end in s), None)
        if cut is not None:
            raise PromptError(
                f"The choice {shorten(s)!r} holds the stop string {shorten(cut)!r}, which would "
                "cut it short: change one of them."
            )
    return tuple(dict.fromkeys(strings))


def schema_text(schema: object) -> str:
    """A JSON schema, given as an object or as text, as one text for equal schemas.

    Keys keep their order, which is that of the answer's.

    Raises:
        PromptError: it is not a JSON object.
    """
    try:
        value = json.loads(schema) if isinstance(schema, str) else schema
        text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
        text.encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise PromptError(f"The JSON schema is not JSON: {first_line(error)}.") from None
    if not isinstance(value, dict):
        raise PromptError('The JSON schema must be an object, such as {"type": "object"}.')
    return text


def grammar_of(choice: Sequence[str] = (), schema: str | None = None) -> str:
    """The library's grammar of a checked choice or schema.

    Raises:
        PromptError: the schema asks for what cannot be guaranteed, or no answer can fit it.
    """
    if schema is None:
        return LLMatcher.grammar_from_lark("start: " + " | ".join(map(json.dumps, choice)))
    try:
        grammar = LLMatcher.grammar_from_json_schema(schema, overrides=JSON_STYLE)
    except ValueError as error:
        raise schema_error(str(error)) from None
    failed, messages = LLMatcher.validate_grammar_with_warnings(grammar, limits=LIMITS)
    if messages:  # a warning says where the answer may not fit the schema
        raise schema_error(messages[0])
    assert not failed
    return grammar


def schema_error(reason: str) -> PromptError:
    """What to tell about a schema that cannot be followed."""
    plain = shorten(" ".join(reason.split()), 240).rstrip(".")
    return PromptError(f"The JSON schema cannot be followed ({plain}): simplify it.")
