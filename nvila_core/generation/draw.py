"""Draw the next tokens of a batch, on the device that has their logits.

A row's token depends on its own logits and numbers only: a seed gives the same tokens whatever
stands beside it in the batch.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nvila_core.models.staging import stage

NO_TOKEN_POSSIBLE = -1

Bits = NDArray[np.uint8]
"""A set of tokens, a bit for each, the lowest bit of a byte first; missing bytes are zeros."""


@dataclass(frozen=True)
class Draw:
    """What is needed to draw the token of one row.

    Attributes:
        temperature, top_k, top_p, penalty: see `SamplingParams`.
        number: random, at least 0 and below 1; unused where the temperature is 0.
        used: the tokens that the penalty is for; None: none.
        allowed: the tokens that may come next; None: all.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    penalty: float = 1.0
    number: float = 0.0
    used: Bits | None = None
    allowed: Bits | None = None


@torch.inference_mode()
def draw_tokens(
    logits: Tensor,
    draws: Sequence[Draw],
    chosen: Sequence[int] | None = None,
    into: Tensor | None = None,
) -> Tensor:
    """Draw tokens, with one copy to the device and without waiting for it.

    Args:
        logits: float32 [M, vocab].
        draws: how to draw each of N tokens.
        chosen: the row of logits for each; None: all rows, in order.
        into: int32 [at least M]; the tokens are written there too, each at its row of logits.

    Returns:
        int64 [N]; NO_TOKEN_POSSIBLE where each allowed token has the logit -inf.
    """
    groups = list(_groups(draws))
    penalised = [row for row, draw in enumerate(draws) if draw.used is not None]
    limited = [row for row, draw in enumerate(draws) if draw.allowed is not None]
    width = -(-logits.shape[1] // 8)
    parameters = [(draw.temperature, draw.top_p, draw.penalty) for draw in draws]
    if chosen is None:
        chosen = range(len(logits))
    index, shares, numbers, used, allowed, *rows = stage(
        [
            np.array(chosen, np.int64),
            np.array(parameters, np.float32).reshape(-1, 3),
            np.array([draw.number for draw in draws]),
            _pack([draws[row].used for row in penalised], width),
            _pack([draws[row].allowed for row in limited], width),
            *(np.array(found, np.int64) for found in (penalised, limited)),
            *(np.array(found, np.int64) for _, found in groups),
        ],
        logits.device,
    )
    if len(chosen) < len(logits):
        logits = logits.index_select(0, index)
    elif penalised or limited:
        logits = logits.clone(memory_format=torch.contiguous_format)
    temperatures, nuclei, penalties = (column[:, None] for column in shares.unbind(1))
    if penalised:
        _penalise(logits, rows[0], used, penalties.index_select(0, rows[0]))
    if limited:
        fits = _unpack(allowed, logits.shape[1])
        masked = logits.index_select(0, rows[1]).masked_fill(fits.logical_not(), float("-inf"))
        logits.index_copy_(0, rows[1], masked)
    highest, tokens = logits.max(-1)
    for (top_k, has_nucleus), place in zip((way for way, _ in groups), rows[2:], strict=True):
        sampled = _sample(
            logits.index_select(0, place) / temperatures.index_select(0, place),
            numbers.index_select(0, place)[:, None],
            top_k,
            nuclei.index_select(0, place) if has_nucleus else None,
        )
        tokens.index_copy_(0, place, sampled)
    tokens = torch.where(highest == float("-inf"), NO_TOKEN_POSSIBLE, tokens)
    if into is not None:
        into.index_copy_(0, index, tokens.to(into.dtype))
    return tokens


def tokens_of(allowed: Bits, vocab: int) -> NDArray[np.int64]:
    """Return the tokens below `vocab` of a set, in order."""
    return np.flatnonzero(np.unpackbits(allowed, bitorder="little")[:vocab])


def _groups(draws: Sequence[Draw]) -> Iterator[tuple[tuple[int, bool], list[int]]]:
    """Yield the rows that are sampled in the same way: top_k, and whether there is a top_p."""
    ways: dict[tuple[int, bool], list[int]] = {}
    for row, draw in enumerate(draws):
        if draw.temperature > 0:
            ways.setdefault((draw.top_k, draw.top_p < 1), []).append(row)
    yield from ways.items()


def _sample(logits: Tensor, numbers: Tensor, top_k: int, nuclei: Tensor | None) -> Tensor:
    """Draw from the softmax of logits [n, vocab], with numbers float64 [n, 1]: tokens [n]."""
    order = None
    if top_k:
        logits, order = logits.topk(min(top_k, logits.shape[1]))
    elif nuclei is not None:
        logits, order = logits.sort(descending=True, stable=True)
    shares = logits.softmax(-1)
    if nuclei is not None:
        preceding = shares.cumsum(-1) - shares
        preceding[:, 0] = -1  # the likeliest stays, however small top_p is
        shares = torch.where(preceding < nuclei, shares, 0.0)
    sums = shares.double().cumsum(-1)
    places = torch.searchsorted(sums, numbers * sums[:, -1:], right=True)
    places = places.clamp(max=shares.shape[1] - 1)
    # Sums that are rounded may point beside a token that is possible.
    possible = shares.gather(1, places) > 0
    places = torch.where(possible, places, shares.argmax(-1, keepdim=True))
    return (places if order is None else order.gather(1, places))[:, 0]


def _penalise(logits: Tensor, rows: Tensor, used: Tensor, penalties: Tensor) -> None:
    """Divide positive and multiply negative logits of used tokens by the penalty of their row."""
    values = logits.index_select(0, rows)
    changed = torch.where(values > 0, values / penalties, values * penalties)
    changed = torch.where(_unpack(used, values.shape[1]), changed, values)
    logits.index_copy_(0, rows, changed)


def _pack(sets: Sequence[Bits | None], width: int) -> Bits:
    """Return bits [sets, width]."""
    packed = np.zeros((len(sets), width), np.uint8)
    for row, bits in zip(packed, sets, strict=True):
        if bits is not None:
            row[: len(bits)] = bits[:width]
    return packed


def _unpack(bits: Tensor, vocab: int) -> Tensor:
    """Return bool [n, vocab] of bits uint8 [n, ceil(vocab / 8)]."""
    shifts = torch.arange(8, dtype=torch.uint8, device=bits.device)
    return (bits[:, :, None] >> shifts).bitwise_and(1).bool().flatten(1)[:, :vocab]
