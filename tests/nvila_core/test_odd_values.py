"""Values that Python takes and a library does not: one sentence, and no other exception."""

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nvila_core import NVILA, NVILAError, PromptError, SamplingParams
from nvila_core.cli import main
from nvila_core.generation.draw import draw_tokens
from nvila_core.generation.sampling import TokenSampler

ODD = st.one_of(
    st.floats(),
    st.integers(-(2**70), 2**70),
    st.sampled_from([10**400, 1e-40, 5e-324, 1e308, True, None, "1", "\ud800", 2**63, 2**64]),
)
FIELDS = ("max_tokens", "temperature", "top_p", "top_k", "seed", "repetition_penalty")


@settings(max_examples=300, deadline=None, derandomize=True)
@given(fields=st.dictionaries(st.sampled_from(FIELDS), ODD, max_size=3))
def test_sampling_parameters_are_refused_or_work(fields: dict[str, Any]) -> None:
    try:
        params = SamplingParams(**fields)
    except PromptError:
        return  # any other exception fails the test
    logits = torch.tensor([3.0, float("-inf"), -2.0, 3.0])
    assert int(draw_tokens(logits[None], [TokenSampler(params, [0, 2]).next(0)])) in {0, 2, 3}


@pytest.mark.parametrize(
    "wrong",
    [
        {"seed": 2**64},
        {"seed": -(2**63) - 1},
        {"seed": 1.5},
        {"temperature": 1e-40},
        {"temperature": 1e300},
        {"temperature": 10**400},
        {"temperature": "hot"},
        {"top_k": float("nan")},
        {"max_tokens": float("inf")},
        {"repetition_penalty": 1e-40},
        {"stop": "\udcff"},
    ],
)
def test_values_that_a_library_does_not_take_are_named(wrong: dict[str, Any]) -> None:
    with pytest.raises(PromptError, match=next(iter(wrong))):
        SamplingParams(**wrong)


odd_text = st.text(st.characters(exclude_categories=()), min_size=1, max_size=12)


@settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(text=st.one_of(odd_text, st.sampled_from(["\ud800", "a\udfffb", "\0", "\ufffe"])))
def test_prompts_are_refused_or_answered(tiny: NVILA, text: str) -> None:
    params = SamplingParams(max_tokens=1)
    for parts in ([text], [{"role": "system", "content": text}, {"role": "user", "content": "x"}]):
        with suppress(NVILAError):  # any other exception fails the test
            tiny.generate(parts, params)
    for form in ({"choice": [text]}, {"json_schema": {"const": text}}, {"json_schema": text}):
        with suppress(NVILAError):
            tiny.generate(["x"], SamplingParams(max_tokens=1, **form))


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--seed", str(2**64)], "seed"),
        (["--temperature", "1e-40"], "temperature"),
        (["--temperature", "nan"], "temperature"),
        (["--top-k", str(2**70)], ""),
        (["--stop", "\udcff"], "stop"),
    ],
)
def test_ask_answers_or_says_in_one_line_what_is_wrong(
    tiny_folder: Any, options: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code = main(["ask", "--model", str(tiny_folder), "--max-tokens", "1", *options, "What?"])
    shown = capsys.readouterr()
    assert code == (1 if says else 0)
    assert says in shown.err
    assert shown.err.count("\n") == (1 if says else 0)


def test_ask_refuses_half_of_a_character(
    tiny_folder: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["ask", "--model", str(tiny_folder), "What is \udcff?"]) == 1
    assert "lone surrogate" in capsys.readouterr().err


@pytest.mark.parametrize("as_file", [False, True])
@pytest.mark.parametrize(
    ("schema", "says"),
    [
        ({"type": "integer", "multipleOf": 99_999_999}, "64 MiB"),
        ({"allOf": [{"pattern": "a"}] * 17}, "17 schemas in one allOf"),
        ({"title": "x" * 70_000}, "more than 65536 characters"),
    ],
)
def test_ask_refuses_a_schema_that_costs_too_much(
    tiny_folder: Any,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    schema: dict[str, Any],
    says: str,
    as_file: bool,
) -> None:
    text = json.dumps(schema)
    if as_file:
        (tmp_path / "form.json").write_text(text)
        text = str(tmp_path / "form.json")

    code = main(["ask", "--model", str(tiny_folder), "--json-schema", text, "What?"])

    shown = capsys.readouterr()
    assert code == 1
    assert says in shown.err
    assert len(shown.err.splitlines()) == 1


def test_ask_refuses_a_question_that_is_too_long(
    tiny_folder: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    code = main(["ask", "--model", str(tiny_folder), "x" * 6_000_000])

    assert code == 1
    assert "has 6000000 characters" in capsys.readouterr().err
