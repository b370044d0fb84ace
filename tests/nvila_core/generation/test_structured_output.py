"""Answers of a given form: exactly one of the choices, or JSON of the schema, for any model."""

import gc
import json
import threading
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from nvila_core import NVILA, Engine, PromptError, SamplingParams
from nvila_core.checkpoint.random_checkpoint import write_checkpoint
from nvila_core.demo import CHECKPOINT
from nvila_core.generation.draw import tokens_of
from nvila_core.generation.sequence import Sequence
from nvila_core.generation.structured_output import (
    MAX_CACHED_GRAMMARS,
    Constraint,
    GrammarCompiler,
    make_constraint,
)
from nvila_core.prompt.tokenizer import Tokenizer

WAIT = 120
FEW = settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
COLOURS = ["red", "reddish", "dark blue", "blü ☂ 😀"]


@pytest.fixture(scope="module")
def demo() -> NVILA:
    """The checkpoint that the package ships."""
    return NVILA.from_pretrained(CHECKPOINT)


@pytest.fixture(scope="module", params=["tiny", "demo"])
def model(request: pytest.FixtureRequest, tiny: NVILA, demo: NVILA) -> NVILA:
    """A random model, whose tokens are single bytes, and one that knows words."""
    return {"tiny": tiny, "demo": demo}[request.param]


def constraint(tokenizer: Tokenizer, **form: Any) -> Constraint:
    """Return the constraint of a form."""
    constraint = make_constraint(SamplingParams(**form), tokenizer)
    assert constraint is not None
    return constraint


def fits(value: Any, schema: dict[str, Any]) -> bool:
    """Return whether `value` fits `schema`, which is of a kind that `SCHEMAS` draws."""
    if "enum" in schema:
        return value in schema["enum"]
    if "anyOf" in schema:
        return any(fits(value, one) for one in schema["anyOf"])
    match schema["type"]:
        case "boolean":
            return isinstance(value, bool)
        case "null":
            return value is None
        case "integer":
            whole = isinstance(value, int) and not isinstance(value, bool)
            return whole and schema["minimum"] <= value <= schema["maximum"]
        case "string":
            return isinstance(value, str) and len(value) <= schema["maxLength"]
        case "array":
            few = isinstance(value, list) and len(value) <= schema["maxItems"]
            return few and all(fits(item, schema["items"]) for item in value)
    properties = schema["properties"]
    return (
        isinstance(value, dict)
        and set(schema["required"]) <= set(value) <= set(properties)
        and all(fits(value[name], properties[name]) for name in value)
    )


LEAVES: Any = st.one_of(
    st.just({"type": "boolean"}),
    st.just({"type": "null"}),
    st.tuples(st.integers(-500, 0), st.integers(0, 500)).map(
        lambda ends: {"type": "integer", "minimum": ends[0], "maximum": ends[1]}
    ),
    st.integers(0, 6).map(lambda n: {"type": "string", "maxLength": n}),
    st.lists(st.text(max_size=5), min_size=1, max_size=3, unique=True).map(lambda e: {"enum": e}),
)


def objects(inner: Any) -> Any:
    """Draw objects and arrays of what `inner` draws."""

    def make(properties: dict[str, Any]) -> Any:
        return st.sets(st.sampled_from(sorted(properties))).map(
            lambda required: {
                "type": "object",
                "properties": properties,
                "required": sorted(required),
                "additionalProperties": False,
            }
        )

    names = st.text('abcé_ "', min_size=1, max_size=4)
    return st.one_of(
        st.dictionaries(names, inner, min_size=1, max_size=3).flatmap(make),
        inner.map(lambda items: {"type": "array", "items": items, "maxItems": 2}),
        st.lists(inner, min_size=1, max_size=2).map(lambda some: {"anyOf": some}),
    )


SCHEMAS: Any = st.recursive(LEAVES, objects, max_leaves=5)
# One line of text, as users of the API write it.
CHOICES = st.lists(
    st.text(min_size=1, max_size=12).map(str.strip).filter(lambda s: s and s.isprintable()),
    min_size=1,
    max_size=5,
)
DRAWS = st.fixed_dictionaries(
    {
        "temperature": st.sampled_from([0.0, 1.0, 3.0]),
        "seed": st.integers(0, 2**31),
        "repetition_penalty": st.sampled_from([1.0, 1.4]),
        "top_k": st.sampled_from([0, 3]),
        "top_p": st.sampled_from([1.0, 0.6]),
    }
)


