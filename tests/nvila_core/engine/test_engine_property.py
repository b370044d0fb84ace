"""Whatever is batched, chunked, shared, pushed out or cancelled: every answer is the one that the
model gives alone.
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
LONGEST = 290
"""Positions that the longest of these prompts with its answer needs, rounded up."""


class Stock:
    """A few pictures and texts, from which prompts share beginnings; answers alone, kept."""

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
        """Media by number and a text."""
        media: list[Image.Image | Video] = [*self.images, *self.videos]
        return [*(media[i] for i in choice), TEXTS[text] or "?"]

    def alone(self, choice: tuple[int, ...], text: int, tokens: int) -> list[int]:
        """The ids that the model gives alone."""
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


@settings(
    max_examples=30,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow],
)
@given(
    mix=st.lists(requests, min_size=1, max_size=8),
    seats=st.integers(1, 6),
    positions=st.integers(LONGEST, 3 * LONGEST),
    max_num_batched_tokens=st.sampled_from([9, 40, 512]),
    step_tiles=st.sampled_from([1, 3, 16]),
    cache=st.sampled_from([0, 20_000, 2**24]),
)
def test_every_answer_is_the_one_given_alone(
    stock: Stock,
    mix: list[Any],
    seats: int,
    positions: int,
    max_num_batched_tokens: int,
    step_tiles: int,
    cache: int,
) -> None:
    # given an engine that is short of something
    engine = Engine(
        stock.model,
        seats,
        positions,
        max_num_batched_tokens=max_num_batched_tokens,
        step_tiles=step_tiles,
        tile_cache_bytes=cache,
    )
    # when requests come and some are cancelled
    handles, doomed = [], []
    for choice, text, tokens, priority, steps, cancelled in mix:
        params = SamplingParams(max_tokens=tokens, ignore_eos=True)
        handles.append(engine.submit(stock.parts(choice, text), params, priority=priority))
        doomed = [(handle, left - 1) for handle, left in doomed]
        if cancelled is not None:
            doomed.append((handles[-1], cancelled))
        for handle, left in doomed:
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
    # and nothing is left behind
    stats = engine.stats()
    assert (stats["kv_tokens"], stats["running"], stats["waiting"]) == (0, 0, 0)
    assert stats["tile_cache_bytes"] <= cache
    assert not engine.scheduler.blocks_in_flight


def test_the_mixes_reach_what_they_are_meant_to_test(stock: Stock) -> None:
    """Sharing, chunks, preemption and tile reuse all happen in one run like those above."""
    engine = Engine(stock.model, 6, LONGEST, max_num_batched_tokens=40, step_tiles=1)
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
