"""Tokens are drawn in batches as they are one by one, and as often as their probabilities say."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nvila_core.generation.draw import NO_TOKEN_POSSIBLE, Bits, Draw, draw_tokens

VOCAB = 37


def bits(tokens: Any) -> Bits:
    chosen = np.zeros(VOCAB, bool)
    chosen[list(tokens)] = True
    return np.packbits(chosen, bitorder="little")


SETS: Any = st.none() | st.sets(st.integers(0, VOCAB - 1), min_size=1).map(bits)
DRAWS: Any = st.builds(
    Draw,
    temperature=st.sampled_from([0.0, 0.7, 2.0]),
    top_k=st.sampled_from([0, 1, 5, 60]),
    top_p=st.sampled_from([1.0, 0.8, 1e-9]),
    penalty=st.sampled_from([1.0, 1.3, 0.5]),
    number=st.floats(0, 1, exclude_max=True),
    used=SETS,
    allowed=SETS,
)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(draws=st.lists(DRAWS, min_size=1, max_size=6), seed=st.integers(0, 50))
def test_a_row_does_not_depend_on_the_others(draws: list[Draw], seed: int) -> None:
    logits = 3 * torch.randn(len(draws), VOCAB, generator=torch.Generator().manual_seed(seed))
    alone = [int(draw_tokens(row[None], [draw])) for row, draw in zip(logits, draws, strict=True)]
    assert draw_tokens(logits, draws).tolist() == alone
    some = range(len(draws))[1::2]
    found = draw_tokens(logits, [draws[row] for row in some], some).tolist()
    assert found == [alone[row] for row in some]


def probabilities(logits: torch.Tensor, draw: Draw) -> torch.Tensor:
    """Return the probability of each token [vocab], step by step as the parameters define it."""
    values = logits.double().clone()
    for token in range(VOCAB):
        if draw.used is not None and draw.used[token // 8] >> token % 8 & 1:
            values[token] *= draw.penalty if values[token] < 0 else 1 / draw.penalty
        if draw.allowed is not None and not draw.allowed[token // 8] >> token % 8 & 1:
            values[token] = -torch.inf
    if not draw.temperature:
        return torch.nn.functional.one_hot(values.argmax(), VOCAB).double()
    values /= draw.temperature
    order = values.argsort(descending=True).tolist()
    kept = order[: draw.top_k or VOCAB]
    shares = torch.zeros(VOCAB, dtype=torch.float64)
    shares[kept] = values[kept].softmax(0)
    before = 0.0
    for place, token in enumerate(kept):
        if place and before >= draw.top_p:
            before += float(shares[token])
            shares[token] = 0
        else:
            before += float(shares[token])
    return shares / shares.sum()


@settings(max_examples=60, deadline=None, derandomize=True)
@given(draw=DRAWS, seed=st.integers(0, 50))
def test_tokens_come_as_often_as_their_probabilities_say(draw: Draw, seed: int) -> None:
    # given numbers that lie evenly between 0 and 1
    logits = 2 * torch.randn(VOCAB, generator=torch.Generator().manual_seed(seed))
    count = 500
    rows = [Draw(**{**vars(draw), "number": (place + 0.5) / count}) for place in range(count)]
    # when each draws a token
    drawn = draw_tokens(logits.expand(count, VOCAB), rows)
    # then each token comes as often as it should, but for one
    found = torch.bincount(drawn, minlength=VOCAB).double()
    assert (found - count * probabilities(logits, draw)).abs().max() <= 1.001


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_rows_that_are_not_numbers_or_have_no_token_harm_no_other(temperature: float) -> None:
    # given a row of NaN, one without an allowed token, and one with the last token only
    logits = torch.zeros(3, VOCAB)
    logits[0] = torch.nan
    logits[1, 4] = -torch.inf
    draws = [
        Draw(temperature, number=0.9),
        Draw(temperature, number=0.9, allowed=bits([4])),
        Draw(temperature, number=1 - 2**-53, top_p=0.5, allowed=bits([VOCAB - 1])),
    ]
    # when
    drawn = draw_tokens(logits, draws).tolist()
    # then
    assert drawn[1:] == [NO_TOKEN_POSSIBLE, VOCAB - 1]
