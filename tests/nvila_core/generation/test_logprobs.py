"""Log-probabilities of the drawn tokens and of the choices: those of the model's own logits."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from nvila_core import NVILA, Completion, Engine, PromptError, SamplingParams
from nvila_core.demo import CHECKPOINT

TOLERANCE = 1e-4
WAIT = 120


@pytest.fixture(scope="module")
def demo() -> NVILA:
    """The checkpoint that the package ships, which knows words."""
    return NVILA.from_pretrained(CHECKPOINT)


def next_logits(model: NVILA, parts: Any, written: list[int]) -> Tensor:
    """Return the model's logits, float64 [vocab], of the token after a prompt and an answer's
    first tokens, from one forward pass without cache."""
    prompt = model.prepare(parts)
    embeds = torch.cat([model.embed(prompt), model.language.embed(written)])
    hidden = model.language.hidden_states(embeds)[-1]
    return model.language.logits(hidden, len(model.tokenizer)).double()


def check_tokens(model: NVILA, parts: Any, answer: Completion, top: int) -> None:
    """Assert that an answer's log-probabilities are those of the model's logits."""
    assert answer.logprobs is not None
    assert len(answer.logprobs) == len(answer.token_ids)
    for place, entry in enumerate(answer.logprobs):
        logprobs = next_logits(model, parts, answer.token_ids[:place]).log_softmax(-1)
        assert entry.token_id == answer.token_ids[place]
        assert entry.logprob == pytest.approx(float(logprobs[entry.token_id]), abs=TOLERANCE)
        best = logprobs.topk(top).values.tolist() if top else []
        assert [each.logprob for each in entry.top] == pytest.approx(best, abs=TOLERANCE)
        for each in entry.top:
            assert each.logprob == pytest.approx(float(logprobs[each.token_id]), abs=TOLERANCE)


def token_path(model: NVILA, choice: str, tokens: list[int]) -> bool:
    """Return whether `tokens` may begin `choice`."""
    return choice.encode().startswith(b"".join(map(model.tokenizer.token_bytes, tokens)))


def single_token_odds(model: NVILA, parts: Any, choices: list[str]) -> dict[str, float]:
    """Return the probability of each choice where the first token decides, from all the tokens
    that may begin it."""
    probabilities = next_logits(model, parts, []).softmax(-1)
    vocabulary = range(min(len(model.tokenizer), model.language.num_embeddings))
    known = [i for i in vocabulary if i not in model.tokenizer.control_ids.values()]
    sums = {
        choice: math.fsum(
            float(probabilities[i])
            for i in known
            if model.tokenizer.token_bytes(i) and token_path(model, choice, [i])
        )
        for choice in choices
    }
    total = math.fsum(sums.values())
    return {choice: value / total for choice, value in sums.items()}


def test_logprobs_are_those_of_the_models_logits(tiny: NVILA, pictures: Any) -> None:
    # given
    parts = [pictures.image(), "What is this?"]
    # when
    greedy = tiny.generate(parts, SamplingParams(max_tokens=4, ignore_eos=True, logprobs=3))
    drawn = SamplingParams(
        max_tokens=4, ignore_eos=True, temperature=2.0, top_k=9, seed=3, repetition_penalty=1.3
    )
    plain = tiny.generate(parts, drawn)
    sampled = tiny.generate(parts, SamplingParams(**vars(drawn) | {"logprobs": 0}))
    # then they are those before temperature and penalty, which draw the same tokens as without
    check_tokens(tiny, parts, greedy, 3)
    check_tokens(tiny, parts, sampled, 0)
    assert sampled.token_ids == plain.token_ids
    assert plain.logprobs is None
    assert plain.choice_probabilities is None


def test_logprobs_of_a_form_are_those_before_its_grammar(demo: NVILA) -> None:
    # given a question to which the model would not answer like this
    params = SamplingParams(max_tokens=40, json_schema={"enum": [12345]}, logprobs=2)
    # when
    answer = demo.generate(["Hi"], params)
    # then
    assert answer.text == "12345"
    check_tokens(demo, ["Hi"], answer, 2)
    assert answer.choice_probabilities is None


@pytest.mark.parametrize("choices", [["yes", "no"], ["red", "green", "blü ☂"]])
def test_a_choice_that_the_first_token_decides(demo: NVILA, choices: list[str]) -> None:
    # given
    parts = ["Is there a red ball?"]
    # when
    answer = demo.generate(parts, SamplingParams(choice=choices, logprobs=0))
    # then it is the renormalised probability of the tokens that may begin each
    expected = single_token_odds(demo, parts, choices)
    assert answer.choice_probabilities == pytest.approx(expected, abs=TOLERANCE)
    assert max(expected, key=lambda c: expected[c]) == answer.text
    # and the draw has no part in it
    warm = SamplingParams(choice=choices, logprobs=0, temperature=3.0, seed=5)
    assert demo.generate(parts, warm).choice_probabilities == pytest.approx(expected, abs=TOLERANCE)


def test_choices_with_a_common_beginning_follow_the_tree(tiny: NVILA) -> None:
    # given a model whose tokens are bytes, so that the tree of tokens is that of letters
    parts, choices = ["Which?"], ["aa", "ab", "abc", "b", "cx", "cy"]

    def odds(written: str, following: str, *, may_end: bool = False) -> dict[str, float]:
        ids = tiny.tokenizer.encode(written) if written else []
        logits = next_logits(tiny, parts, ids)
        stops = {f"<{i}>": [i] for i in tiny.tokenizer.stop_ids} if may_end else {}
        names = {c: tiny.tokenizer.encode(c) for c in following} | stops
        values = torch.stack([logits[ids[0]] for ids in names.values()]).softmax(-1).tolist()
        found = dict(zip(names, values, strict=True))
        return {
            **{c: found[c] for c in following},
            "end": math.fsum(found[s] for s in stops),
        }

    first, second, third = odds("", "abc"), odds("a", "ab"), odds("ab", "c", may_end=True)
    # when an answer takes each of the branches
    seen = {}
    for seed in range(60):
        params = SamplingParams(choice=choices, logprobs=0, temperature=50.0, seed=seed)
        answer = tiny.generate(parts, params)
        assert answer.choice_probabilities is not None
        assert math.fsum(answer.choice_probabilities.values()) == pytest.approx(1)
        seen[answer.text] = answer.choice_probabilities
    assert {"abc", "b"} <= seen.keys()
    # then the branch that was taken is split by the model, another equally
    assert seen["abc"] == pytest.approx(
        {
            "aa": first["a"] * second["a"],
            "ab": first["a"] * second["b"] * third["end"],
            "abc": first["a"] * second["b"] * third["c"],
            "b": first["b"],
            "cx": first["c"] / 2,
            "cy": first["c"] / 2,
        },
        abs=TOLERANCE,
    )
    assert seen["b"]["aa"] == pytest.approx(first["a"] / 3, abs=TOLERANCE)


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    choices=st.lists(
        st.text("abé ☂", min_size=1, max_size=5).map(str.strip).filter(bool),
        min_size=1,
        max_size=6,
        unique=True,
    ),
    seed=st.integers(0, 99),
)
def test_the_probabilities_of_any_choices_add_up_to_1(
    demo: NVILA, choices: list[str], seed: int
) -> None:
    # given, when
    params = SamplingParams(choice=choices, logprobs=0, temperature=2.0, seed=seed, max_tokens=3)
    found = demo.generate(["Well?"], params).choice_probabilities
    # then, also where the answer is cut
    assert found is not None
    assert list(found) == choices
    assert math.fsum(found.values()) == pytest.approx(1)
    assert all(0 <= p <= 1 + 1e-9 for p in found.values())


def test_an_engine_gives_the_same_in_batches_and_with_reused_prefixes(
    tiny_folder: Path, tiny: NVILA, pictures: Any
) -> None:
    # given requests of all kinds, asked together and then again
    clip = [pictures.image(200, 120), "What do you see in this picture? Think of the colours."]
    asked = [
        (clip, SamplingParams(max_tokens=5, ignore_eos=True, logprobs=4)),
        (["Hello"], SamplingParams(max_tokens=5, ignore_eos=True)),
        (clip, SamplingParams(choice=["yes", "no", "not sure"], logprobs=0)),
        (["Hi"], SamplingParams(max_tokens=5, temperature=2.0, seed=4, logprobs=1)),
    ]
    with Engine(NVILA.from_pretrained(tiny_folder), kv_cache_tokens=4096) as engine:
        for repeat in range(2):
            # when
            handles = [engine.submit(*request) for request in asked]
            answers = [handle.result(timeout=WAIT) for handle in handles]
            # then
            if repeat:
                assert answers[0].usage.cached_tokens > 0
            for (parts, params), answer in zip(asked, answers, strict=True):
                alone = tiny.generate(parts, params)
                assert answer.token_ids == alone.token_ids
                if params.logprobs is None:
                    assert answer.logprobs is None
                else:
                    check_tokens(tiny, parts, answer, params.logprobs)
                expected = alone.choice_probabilities
                assert (answer.choice_probabilities is None) == (expected is None)
                if expected is not None:
                    assert answer.choice_probabilities == pytest.approx(expected, abs=TOLERANCE)


def test_a_preempted_answer_has_one_entry_for_each_token(tiny_folder: Path, tiny: NVILA) -> None:
    # given prompts that fit together and answers that do not
    engine = Engine(NVILA.from_pretrained(tiny_folder), max_num_seqs=8, kv_cache_tokens=320)
    params = SamplingParams(max_tokens=90, ignore_eos=True, logprobs=1)
    handles = [engine.submit([f"hello {i}"], params) for i in range(4)]
    # when
    while engine.step():
        pass
    # then
    assert engine.stats()["preemptions"] > 0
    for i, handle in enumerate(handles):
        alone = tiny.generate([f"hello {i}"], params)
        answer = handle.result(0)
        assert alone.logprobs is not None
        assert answer.logprobs is not None
        assert [e.token_id for e in answer.logprobs] == alone.token_ids
        expected = [e.logprob for e in alone.logprobs]
        assert [e.logprob for e in answer.logprobs] == pytest.approx(expected, abs=TOLERANCE)


def test_the_bytes_of_tokens_give_the_text(demo: NVILA) -> None:
    # given, when
    answer = demo.generate(["Hi"], SamplingParams(choice=["blü ☂ 😀"], logprobs=1))
    # then
    assert answer.logprobs is not None
    assert b"".join(entry.token for entry in answer.logprobs).decode() == "blü ☂ 😀"
    stop = next(iter(demo.tokenizer.stop_ids))
    assert demo.tokenizer.token_bytes(stop).decode() == demo.tokenizer.control_names[stop]


@pytest.mark.parametrize("logprobs", [-1, 21, 1.5, True, "2"])
def test_logprobs_out_of_range_are_refused(logprobs: Any) -> None:
    with pytest.raises(PromptError, match="logprobs must be"):
        SamplingParams(logprobs=logprobs)
