"""Limit the size of JSON schemas, before anything walks or compiles them."""

import json
from typing import Any

from nvila_core.errors import PromptError

MAX_SCHEMA = 65536
"""Characters of a schema as text."""

MAX_SCHEMA_DEPTH = 64
"""Objects and arrays inside one another; each level of an answer takes two of them."""

MAX_PATTERNS = 64
"""Regular expressions in a schema."""

MAX_ALL_OF = 16
"""Schemas that one value must fit at once."""


def check_schema_length(schema: str) -> None:
    """Raise PromptError for a schema, as text, of more than MAX_SCHEMA characters."""
    if len(schema) > MAX_SCHEMA:
        raise _too_large(f"has more than {MAX_SCHEMA} characters")


def check_shape(schema: str) -> None:
    """Check the length, depth and number of patterns of a schema, given as JSON text.

    Raises:
        PromptError: there is too much of it.
    """
    check_schema_length(schema)
    patterns, level = 0, [json.loads(schema)]
    for _ in range(MAX_SCHEMA_DEPTH):
        inner: list[Any] = []
        for value in level:
            if isinstance(value, dict):
                patterns += _patterns(value)
                inner += value.values()
            elif isinstance(value, list):
                inner += value
        level = inner
    if any(isinstance(value, dict | list) for value in level):
        raise _too_large(f"is nested more than {MAX_SCHEMA_DEPTH} levels deep")
    if patterns > MAX_PATTERNS:
        raise _too_large(f"has {patterns} patterns, more than {MAX_PATTERNS}")


def _patterns(value: dict[str, Any]) -> int:
    """Return the number of patterns of one object. Raises PromptError for too many `allOf`."""
    parts = value.get("allOf")
    if isinstance(parts, list) and len(parts) > MAX_ALL_OF:
        raise _too_large(f"has {len(parts)} schemas in one allOf, more than {MAX_ALL_OF}")
    keyed = value.get("patternProperties")
    named = len(keyed) if isinstance(keyed, dict) else 0
    return named + isinstance(value.get("pattern"), str)


def _too_large(problem: str) -> PromptError:
    return PromptError(f"The JSON schema {problem}: simplify it.")
