"""Sampling of tokens, and the text of a sequence."""

from functools import cache
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nvila_core import NVILA, PromptError, SamplingParams
from nvila_core.demo import CHECKPOINT
from nvila_core.generation.draw import draw_tokens
from nvila_core.generation.sampling import TokenSampler, random_number
from nvila_core.generation.sequence import Detokenizer, Sequence
from nvila_core.prompt.tokenizer import Tokenizer

demo_tokenizer = cache(lambda: Tokenizer(CHECKPOINT / "llm"))

LOGITS = torch.tensor([0.0, 3.0, 2.0, 1.0, -5.0])


def draw(sampler: TokenSampler, logits: torch.Tensor, index: int) -> int:
    """Draw token `index` of a sequence."""
    token = int(draw_tokens(logits[None], [sampler.next(index)]))
    sampler.note(token)
    return token


def draws(params: SamplingParams, count: int = 400, logits: torch.Tensor = LOGITS) -> set[int]:
    sampler = TokenSampler(params, [])
    return {draw(sampler, logits, index) for index in range(count)}


def test_greedy_is_the_default() -> None:
    assert draws(SamplingParams()) == {1}


def test_temperature_top_k_and_top_p_narrow_the_choice() -> None:
    assert draws(SamplingParams(temperature=1.0, seed=1)) >= {0, 1, 2, 3}
    assert draws(SamplingParams(temperature=1.0, top_k=2, seed=1)) == {1, 2}
    # probabilities are about .64 .24 .09 .03: the first two are needed to reach 0.7
    assert draws(SamplingParams(temperature=1.0, top_p=0.7, seed=1)) == {1, 2}
    assert draws(SamplingParams(temperature=1.0, top_p=1e-9, seed=1)) == {1}
    assert draws(SamplingParams(temperature=0.01, seed=1)) == {1}


def test_frequencies_follow_the_softmax() -> None:
    sampler = TokenSampler(SamplingParams(temperature=1.0, seed=3), [])
    drawn = [draw(sampler, LOGITS, index) for index in range(4000)]
    counts = torch.bincount(torch.tensor(drawn), minlength=5)
    torch.testing.assert_close(counts / 4000, LOGITS.softmax(0), atol=0.03, rtol=0)


def test_seed_repeats_a_sequence() -> None:
    def run(seed: int | None) -> list[int]:
        sampler = TokenSampler(SamplingParams(temperature=1.0, seed=seed), [])
        return [draw(sampler, torch.zeros(1000), index) for index in range(20)]

    assert run(5) == run(5) != run(6)
    assert run(None) != run(None)


@pytest.mark.parametrize("seed", [0, 5, -1, 2**64 - 1])
def test_a_random_number_depends_on_seed_and_index_alone(seed: int) -> None:
    # given two samplers of one seed, and one of another
    params = SamplingParams(temperature=1.0, seed=seed)
    other = TokenSampler(SamplingParams(temperature=1.0, seed=seed % 2**64 ^ 1), [])
    forth = [TokenSampler(params, [7]).next(index).number for index in range(50)]
    # when one draws backwards, and each twice
    sampler = TokenSampler(params, [])
    back = [sampler.next(index).number for index in [*range(49, -1, -1), *range(49, -1, -1)]]
    # then the numbers are those of their indices, and all are different
    assert back[:50] == back[50:] == forth[::-1]
    assert len({*forth, *(other.next(index).number for index in range(50))}) == 100


def test_random_numbers_are_evenly_spread_over_seeds_as_over_indices() -> None:
    for numbers in (
        [random_number(seed, 3) for seed in range(2000)],
        [random_number(3, index) for index in range(2000)],
    ):
        counts = torch.histc(torch.tensor(numbers), bins=10, min=0, max=1)
        assert (counts - 200).abs().max() < 60  # 4.5 standard deviations


def test_repetition_penalty_counts_prompt_and_answer() -> None:
    sampler = TokenSampler(SamplingParams(repetition_penalty=2.0), [1])
    # 3 / 2 is below 2, then 2 / 2 is below 1.5
    assert [draw(sampler, LOGITS, index) for index in range(2)] == [2, 1]
    negative = TokenSampler(SamplingParams(repetition_penalty=2.0), [0])
    assert draw(negative, torch.tensor([-1.0, -1.5]), 0) == 1


def test_the_end_of_the_turn_is_as_likely_with_a_penalty(tiny: NVILA) -> None:
    # given a prompt whose turns end with the token that is to end the answer
    (stop,) = tiny.tokenizer.stop_ids
    prompt = tiny.prepare(["x"])
    assert stop in prompt.token_ids
    params = SamplingParams(repetition_penalty=2.0)
    sequence = Sequence(prompt, params, tiny.tokenizer, tiny.max_model_len)
    # when it is a little more likely than a token that the prompt lacks, and a word much more
    (word,) = tiny.tokenizer.encode("x")
    (lacking,) = tiny.tokenizer.encode("Z")
    assert word in prompt.token_ids
    assert lacking not in prompt.token_ids
    logits = torch.full((len(tiny.tokenizer),), -9.0)
    logits[stop], logits[lacking], logits[word] = 3.0, 2.9, 5.0
    sequence.accept(logits)
    # then it is drawn, because the penalty holds for the word only
    assert sequence.token_ids == [stop]


def test_tokens_without_a_row_are_never_drawn() -> None:
    logits = torch.tensor([0.0, float("-inf"), 0.0])
    assert draws(SamplingParams(temperature=5.0, seed=2), logits=logits) == {0, 2}


