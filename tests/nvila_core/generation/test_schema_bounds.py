"""A schema that is open gets bounds, so that every answer ends."""

import json
from typing import Any

import pytest

from nvila_core import NVILA, PromptError, SamplingParams
from nvila_core.demo import CHECKPOINT
from nvila_core.generation.draw import tokens_of
from nvila_core.generation.grammar import grammar_of, is_complete, schema_text
from nvila_core.generation.schema_bounds import MAX_ITEMS, MAX_NUMBER, MAX_STRING, bounded
from nvila_core.generation.structured_output import make_constraint
from nvila_core.prompt.tokenizer import Tokenizer

TEXT = {"type": "string"}
NUMBER = {"type": "integer"}


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return NVILA.from_pretrained(CHECKPOINT).tokenizer


def accepts(tokenizer: Tokenizer, schema: dict[str, Any], answer: Any) -> bool:
    """Return whether a model may answer with exactly `answer`."""
    rules = make_constraint(SamplingParams(json_schema=schema), tokenizer)
    assert rules is not None
    text = json.dumps(answer, ensure_ascii=False)
    try:
        for token in tokenizer.plain_backend.encode(text, add_special_tokens=False).ids:
            rules.advance(token)
    except PromptError:
        return False
    if rules.finished:
        return True
    allowed = tokens_of(rules.allowed(), len(tokenizer)).tolist()
    return not tokenizer.stop_ids.isdisjoint(allowed)


@pytest.mark.parametrize(
    ("schema", "good", "bad"),
    [
        # objects admit only the properties that they name
        ({"properties": {"a": NUMBER}}, {"a": 1}, {"a": 1, "b": 2}),
        (
            {
                "type": "object",
                "properties": {"a": {"type": "object", "properties": {"b": NUMBER}}},
            },
            {"a": {"b": 1}},
            {"a": {"b": 1, "c": 1}},
        ),
        (
            {"type": "array", "items": {"type": "object", "properties": {"a": NUMBER}}},
            [{"a": 1}, {"a": 2}],
            [{"a": 1, "z": 0}],
        ),
        (
            {"properties": {"a": NUMBER}, "required": ["a", "b"]},
            {"a": 1, "b": 7},
            {"a": 1, "b": 7, "c": 1},
        ),
        (
            {"properties": {"a/b": {"properties": {"c": NUMBER}}}},
            {"a/b": {"c": 1}},
            {"a/b": {"d": 1}},
        ),
        (
            {"$ref": "#/$defs/t", "$defs": {"t": {"properties": {"a": NUMBER}}}},
            {"a": 1},
            {"b": 1},
        ),
        (
            {"properties": {"next": {"$ref": "#"}, "n": NUMBER}},
            {"next": {"n": 1}},
            {"next": {"m": 1}},
        ),
        (
            {"anyOf": [{"type": "null"}, {"type": "object", "properties": {"a": NUMBER}}]},
            {"a": 1},
            {"a": 1, "b": 1},
        ),
        # several subschemas describe one object: it has the properties of all of them
        (
            {"allOf": [{"properties": {"a": NUMBER}}, {"properties": {"b": NUMBER}}]},
            {"a": 1, "b": 2},
            {"a": 1, "b": 2, "c": 3},
        ),
        (
            {
                "allOf": [
                    {"$ref": "#/$defs/base"},
                    {"properties": {"b": NUMBER}, "required": ["b"]},
                ],
                "$defs": {"base": {"properties": {"a": NUMBER}, "required": ["a"]}},
            },
            {"a": 1, "b": 2},
            {"a": 1, "b": 2, "c": 3},
        ),
        (
            {
                "type": "object",
                "properties": {"a": NUMBER},
                "anyOf": [{"properties": {"b": NUMBER}}],
            },
            {"a": 1, "b": 2},
            {"a": 1, "b": 2, "c": 3},
        ),
        (  # as pydantic 1 writes a field with a description
            {
                "properties": {"x": {"title": "X", "allOf": [{"$ref": "#/definitions/t"}]}},
                "definitions": {"t": {"type": "object", "properties": {"a": NUMBER}}},
            },
            {"x": {"a": 1}},
            {"x": {"a": 1, "b": 1}},
        ),
        # strings and arrays end
        (TEXT, "x" * MAX_STRING, "x" * (MAX_STRING + 1)),
        ({"type": ["string", "null"]}, None, "x" * (MAX_STRING + 1)),
        ({"type": "string", "pattern": "^x+$"}, "x" * MAX_STRING, "x" * (MAX_STRING + 1)),
        ({"type": "array", "items": NUMBER}, [1] * MAX_ITEMS, [1] * (MAX_ITEMS + 1)),
        ({"items": TEXT}, ["a"], ["x" * (MAX_STRING + 1)]),
        # so do numbers
        (NUMBER, -MAX_NUMBER, MAX_NUMBER + 1),
        ({"type": ["integer", "null"], "minimum": 0}, None, MAX_NUMBER + 1),
        ({"properties": {"n": {"type": "number"}}}, {"n": 2.5}, {"n": 10 * MAX_NUMBER}),
        ({"type": "number"}, -0.123456, 0.1234567),
        ({"type": "number", "minimum": 0, "maximum": 1}, 0.5, 0.12345678),
        # what the schema says itself holds
        ({"type": "string", "minLength": 600}, "x" * 600, "x" * 601),
        ({"type": "string", "maxLength": 600}, "x" * 600, "x" * 601),
        ({"type": "array", "minItems": 60, "items": NUMBER}, [1] * 60, [1] * 61),
        ({"type": "array", "maxItems": 60, "items": NUMBER}, [1] * 60, [1] * 61),
        ({"type": "integer", "maximum": 10**17}, 10**17, 10**18),
        ({"type": "integer", "maximum": -(10**18)}, -(10**18), -(10**18) + 1),
        ({"type": "number", "maximum": 1e-7}, -0.1234567, 1),
        ({"type": "number", "multipleOf": 0.0000001}, 0.1234567, 0.12345678),
        ({"enum": ["y" * 700]}, "y" * 700, "y"),
        (
            {"properties": {"a": NUMBER}, "additionalProperties": NUMBER},
            {"a": 1, "b": 2},
            {"b": "x"},
        ),
        ({"patternProperties": {"^n": NUMBER}}, {"n1": 1}, {"m1": 1}),
    ],
)
def test_an_answer_is_bounded_where_the_schema_is_not(
    tokenizer: Tokenizer, schema: dict[str, Any], good: Any, bad: Any
) -> None:
    assert accepts(tokenizer, schema, good)
    assert not accepts(tokenizer, schema, bad)