@FEW
@given(choice=CHOICES, draw=DRAWS)
@example(choice=["\N{ANGSTROM SIGN}"], draw={"temperature": 0.0})  # the tokenizer normalises it
def test_the_answer_is_one_of_the_choices(model: NVILA, choice: Any, draw: Any) -> None:
    answer = model.generate(["Which?"], SamplingParams(max_tokens=80, choice=choice, **draw))

    assert answer.text in choice
    assert answer.finish_reason == "stop"


@FEW
@given(schema=SCHEMAS, draw=DRAWS)
def test_the_answer_is_json_of_the_schema(model: NVILA, schema: Any, draw: Any) -> None:
    params = SamplingParams(max_tokens=1500, json_schema=schema, **draw)

    answer = model.generate(["What?"], params)

    assert answer.finish_reason == "stop"
    assert fits(json.loads(answer.text), schema)


def test_every_choice_is_possible(tiny: NVILA) -> None:
    seen = {
        tiny.generate(["?"], SamplingParams(choice=COLOURS, temperature=50.0, seed=seed)).text
        for seed in range(40)
    }

    assert seen == set(COLOURS)


def test_forms_and_free_text_share_a_batch(tiny_folder: Path, tiny: NVILA) -> None:
    # given requests of every form, and the answer to each without an engine
    schema = {"type": "array", "items": {"enum": COLOURS}, "minItems": 1, "maxItems": 3}
    forms: list[dict[str, Any]] = [{}, {"choice": COLOURS}, {"json_schema": schema}]
    requests = [
        SamplingParams(max_tokens=60, temperature=i % 2 * 1.5, seed=i, stop="zz", **forms[i % 3])
        for i in range(12)
    ]
    alone = [tiny.generate([f"Question {i}"], params) for i, params in enumerate(requests)]
    # when they run together
    with Engine(NVILA.from_pretrained(tiny_folder), max_num_seqs=8) as engine:
        handles = [engine.submit([f"Question {i}"], p) for i, p in enumerate(requests)]
        together = [handle.result(WAIT) for handle in handles]
    # then each has its form and its own answer
    assert [a.token_ids for a in together] == [a.token_ids for a in alone]
    assert all(answer.text in COLOURS for answer in together[1::3])
    assert all(set(json.loads(answer.text)) <= set(COLOURS) for answer in together[2::3])


def test_max_tokens_may_cut_the_form(tiny: NVILA) -> None:
    params = SamplingParams(max_tokens=3, json_schema={"enum": ["a long word"]})

    answer = tiny.generate(["?"], params)

    assert (answer.text, answer.finish_reason) == ('"a', "length")


ENTITY: dict[str, Any] = {
    "type": "object",
    "properties": {
        "type": {"enum": ["person", "vehicle", "unknown"]},
        **{name: {"type": "string"} for name in ("first_seen", "movement", "interaction")},
    },
    "required": ["type", "first_seen", "movement", "interaction"],
    "additionalProperties": False,
}
REPORT: dict[str, Any] = {
    "$defs": {"Entity": ENTITY},
    "type": "object",
    "properties": {
        "summary": {"type": "string"},
        "score": {"type": "number"},
        "observations": {"type": "array", "items": {"type": "string"}},
        "entities": {"type": "array", "items": {"$ref": "#/$defs/Entity"}},
        "more": {"type": "object", "additionalProperties": {"type": "integer"}},
        "code": {"type": "string", "pattern": "^[A-Z]{2}[0-9}\\]]*$"},
        "either": {"anyOf": [{"type": "null"}, ENTITY, {"type": "array"}]},
        "reviewed": {"type": "boolean"},
    },
    "required": ["summary", "score", "observations", "entities", "code", "either", "reviewed"],
}
"""A report as programs that look at clips ask for: nothing in it has a bound."""