@pytest.mark.parametrize(
    "wrong",
    [
        {"max_tokens": 0},
        {"temperature": -1},
        {"temperature": float("nan")},
        {"top_p": 0},
        {"top_p": 1.1},
        {"top_k": -1},
        {"repetition_penalty": 0},
        {"stop": [""]},
    ],
)
def test_wrong_parameters_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(PromptError, match=next(iter(wrong))):
        SamplingParams(**wrong)


def feed(model: NVILA, text: bytes, params: SamplingParams) -> tuple[Sequence, list[str]]:
    """Generate the bytes of `text` one by one, with logits that allow no other token."""
    sequence = Sequence(model.prepare(["x"]), params, model.tokenizer, model.max_model_len)
    deltas = []
    for byte in text:
        logits = torch.zeros(len(model.tokenizer))
        logits[model.tokenizer.encode(chr(byte))[0]] = 9.0
        sequence.accept(logits)
        deltas.append(sequence.take_delta())
        if sequence.finish_reason:
            break
    return sequence, deltas


def test_deltas_add_up_to_the_stripped_text(tiny: NVILA) -> None:
    sequence, deltas = feed(tiny, b"  two  words \n", SamplingParams(max_tokens=14))
    assert sequence.completion().text == "two  words" == "".join(deltas)
    # white space waits until a word follows it
    assert deltas[:6] == ["", "", "t", "w", "o", ""]


@pytest.mark.parametrize(
    ("text", "left"), [(b"Yes. END more", "Yes."), (b"EEND", "E"), (b"EN EN", "EN EN")]
)
def test_stop_strings_end_the_text_and_are_never_streamed(
    tiny: NVILA, text: bytes, left: str
) -> None:
    sequence, deltas = feed(tiny, text, SamplingParams(max_tokens=len(text), stop="END"))
    assert sequence.completion().text == left == "".join(deltas)
    assert sequence.finish_reason == ("stop" if b"END" in text else "length")


def test_an_incomplete_character_is_not_streamed(tiny: NVILA) -> None:
    # given the tokens of a character that takes four bytes
    ids = tiny.tokenizer.encode("🙂")
    assert len(ids) == 4
    sequence = Sequence(tiny.prepare(["x"]), SamplingParams(max_tokens=4), tiny.tokenizer, 4096)
    deltas = []
    for token in ids:
        sequence.accept(
            torch.nn.functional.one_hot(torch.tensor(token), len(tiny.tokenizer)).float()
        )
        deltas.append(sequence.take_delta())
    assert deltas == ["", "", "", "🙂"]


@settings(max_examples=200, deadline=None, derandomize=True)
@given(ids=st.lists(st.integers(0, 300) | st.integers(515, 531), max_size=60))
def test_text_by_token_is_the_text_at_once(ids: list[int]) -> None:
    # given any tokens: incomplete characters, bytes that begin none, special tokens
    tokenizer = demo_tokenizer()
    text = Detokenizer(tokenizer)
    # when they come one by one, then at each of them the text is that of all so far
    for count, token in enumerate(ids, 1):
        assert text.add(token) == tokenizer.decode(ids[:count])


@pytest.mark.parametrize("letter", ["\u00f0", "\u0122"])  # the bytes 0xf0 and 0x80
def test_text_that_never_completes_a_character_is_decoded_once(
    letter: str, tiny: NVILA, monkeypatch: pytest.MonkeyPatch
) -> None:
    # given a byte that begins a character, or continues one
    token = int(tiny.tokenizer.backend.token_to_id(letter) or 0)
    decoded: list[int] = []
    decode, token_bytes = tiny.tokenizer.decode, tiny.tokenizer.token_bytes
    monkeypatch.setattr(tiny.tokenizer, "decode", lambda ids: [decoded.extend(ids), decode(ids)][1])
    monkeypatch.setattr(
        tiny.tokenizer, "token_bytes", lambda i: [decoded.append(i), token_bytes(i)][1]
    )
    # when it comes a thousand times
    text = Detokenizer(tiny.tokenizer)
    for _ in range(1000):
        whole = text.add(token)
    # then no token was decoded more than once
    assert len(decoded) <= 1000
    assert whole == decode([token] * 1000) == "\ufffd" * 1000


def test_end_of_turn_stops_unless_ignored(tiny: NVILA) -> None:
    (stop,) = tiny.tokenizer.stop_ids
    end = torch.nn.functional.one_hot(torch.tensor(stop), len(tiny.tokenizer)).float()
    for ignore, reason, count in ((False, "stop", 1), (True, "length", 3)):
        params = SamplingParams(max_tokens=3, ignore_eos=ignore)
        sequence = Sequence(tiny.prepare(["x"]), params, tiny.tokenizer, 4096)
        while not sequence.finish_reason:
            sequence.accept(end)
        completion = sequence.completion()
        assert (completion.finish_reason, len(completion.token_ids), completion.text) == (
            reason,
            count,
            "",
        )
        assert completion.usage.completion_tokens == count


def test_answer_ends_where_the_context_does(tiny: NVILA) -> None:
    prompt = tiny.prepare(["x" * 4030])
    room = tiny.max_model_len - prompt.num_tokens
    assert 0 < room < 100
    answer = tiny.generate(prompt, SamplingParams(max_tokens=1000, ignore_eos=True))
    assert (answer.finish_reason, len(answer.token_ids)) == ("length", room)
