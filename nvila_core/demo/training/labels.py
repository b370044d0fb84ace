"""Labels for every visual token of a tile, and the auxiliary losses that use them."""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from nvila_core.demo.sampling import TILE_GRID
from nvila_core.demo.world import COLOURS, DIRECTIONS, KINDS, STILL, Scene

THINGS = len(KINDS) * len(COLOURS)
DIGITS = 10
MOTIONS = (*DIRECTIONS, STILL)
_OPPOSITE = {"left": "right", "right": "left", "away": "closer", "closer": "away", STILL: STILL}
CELLS = 2
"""Visual tokens along each side of a tile."""


@dataclass
class TileLabels:
    """Labels of a number of tiles.

    Attributes:
        whole: bool [tiles]: whether the tile is a whole frame; other tiles are cut from a frame.
        things: float32 [tiles, cells, THINGS]: 1 where the cell has the centre of the object.
        offsets: float32 [tiles, cells, THINGS, 2]: the centre relative to the cell's, in cells.
        sign: int64 [tiles, cells]: the number on the sign, or -1.
        motion: int64 [tiles, cells, THINGS]: index in MOTIONS since the previous frame, or -1.
    """

    whole: NDArray[np.bool_]
    things: NDArray[np.float32]
    offsets: NDArray[np.float32]
    sign: NDArray[np.int64]
    motion: NDArray[np.int64]

    def take(self, tiles: list[int]) -> "TileLabels":
        """Return the labels of some of the tiles."""
        return TileLabels(
            self.whole[tiles],
            self.things[tiles],
            self.offsets[tiles],
            self.sign[tiles],
            self.motion[tiles],
        )


def empty_labels(tiles: int) -> TileLabels:
    """Return labels of `tiles` tiles without any object."""
    cells = CELLS * CELLS
    return TileLabels(
        np.zeros(tiles, np.bool_),
        np.zeros((tiles, cells, THINGS), np.float32),
        np.zeros((tiles, cells, THINGS, 2), np.float32),
        np.full((tiles, cells), -1, np.int64),
        np.full((tiles, cells, THINGS), -1, np.int64),
    )


def label_whole(
    labels: TileLabels, index: int, scene: Scene, t: float, before: float | None = None
) -> None:
    """Label tile `index`, the whole frame at time `t`; the previous frame is at time `before`."""
    labels.whole[index] = True
    for actor in scene.visible(t):
        x, y = (min(max(place, 0.0), 0.999) * CELLS for place in actor.position(t))
        cell = int(y) * CELLS + int(x)
        thing = KINDS.index(actor.kind) * len(COLOURS) + COLOURS.index(actor.colour)
        labels.things[index, cell, thing] = 1
        labels.offsets[index, cell, thing] = x - int(x) - 0.5, y - int(y) - 0.5
        if before is not None and actor.visible_share(before) > 0.3:
            labels.motion[index, cell, thing] = MOTIONS.index(actor.motion(before, t))


def sign_place(scene: Scene) -> tuple[int, int]:
    """Return the tile of the grid that has the sign, and the cell of that tile, row by row."""
    columns, rows = TILE_GRID
    column, row = int(scene.sign.x * columns * CELLS), int(scene.sign.y * rows * CELLS)
    return row // CELLS * columns + column // CELLS, row % CELLS * CELLS + column % CELLS


def label_cut(labels: TileLabels, index: int, scene: Scene, tile: int) -> None:
    """Label tile `index`, which is number `tile` of the frame's grid."""
    sign_tile, cell = sign_place(scene)
    if tile == sign_tile:
        labels.sign[index, cell] = scene.sign.number


def auxiliary_loss(
    predicted: tuple[Tensor, Tensor, Tensor], labels: dict[str, Tensor]
) -> tuple[Tensor, dict[str, float]]:
    """Return the loss of `AuxiliaryHead`'s output, and its parts for the log."""
    things, offsets, sign = predicted
    whole = labels["whole"]
    zero = things.sum() * 0
    presence = place = seen = digits = zero
    if whole.any():
        target = labels["things"][whole]
        logits = things[whole]
        presence = (
            F.binary_cross_entropy_with_logits(logits, target, reduction="sum") / whole.sum() / 4
        )
        kinds = logits.unflatten(-1, (len(KINDS), len(COLOURS)))
        truth = target.unflatten(-1, (len(KINDS), len(COLOURS)))
        # Kind and colour are easier to learn separately, before their combination.
        for dim in (-1, -2):
            pooled = torch.logsumexp(kinds, dim)
            presence = (
                presence
                + F.binary_cross_entropy_with_logits(pooled, truth.amax(dim), reduction="sum")
                / whole.sum()
                / 8
            )
        there = target > 0
        if there.any():
            place = (offsets[whole][there] - labels["offsets"][whole][there]).abs().mean()
    cut = ~whole
    if cut.any():
        number = labels["sign"][cut]
        there = number >= 0
        seen = F.binary_cross_entropy_with_logits(sign[cut][..., 0], there.float())
        if there.any():
            logits = sign[cut][there][:, 1:].unflatten(-1, (2, DIGITS))
            digits = F.cross_entropy(logits[:, 0], number[there] // 10)
            digits = digits + F.cross_entropy(logits[:, 1], number[there] % 10)
    loss = presence + 2 * place + seen + 0.5 * digits
    parts = {"things": presence, "place": place, "sign": seen, "digits": digits}
    return loss, {name: float(value.detach()) for name, value in parts.items()}


def reversed_in_time(things: Tensor, motion: Tensor) -> Tensor:
    """Return the motion labels [clips, frames, cells, THINGS] of the clips played backwards."""
    opposite = torch.tensor(
        [MOTIONS.index(_OPPOSITE[name]) for name in MOTIONS], device=motion.device
    )
    # The label of a step belongs to the frame after it: played backwards, to the other frame.
    steps = motion.amax(2).flip(1)[:, :-1]
    back = torch.full_like(motion.amax(2), -1)
    back[:, 1:] = torch.where(steps >= 0, opposite[steps.clamp(min=0)], -1)
    return torch.where(things.flip(1) > 0, back[:, :, None], -1)


def motion_loss(predicted: Tensor, motion: Tensor) -> Tensor:
    """Return the loss of `MotionHead`'s output [tiles, cells, THINGS, motions] where labelled."""
    there = motion >= 0
    if not there.any():
        return predicted.sum() * 0
    return F.cross_entropy(predicted[there], motion[there])