@pytest.mark.parametrize("seed", range(4))
def test_json_comes_to_an_end_before_its_tokens_do(model: NVILA, seed: int) -> None:
    # given a model that writes anything, and would rather not end
    params = SamplingParams(max_tokens=1000 + 300 * seed, json_schema=REPORT)
    sequence = Sequence(model.prepare(["?"]), params, model.tokenizer, 10_000)
    numbers = torch.Generator().manual_seed(seed)
    quote = [i for i in range(len(model.tokenizer)) if b'"' in model.tokenizer.token_bytes(i)]
    while sequence.finish_reason is None:
        logits = 3 * torch.randn(len(model.tokenizer), generator=numbers)
        logits[quote] -= 8 + seed % 3
        sequence.accept(logits)
    # then its answer is whole all the same
    assert sequence.finish_reason == "stop"
    report = json.loads(sequence.text)
    assert set(REPORT["required"]) <= set(report)
    assert all(set(each) == set(ENTITY["required"]) for each in report["entities"])


def test_a_short_answer_is_not_closed_in_its_first_half(tiny: NVILA) -> None:
    params = SamplingParams(max_tokens=60, json_schema=REPORT)
    sequence = Sequence(tiny.prepare(["?"]), params, tiny.tokenizer, 1000)
    for letter in b'{"summary": "A street.':
        logits = torch.zeros(len(tiny.tokenizer))
        logits[tiny.tokenizer.encode(chr(letter))[-1]] = 9
        sequence.accept(logits)
    assert sequence.text.endswith("A street.")


def test_a_prefix_of_another_choice_may_end_there(demo: NVILA) -> None:
    rules = constraint(demo.tokenizer, choice=["a", "ab"])
    ids = demo.tokenizer.encode("a")
    rules.advance(ids[0])

    allowed = set(tokens_of(rules.allowed(), len(demo.tokenizer)).tolist())

    assert allowed == {*demo.tokenizer.stop_ids, *demo.tokenizer.encode("b")}
    assert not rules.finished


def test_the_table_holds_the_exact_bytes_of_every_token(model: NVILA) -> None:
    tokenizer = model.tokenizer
    for text in ("Zwei große Bäume", "日本 ☂ 😀\n\t\r\x00", "  1234 <|im_end|> "):
        ids = tokenizer.plain_backend.encode(text, add_special_tokens=False).ids
        quoted = json.dumps(text)
        rules = GrammarCompiler(tokenizer).constraint((text,), None)
        for token in ids:  # every token of the text is allowed at its place
            assert token in tokens_of(rules.allowed(), len(tokenizer)), quoted
            rules.advance(token)
        assert rules.finished


def test_tokens_without_an_embedding_are_never_drawn(tmp_path: Path) -> None:
    # given a checkpoint whose tokenizer has words without an embedding
    folder = write_checkpoint(tmp_path / "model")
    words = {"red": 264, "blue": 265}
    files = [f for f in (folder / "llm").iterdir() if f.name in ("tokenizer.json", "vocab.json")]
    for file in files:
        content = json.loads(file.read_text())
        (content["model"]["vocab"] if "model" in content else content).update(words)
        file.write_text(json.dumps(content))
    model = NVILA.from_pretrained(folder)
    assert len(model.tokenizer) > model.language.num_embeddings == 264
    # when it must answer with one of them
    answers = {
        model.generate(["?"], SamplingParams(choice=list(words), temperature=9.0, seed=seed)).text
        for seed in range(12)
    }
    # then it spells the word
    assert answers == set(words)


def test_a_model_without_the_tokens_says_so(tiny: NVILA) -> None:
    params = SamplingParams(choice=["x"])
    sequence = Sequence(tiny.prepare(["?"]), params, tiny.tokenizer, 1000)
    lacking = torch.zeros(len(tiny.tokenizer))
    lacking[tiny.tokenizer.encode("x")] = float("-inf")

    with pytest.raises(PromptError, match="no token for what must come next"):
        sequence.accept(lacking)