@pytest.mark.parametrize("schema", [{}, {"type": "object"}, {"type": "object", "properties": {}}])
def test_a_schema_that_names_no_property_stays_open(
    tokenizer: Tokenizer, schema: dict[str, Any]
) -> None:
    assert accepts(tokenizer, schema, {"any": ["thing"]})


@pytest.mark.parametrize(
    "schema",
    [
        {
            "allOf": [
                {"properties": {"a": NUMBER}, "additionalProperties": True},
                {"required": ["a"]},
            ]
        },
        {"allOf": [{"patternProperties": {"^z": NUMBER}}, {"properties": {"a": NUMBER}}]},
    ],
)
def test_a_part_that_is_open_on_purpose_keeps_the_object_open(
    tokenizer: Tokenizer, schema: dict[str, Any]
) -> None:
    assert accepts(tokenizer, schema, {"a": 1, "b": "more"})


def test_bounds_do_not_change_the_given_schema() -> None:
    schema = {"properties": {"type": TEXT, "items": {"type": "array"}}}
    before = json.dumps(schema)

    made = bounded(schema)

    assert json.dumps(schema) == before
    assert made["properties"] == {
        "type": {"type": "string", "maxLength": MAX_STRING},
        "items": {"type": "array", "maxItems": MAX_ITEMS},
    }


@pytest.mark.parametrize(
    "schema", [{"properties": 3}, {"required": 1, "allOf": [{}, {}]}, {"allOf": 3}]
)
def test_keywords_of_the_wrong_type_are_refused_in_one_sentence(schema: dict[str, Any]) -> None:
    with pytest.raises(PromptError, match="cannot be followed"):
        grammar_of(schema=schema_text(schema))


@pytest.mark.parametrize(
    ("text", "reason", "complete"),
    [
        ('{"a": 1}', "stop", True),
        ('{"a": 1', "length", False),
        ('{"a": 1', "stop", False),  # a stop string cut it
        ("12", "length", False),  # the next digit might have followed
        ("", "cancelled", False),
    ],
)
def test_whether_json_is_complete(text: str, reason: str, complete: bool) -> None:
    assert is_complete(text, reason, choice=(), schema=True) is complete


def test_whether_a_choice_is_complete() -> None:
    assert is_complete("red", "stop", choice=("red", "reddish"), schema=False)
    assert not is_complete("red", "length", choice=("red", "reddish"), schema=False)
