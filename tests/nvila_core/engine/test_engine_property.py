"""Every answer of the engine is the one that the model gives alone, for any mix of batching,
chunking, sharing, preemption and cancellation.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from nvila_core import NVILA, Engine, SamplingParams, Video

TEXTS = ("", "What is this?", "What is this thing doing there?", "Count the cars. " * 4, "é漢字🙂")
MAX_POSITIONS = 290
"""Positions that the longest of these prompts with its answer needs, rounded up."""


class Stock:
    """A few pictures and texts, from which prompts share prefixes; caches the model's answers."""

    def __init__(self, folder: Path) -> None:
        noise = np.random.default_rng(7)

        def image(width: int, height: int) -> Image.Image:
            return Image.fromarray(noise.integers(0, 256, (height, width, 3), dtype=np.uint8))

        self.reference = NVILA.from_pretrained(folder)
        self.model = NVILA.from_pretrained(folder)
        self.images = [image(90 + 60 * i, 110) for i in range(3)]
        self.videos = [
            Video([image(60, 60), self.images[0], *([image(60, 60)] * 2)][:n]) for n in (2, 4)
        ]
        self.answers: dict[Any, Any] = {}

    def parts(self, choice: tuple[int, ...], text: int) -> list[Any]:
        """Return media by index, and a text."""
        media: list[Image.Image | Video] = [*self.images, *self.videos]
        return [*(media[i] for i in choice), TEXTS[text] or "?"]

    def alone(self, choice: tuple[int, ...], text: int, tokens: int) -> list[int]:
        """Return the token ids that the model generates without an engine."""
        key = (choice, text)
        if len(self.answers.get(key, ())) < tokens:
            params = SamplingParams(max_tokens=max(tokens, 24), ignore_eos=True)
            self.answers[key] = self.reference.generate(self.parts(choice, text), params).token_ids
        return list(self.answers[key][:tokens])


@pytest.fixture(scope="module")
def stock(tiny_folder: Path) -> Stock:
    return Stock(tiny_folder)


requests = st.tuples(
    st.lists(st.integers(0, 4), max_size=2).map(tuple),
    st.integers(0, len(TEXTS) - 1),
    st.integers(1, 24),  # tokens
    st.integers(0, 2),  # priority
    st.integers(0, 6),  # steps before the next one arrives
    st.sampled_from([None] * 7 + [1, 4]),  # cancelled after so many further arrivals
)


mixes = given(
    mix=st.lists(requests, min_size=1, max_size=8),
    max_num_seqs=st.integers(1, 6),
    positions=st.integers(MAX_POSITIONS, 3 * MAX_POSITIONS),
    max_num_batched_tokens=st.sampled_from([9, 40, 512]),
    step_tiles=st.sampled_from([1, 3, 16]),
    cache=st.sampled_from([0, 20_000, 2**24]),
)


def some(examples: int) -> settings:
    """Return the settings of a test with so many examples, the same in every run."""
    return settings(
        max_examples=examples, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
    )


@some(12)
@mixes
def test_every_answer_is_the_one_given_alone(stock: Stock, **mix: Any) -> None:
    check_answers(stock, **mix)


@pytest.mark.slow
@some(200)
@mixes
def test_every_answer_of_many_mixes_is_the_one_given_alone(stock: Stock, **mix: Any) -> None:
    check_answers(stock, **mix)


def check_answers(
    stock: Stock,
    mix: list[Any],
    max_num_seqs: int,
    positions: int,
    max_num_batched_tokens: int,
    step_tiles: int,
    cache: int,
) -> None:
    # given an engine with small limits
    engine = Engine(
        stock.model,
        max_num_seqs,
        positions,
        max_num_batched_tokens=max_num_batched_tokens,
        step_tiles=step_tiles,
        tile_cache_bytes=cache,
    )
    # when requests come and some are cancelled
    handles: list[Any] = []
    cancelling: list[Any] = []
    for choice, text, tokens, priority, steps, cancelled in mix:
        params = SamplingParams(max_tokens=tokens, ignore_eos=True)
        handles.append(engine.submit(stock.parts(choice, text), params, priority=priority))
        cancelling = [(handle, left - 1) for handle, left in cancelling]
        if cancelled is not None:
            cancelling.append((handles[-1], cancelled))
        for handle, left in cancelling:
            if left <= 0:
                handle.cancel()
        for _ in range(steps):
            engine.step()
    while engine.step():
        assert engine.stats()["kv_tokens"] <= -(-positions // 16) * 16
    # then
    for handle, (choice, text, tokens, *_) in zip(handles, mix, strict=True):
        answer = handle.result(0)
        expected = stock.alone(choice, text, tokens)
        if answer.finish_reason == "cancelled":
            assert answer.token_ids == expected[: len(answer.token_ids)]
        else:
            assert answer.token_ids == expected
        assert answer.usage.cached_tokens < answer.usage.prompt_tokens
        assert answer.usage.cached_tiles <= answer.usage.tiles
    # and nothing is left in the engine
    stats = engine.stats()
    assert (stats["kv_tokens"], stats["running"], stats["waiting"]) == (0, 0, 0)
    assert stats["tile_cache_bytes"] <= cache
    assert not engine.scheduler.blocks_in_flight


def test_a_mix_like_these_shares_chunks_preempts_and_reuses_tiles(stock: Stock) -> None:
    engine = Engine(stock.model, 6, MAX_POSITIONS, max_num_batched_tokens=40, step_tiles=1)
    handles = [
        engine.submit(
            stock.parts((i % 2 + 3, 0), i % 3), SamplingParams(max_tokens=24, ignore_eos=True)
        )
        for i in range(9)
    ]
    while engine.step():
        pass
    stats = engine.stats()
    assert stats["preemptions"] > 0
    assert stats["cached_tokens"] > 0
    assert stats["cached_tiles"] > 0
    assert all(len(handle.result(0).token_ids) == 24 for handle in handles)