@pytest.mark.parametrize(
    ("form", "message"),
    [
        ({"choice": "yes"}, "must be a list of strings"),
        ({"choice": ["yes", ""]}, "must be a list of strings"),
        ({"choice": ["yes", 1]}, "must be a list of strings"),
        ({"choice": ["two\nlines"]}, "on one line"),
        ({"choice": [" yes"]}, "white space around it"),
        ({"choice": ["yes. no"], "stop": "."}, "contains the stop string"),
        ({"choice": ["a"], "json_schema": {}}, "not both"),
        ({"choice": ["a"], "ignore_eos": True}, "ignore_eos cannot be combined"),
        ({"json_schema": "{"}, "is not JSON"),
        ({"json_schema": "[1]"}, "must be an object"),
        ({"json_schema": {"enum": [float("nan")]}}, "is not JSON"),
        ({"json_schema": {"enum": ["\ud800"]}}, "is not JSON"),
        ({"json_schema": {"not": {}}}, r'cannot be followed \(Unimplemented keys: \["not"\]\)'),
        ({"json_schema": {"type": "tree"}}, "Invalid type: tree"),
        ({"json_schema": {"$ref": "http://nowhere.invalid/x"}}, "cannot be followed"),
        ({"json_schema": {"$ref": "#/$defs/no"}}, "does not exist"),
        ({"json_schema": {"type": "string", "pattern": "(?=a)"}}, "look-around"),
        ({"json_schema": {"type": "integer", "minimum": 2, "maximum": 1}}, "Unsatisfiable"),
        (
            {"json_schema": {"oneOf": [{"type": "integer"}, {"type": "number"}]}},
            "cannot be followed",
        ),
        ({"json_schema": {"not": {}, "x-guidance": {"lenient": True}}}, "cannot be followed"),
    ],
)
def test_a_form_that_cannot_be_guaranteed_is_refused_in_one_sentence(
    tiny: NVILA, form: Any, message: str
) -> None:
    with pytest.raises(PromptError, match=message) as caught:
        make_constraint(SamplingParams(**form), tiny.tokenizer)

    assert len(str(caught.value).splitlines()) == 1


def test_a_schema_is_refused_before_any_compute(tiny: NVILA) -> None:
    engine = Engine(tiny)

    with pytest.raises(PromptError, match="cannot be followed"):
        engine.submit(["?"], SamplingParams(json_schema={"not": {}}))

    assert engine.stats()["submitted"] == 0


def test_a_nested_schema_too_deep_is_refused(tiny: NVILA) -> None:
    schema = '{"items":' * 5000 + "{}" + "}" * 5000

    with pytest.raises(PromptError):
        make_constraint(SamplingParams(json_schema=schema), tiny.tokenizer)


def test_equal_schemas_are_compiled_once_and_a_bounded_number_is_cached(tiny: NVILA) -> None:
    compiler = GrammarCompiler(tiny.tokenizer)
    for i in range(MAX_CACHED_GRAMMARS + 20):
        compiler.constraint((f"choice {i}",), None)
    compiler.constraint((f"choice {MAX_CACHED_GRAMMARS}",), None)

    cached = list(compiler.compiled)

    assert len(cached) == MAX_CACHED_GRAMMARS
    assert cached[-1] == ((f"choice {MAX_CACHED_GRAMMARS}",), None)  # the last one used
    spaced = SamplingParams(json_schema='{ "type" : "null" }')
    assert spaced == SamplingParams(json_schema={"type": "null"})
    assert hash(spaced) == hash(SamplingParams(json_schema={"type": "null"}))


def test_many_threads_may_make_constraints_at_once(tiny: NVILA) -> None:
    schema = {"type": "string", "maxLength": 20}
    expected = tiny.generate(["?"], SamplingParams(json_schema=schema)).token_ids
    followed, errors = [], []

    def follow(number: int) -> None:
        try:
            for i in range(20):
                rules = constraint(tiny.tokenizer, choice=[f"number {(number + i) % 7}"])
                rules.allowed()
                rules = constraint(tiny.tokenizer, json_schema=schema)
                for token in expected:
                    assert token in tokens_of(rules.allowed(), len(tiny.tokenizer))
                    rules.advance(token)
                followed.append(rules.finished)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=follow, args=(i,)) for i in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert errors == []
    assert followed == [True] * 120


def test_the_cache_of_compilers_does_not_keep_a_tokenizer_alive(tiny_folder: Path) -> None:
    tokenizer = Tokenizer(tiny_folder / "llm")
    constraint(tokenizer, choice=["a"])
    gone = weakref.ref(tokenizer)

    del tokenizer
    gc.collect()

    assert gone() is None
