"""Yes and no in any spelling are one answer."""

import pytest

from nvila_core.generation.completion import Completion, Usage
from streamer.alert_rule import AlertRule
from streamer.domain.kinds import RequestKind
from streamer.domain.request import VERIFIES, ClipRequest
from streamer.domain.timestamp import utc_now
from streamer.domain.watch import ALERT_FORMAT
from streamer.domain.yes_or_no import SPELLINGS, in_one_spelling
from streamer.response_format import ChoiceFormat


def drawn(text, **probabilities):
    return Completion(text, [], "stop", Usage(), choice_probabilities=probabilities or None)


def test_the_probability_of_an_answer_is_the_sum_over_its_spellings():
    answer = in_one_spelling(drawn("Yes", yes=0.1, Yes=0.6, no=0.05, No=0.25))

    assert answer.text == "yes"
    assert answer.choice_probabilities == pytest.approx({"yes": 0.7, "no": 0.3})


def test_the_more_probable_answer_wins_over_the_most_probable_spelling():
    answer = in_one_spelling(drawn("Yes", yes=0.0, Yes=0.4, no=0.3, No=0.3))

    assert answer.text == "no"
    assert answer.choice_probabilities == pytest.approx({"yes": 0.4, "no": 0.6})


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_without_probabilities_the_answer_is_what_was_written(spelling):
    answer = in_one_spelling(drawn(spelling))

    assert (answer.text, answer.choice_probabilities) == (spelling.lower(), None)


def test_an_answer_that_was_cut_stays_as_it_is():
    cut = drawn("Ye", yes=0.1, Yes=0.6, no=0.05, No=0.25)
    assert in_one_spelling(cut) is cut


def asked(**fields):
    now = utc_now()
    about = {"kind": RequestKind.QUERY, "stream_id": "str_1", "stream_name": "yard"}
    return ClipRequest(**about, start=now, end=now, prompt="Is it?", frames=[], **fields)


@pytest.mark.parametrize("fields", [{"alert": AlertRule()}, {"data": {VERIFIES: "req_1"}}])
def test_only_the_services_own_questions_allow_every_spelling(fields):
    own = asked(response_format=ALERT_FORMAT, max_tokens=1, **fields)
    users = asked(response_format=ChoiceFormat(choices=["yes", "no"]), max_tokens=1)

    # the record stays as it is, and an answer in several tokens is not cut
    assert own.response_format.choices == ["yes", "no"]
    assert own.sampling["choice"] == ["yes", "no", "Yes", "No"]
    assert own.sampling["max_tokens"] >= len("Yes")
    assert users.sampling["choice"] == ["yes", "no"]
    assert users.sampling["max_tokens"] == 1
