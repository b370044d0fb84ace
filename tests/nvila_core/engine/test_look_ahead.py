"""Decode steps that are started before the one before has been read give the same tokens."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from nvila_core import NVILA, Engine, NotFinite, SamplingParams
from nvila_core.engine.batch import SequenceSlice
from tests.nvila_core.engine.test_background_tower import LaterTower
from tests.nvila_core.engine.test_engine_property import Stock, check_answers, mixes, some

TALK = SamplingParams(max_tokens=12, ignore_eos=True)


class CpuGraphs:
    """What `DecodeGraphs` does, in PyTorch on a CPU; keeps the tokens of the last call.

    Attributes:
        calls: for each, its number of sequences and whether it took the tokens of the one before.
    """

    def __init__(self, model: NVILA, attention: Any, *_: Any) -> None:
        self.model, self.attention = model, attention
        self.calls: list[tuple[int, bool]] = []
        self.latest = torch.zeros(64, dtype=torch.int32)
        self.poison: dict[int, float] = {}

    def takes(self, s: SequenceSlice) -> bool:
        return s.count == 1 and s.complete and s.ids[0] >= 0

    def run(
        self, slices: Sequence[SequenceSlice], sources: Sequence[int] | None = None
    ) -> tuple[Tensor, Tensor] | None:
        if not slices:
            return None
        self.calls.append((len(slices), sources is not None))
        if sources is not None:
            tokens = [int(self.latest[row]) for row in sources]
            slices = [replace(s, ids=[t]) for s, t in zip(slices, tokens, strict=True)]
        batch = self.attention.plan(slices)
        language = self.model.language
        embeds = language.embed_rows(batch.ids)
        hidden = language.forward_step(embeds, batch.positions, batch, batch.last_rows)
        logits = torch.empty(len(slices), len(self.model.tokenizer))
        logits[batch.order] = language.logits(hidden, len(self.model.tokenizer))
        for row, value in self.poison.items():
            logits[row] = value
        highest, likeliest = logits.max(-1)
        sound = torch.empty(len(slices), dtype=torch.int32)
        sound[batch.order] = batch.are_finite().int()
        self.latest = torch.full((64,), -1, dtype=torch.int32)
        self.latest[: len(slices)] = likeliest
        return logits, torch.stack([likeliest.int(), highest.isfinite().int(), sound])


@pytest.fixture(autouse=True, scope="module")
def graphs() -> Any:
    """Give each engine graphs, and a tower beside its steps."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("nvila_core.engine.engine.make_graphs", CpuGraphs)
        patch.setattr(
            "nvila_core.engine.engine.make_tower", lambda model: LaterTower(model, looks=2)
        )
        patch.setattr("nvila_core.engine.engine.TOWER_POLL_SECONDS", 0.0)
        yield


@pytest.fixture(scope="module")
def stock(tiny_folder: Path) -> Stock:
    return Stock(tiny_folder)


@pytest.fixture
def model(tiny_folder: Path) -> NVILA:
    return NVILA.from_pretrained(tiny_folder)


def graphs_of(engine: Engine) -> CpuGraphs:
    graphs: Any = engine.runner.graphs
    return graphs


def run(engine: Engine) -> None:
    while engine.step():
        pass


@some(6)
@mixes
def test_every_answer_is_the_one_given_alone(stock: Stock, **mix: Any) -> None:
    check_answers(stock, **mix)


@pytest.mark.slow
@some(400)
@mixes
def test_every_answer_of_many_mixes_is_the_one_given_alone(stock: Stock, **mix: Any) -> None:
    check_answers(stock, **mix)


def test_steps_go_ahead_while_requests_only_decode(model: NVILA) -> None:
    # given two requests of different lengths
    engine = Engine(model)
    asks = [["One"], ["Another"]]
    params = [TALK, SamplingParams(max_tokens=6, ignore_eos=True)]
    handles = [engine.submit(ask, p) for ask, p in zip(asks, params, strict=True)]
    # when they run
    run(engine)
    # then steps took the tokens of the one before from the device, and the answers are the same
    ahead = [count for count, taken in graphs_of(engine).calls if taken]
    assert len(ahead) >= 6
    assert set(ahead) == {1, 2}
    for ask, p, handle in zip(asks, params, handles, strict=True):
        assert handle.result(0).token_ids == model.generate(ask, p).token_ids
    # and a request that ends by its length has no surplus position
    assert sum(count for count, _ in graphs_of(engine).calls) == 11 + 5


def test_an_answer_that_ends_by_its_words_drops_the_surplus_token(model: NVILA) -> None:
    # given an answer, and a stop string that its middle completes
    whole = model.generate(["Tell me"], TALK)
    stop = next(whole.text[n : n + 2] for n in range(1, 8) if whole.text[n : n + 2].strip())
    params = SamplingParams(max_tokens=12, ignore_eos=True, stop=stop)
    engine = Engine(model)
    # when it is generated beside another
    handles = [engine.submit(["Tell me"], params), engine.submit(["Other"], TALK)]
    run(engine)
    # then it is the same as without an engine, and all memory is free
    expected = model.generate(["Tell me"], params)
    assert handles[0].result(0).token_ids == expected.token_ids
    assert handles[0].result(0).finish_reason == "stop"
    assert handles[1].result(0).token_ids == model.generate(["Other"], TALK).token_ids
    assert engine.stats()["kv_tokens"] == 0


