"""Questions, answers, and their tokens."""

import random
from typing import TYPE_CHECKING

import pytest

from nvila_core.demo.questions import (
    MOTION_KINDS,
    QUESTION_KINDS,
    all_sentences,
    caption,
    changes,
    make_question,
)
from nvila_core.demo.sampling import sample_scene
from nvila_core.demo.training.tokenizer import train_tokenizer
from nvila_core.demo.world import COLOURS, KINDS, PLURALS, Observation, Sighting, observe

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TIMES = (0.0, 1.0, 2.0, 3.0)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> "PreTrainedTokenizerBase":
    from transformers import AutoTokenizer  # takes seconds

    folder = tmp_path_factory.mktemp("tokenizer")
    train_tokenizer().write(folder)
    return AutoTokenizer.from_pretrained(folder)


def test_a_caption_names_objects_by_kind_and_colour_with_their_motion() -> None:
    # given
    seen = (Sighting("person", "blue", "still", None), Sighting("car", "red", "left", "appeared"))

    # then
    clip = Observation("yard", 10, seen, (seen[1],), frames=4)
    assert caption(clip) == "A yard with a blue person standing still, a red car moving left."
    assert changes(clip) == "A red car appeared."
    assert caption(Observation("street", 10, (), (), frames=4)) == "An empty street."
    assert changes(Observation("street", 10, (), (), frames=4)) == "Nothing changed."


def test_every_answer_agrees_with_the_scene() -> None:
    rng = random.Random(1)
    for seed in range(150):
        # given
        observation = observe(sample_scene(seed, TIMES), TIMES)
        for kind in QUESTION_KINDS:
            # when
            question = make_question(observation, kind, rng)

            # then
            if question is None:
                assert kind in ("colour", "direction")
                continue
            with_colour = any(colour in question.text for colour in COLOURS)
            named = [
                s
                for s in observation.seen
                if (s.name if with_colour else f" {s.kind}") in question.text
            ]
            match kind:
                case "count":
                    things = [k for k in KINDS if PLURALS[k] in question.text] or KINDS
                    right = sum(s.kind in things for s in observation.seen)
                    assert question.answer == str(right)
                case "exists" if "mov" not in question.text:
                    assert question.answer == ("yes" if named else "no")
                case "colour":
                    assert [question.answer] == [s.colour for s in named]
                case "direction":
                    motion = question.answer.replace("it stands still", "still")
                    assert [motion] == [s.motion for s in named]
                case "sign":
                    assert question.answer == str(observation.sign_number)


def test_a_still_is_not_asked_about_motion() -> None:
    rng = random.Random(1)
    for seed in range(50):
        observation = observe(sample_scene(seed, (0.0,)), (0.0,))
        assert all(make_question(observation, kind, rng) is None for kind in MOTION_KINDS)
        question = make_question(observation, "exists", rng)
        assert question is not None
        assert "mov" not in question.text


def test_every_word_is_one_token_and_decodes_to_itself(
    tokenizer: "PreTrainedTokenizerBase",
) -> None:
    for sentence in all_sentences():
        # when
        ids = tokenizer(sentence)["input_ids"]

        # then
        assert tokenizer.decode(ids) == sentence
        words = sentence.replace(",", " ,").replace(".", " .").replace("?", " ?").split()
        assert len(ids) == len(words)


def test_text_outside_the_world_survives_the_tokenizer(
    tokenizer: "PreTrainedTokenizerBase",
) -> None:
    text = "Größe: 17 ✓ unknown words\n\tand tabs"
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
