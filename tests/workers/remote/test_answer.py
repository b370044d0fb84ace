"""What a server's answer is read as."""

import json
from math import log

import pytest

from nvila_core import Timings
from streamer.errors import ErrorCode, StreamerError
from streamer.response_format import ChoiceFormat, JsonFormat, TextFormat
from tests.support.scripted_model import said
from workers.remote.answer import choice_probabilities, read_answer

YES_NO = ChoiceFormat(choices=["yes", "no"])
CAR = JsonFormat(
    json_schema={
        "type": "object",
        "properties": {"colour": {"type": "string"}, "count": {"type": "integer"}},
        "required": ["colour", "count"],
    }
)


def read(body, form):
    return read_answer(body, form, tiles=3, timings=Timings(generate_ms=5))


def token(text, p, **others):
    """A drawn token of probability `p`, with other likely tokens by their probabilities."""
    top = [{"token": t, "logprob": log(q)} for t, q in {text: p, **others}.items()]
    return {"token": text, "logprob": log(p), "top_logprobs": top}


def test_a_text_comes_with_the_numbers_that_the_server_tells() -> None:
    answer = read(said("<think>Hm.</think>\nA street."), TextFormat())

    assert (answer.text, answer.finish_reason) == ("A street.", "stop")
    usage = answer.usage
    assert (usage.prompt_tokens, usage.cached_tokens, usage.completion_tokens) == (900, 600, 7)
    # how many of them show pictures no server tells
    assert (usage.vision_tokens, usage.tiles) == (0, 3)


@pytest.mark.parametrize(
    "text", ['{"answer": "no"}', '{ "answer" : "no" }', '```json\n{"answer": "no"}\n```', "no"]
)
def test_a_choice_is_taken_out_of_its_object(text) -> None:
    assert read(said(text), YES_NO).text == "no"


@pytest.mark.parametrize("text", ["maybe", '{"answer": "maybe"}', '{"other": "yes"}', "", "[]"])
def test_an_answer_that_is_no_choice_is_an_error(text) -> None:
    with pytest.raises(StreamerError) as refusal:
        read(said(text), YES_NO)
    assert refusal.value.code is ErrorCode.FORM_IGNORED


def test_an_answer_that_was_cut_is_not_called_ignored() -> None:
    answer = read(said('{"answer": "y', finish_reason="length"), YES_NO)
    assert not YES_NO.complete(answer.text, answer.finish_reason)


def test_json_is_checked_against_the_schema() -> None:
    # keys in another order, and white space: as the engine here would have written it
    answer = read(said('{"count": 2,\n "colour": "rot"}'), CAR)
    assert answer.text == '{"colour": "rot", "count": 2}'
    assert CAR.parse(answer.text) == {"json": {"colour": "rot", "count": 2}}
    for text in ('{"colour": "red"}', '{"colour": 3, "count": 2}', "red", '{"count": NaN}'):
        with pytest.raises(StreamerError) as refusal:
            read(said(text), CAR)
        assert refusal.value.code is ErrorCode.FORM_IGNORED


def test_json_from_elsewhere_may_be_longer_than_what_is_written_here() -> None:
    schema = {"type": "object", "properties": {"text": {"type": "string"}}, "required": ["text"]}
    long = json.dumps({"text": "word " * 500})
    assert read(said(long), JsonFormat(json_schema=schema)).text == long


@pytest.mark.parametrize("body", [{}, {"choices": []}, {"choices": [{"message": None}]}])
def test_a_reply_of_another_kind_is_an_error(body) -> None:
    with pytest.raises(StreamerError) as refusal:
        read(body, TextFormat())
    assert refusal.value.code is ErrorCode.MODEL_FAILED


def test_the_probability_of_a_choice_is_that_of_the_token_that_tells_it_apart() -> None:
    tokens = [
        token('{"', 0.9),
        token("answer", 1.0),
        token('":', 1.0),
        token(' "', 0.8, **{' "y': 0.1}),  # leads to both, so it tells nothing
        token("yes", 0.6, no=0.2, maybe=0.1, ye=0.05),
        token('"}', 1.0),
    ]
    found = choice_probabilities(tokens, ["yes", "no"])
    # "ye" leads to yes too; what leads to no choice does not count
    assert found == pytest.approx({"yes": 0.65 / 0.85, "no": 0.2 / 0.85})


def test_a_token_may_hold_the_quotation_mark_and_the_choice() -> None:
    tokens = [token('{"answer":', 1.0), token(' "no', 0.75, **{' "yes': 0.25}), token('"}', 1.0)]
    assert choice_probabilities(tokens, ["yes", "no"]) == pytest.approx({"yes": 0.25, "no": 0.75})


def test_a_longer_choice_is_the_product_over_the_tokens_that_lead_to_it() -> None:
    choices = ["red car", "red van", "blue car"]
    tokens = [
        token('{"answer": "', 1.0),
        token("red", 0.8, blue=0.2),
        token(" van", 0.5, **{" car": 0.5}),
        token('"}', 1.0),
    ]
    found = choice_probabilities(tokens, choices)
    assert found == pytest.approx({"red car": 0.4, "red van": 0.4, "blue car": 0.2})


def test_a_choice_that_begins_another_is_told_apart_by_its_end() -> None:
    tokens = [token('{"answer": "', 1.0), token("yes", 1.0), token('"}', 0.9, **{", very": 0.1})]
    found = choice_probabilities(tokens, ["yes", "yes, very"])
    assert found == pytest.approx({"yes": 0.9, "yes, very": 0.1})


def test_a_plain_answer_has_probabilities_too() -> None:
    tokens = [token("yes", 0.7, no=0.3)]
    assert choice_probabilities(tokens, ["yes", "no"]) == pytest.approx({"yes": 0.7, "no": 0.3})


@pytest.mark.parametrize(
    "tokens",
    [
        [],
        [{"token": "yes"}],
        [{"token": "yes", "logprob": None, "top_logprobs": []}],
        [token("maybe", 0.7)],
    ],
)
def test_without_usable_log_probabilities_there_are_none(tokens) -> None:
    assert choice_probabilities(tokens, ["yes", "no"]) is None


def test_the_probabilities_are_read_from_the_reply() -> None:
    logprobs = {"content": [token('{"answer":"', 1.0), token("no", 0.75, yes=0.25)]}
    answer = read(said(json.dumps({"answer": "no"}), logprobs=logprobs), YES_NO)
    assert answer.choice_probabilities == pytest.approx({"yes": 0.25, "no": 0.75})