@pytest.mark.parametrize(
    "params",
    [
        SamplingParams(choice=("yes, indeed", "no, never")),
        SamplingParams(max_tokens=6, repetition_penalty=1.2, ignore_eos=True),
    ],
)
def test_a_form_and_a_penalty_need_the_token_before_the_next_step(
    model: NVILA, params: SamplingParams
) -> None:
    # given a request whose next token depends on the last one on the host, beside another
    engine = Engine(model)
    handles = [engine.submit(["Yes?"], params), engine.submit(["One"], params)]
    # when they run, then no step goes ahead, and the answers are the same
    run(engine)
    assert graphs_of(engine).calls
    assert not any(taken for _, taken in graphs_of(engine).calls)
    assert handles[0].result(0).token_ids == model.generate(["Yes?"], params).token_ids


SAMPLED = (
    SamplingParams(max_tokens=12, temperature=1.5, seed=3, ignore_eos=True),
    SamplingParams(max_tokens=9, temperature=0.8, top_k=30, seed=4, ignore_eos=True, logprobs=2),
    SamplingParams(max_tokens=11, temperature=1.0, top_p=0.9, seed=-1, ignore_eos=True),
    SamplingParams(max_tokens=7, ignore_eos=True, logprobs=1),
    TALK,
)


def test_sampled_tokens_and_their_probabilities_are_computed_ahead(model: NVILA) -> None:
    # given requests that sample, beside one that does not
    engine = Engine(model)
    asks = [[f"Ask {number}"] for number in range(len(SAMPLED))]
    handles = [engine.submit(ask, params) for ask, params in zip(asks, SAMPLED, strict=True)]
    # when they run
    run(engine)
    # then steps went ahead of their tokens, and each answer is the one given alone
    assert sum(taken for _, taken in graphs_of(engine).calls) >= 8
    for ask, params, handle in zip(asks, SAMPLED, handles, strict=True):
        found, alone = handle.result(0), model.generate(ask, params)
        assert found.token_ids == alone.token_ids
        assert [e.token_id for e in found.logprobs or ()] == [
            e.token_id for e in alone.logprobs or ()
        ]
        assert [[e.logprob, *(t.logprob for t in e.top)] for e in found.logprobs or ()] == [
            pytest.approx([e.logprob, *(t.logprob for t in e.top)], abs=1e-4)
            for e in alone.logprobs or ()
        ]


def test_a_seed_gives_the_same_tokens_where_requests_are_preempted(model: NVILA) -> None:
    # given prompts that fit together and sampled answers that do not
    engine = Engine(model, max_num_seqs=8, kv_cache_tokens=192)
    params = [
        SamplingParams(max_tokens=40, temperature=1.2, seed=seed, ignore_eos=True)
        for seed in range(4)
    ]
    handles = [engine.submit(["hello"], each) for each in params]
    # when
    run(engine)
    # then
    assert engine.stats()["preemptions"] > 0
    assert any(taken for _, taken in graphs_of(engine).calls)
    for each, handle in zip(params, handles, strict=True):
        assert handle.result(0).token_ids == model.generate(["hello"], each).token_ids


def test_what_is_not_a_number_in_a_step_in_flight_fails_alone(model: NVILA) -> None:
    # given two requests with a step in flight
    engine = Engine(model)
    handles = [engine.submit([text], TALK) for text in ("One", "Two")]
    for _ in range(3):
        engine.step()
    # when the first computes what is no number, and the step after it has begun
    graphs_of(engine).poison = {0: float("nan")}
    engine.step()
    graphs_of(engine).poison = {}
    run(engine)
    # then it alone fails, once its last position has been read
    with pytest.raises(NotFinite):
        handles[0].result(0)
    assert handles[1].result(0).token_ids == model.generate(["Two"], TALK).token_ids
    assert engine.stats()["kv_tokens"] == 0


def test_cancelling_and_stopping_read_the_step_in_flight_first(model: NVILA) -> None:
    # given requests with a step in flight
    engine = Engine(model)
    long = SamplingParams(max_tokens=200, ignore_eos=True)
    cancelled, stopped = (engine.submit([text], long) for text in ("One", "Two"))
    for _ in range(5):
        engine.step()
    # when one is cancelled
    cancelled.cancel()
    engine.step()
    # then its tokens so far are right
    answer = cancelled.result(0)
    expected = model.generate(["One"], long).token_ids
    assert answer.finish_reason == "cancelled"
    assert answer.token_ids == expected[: len(answer.token_ids)]
    # and when the engine stops, then nothing is left
    engine.stop()
    assert stopped.done
    assert engine.stats()["kv_tokens"] == 0
