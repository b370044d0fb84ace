"""Render the visual inputs of training: clips, tiled stills, and clips with tiled frames."""

import random
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from nvila_core.demo.render import FRAME_SIZE, Frame, render_clip
from nvila_core.demo.sampling import FIRST_EVALUATION_SEED, sample_scene
from nvila_core.demo.training.labels import (
    TileLabels,
    empty_labels,
    label_cut,
    label_whole,
    sign_place,
)
from nvila_core.demo.training.tiles import SMALL_SIZE, TILED_SIZE, cut_frame, degrade, squash
from nvila_core.demo.world import Observation, observe


@dataclass(frozen=True)
class Form:
    """How frames become tiles.

    The tiles of the tiled frames come first, each followed by a newline. Then come all frames as
    one tile each, which is followed by a newline if `lines` is set.

    Attributes:
        frames: number of frames.
        tiled: indices of the tiled frames.
        lines: a newline follows every whole frame.
    """

    frames: int
    tiled: frozenset[int] = frozenset()
    lines: bool = False

    @property
    def tiles(self) -> int:
        """Number of tiles."""
        return self.frames + 12 * len(self.tiled)

    @property
    def name(self) -> str:
        """ "clip", "still" (tiled), "mixed" (a clip with tiled frames) or "flat" (one tile)."""
        if self.tiled:
            return "still" if self.frames == 1 else "mixed"
        return "clip" if self.frames > 1 else "flat"

    @property
    def media(self) -> str:
        """Media part of the prompt's text."""
        whole = "<image>\n" if self.lines else "<image>"
        return "<image>\n" * 12 * len(self.tiled) + whole * self.frames


STILL_FORM = Form(1, tiled=frozenset({0}), lines=True)
FLAT_FORM = Form(1, lines=True)
MIXED_FORMS = tuple(Form(4, tiled=frozenset({frame})) for frame in range(4))
"""The forms that an adaptive plan makes: one frame of a clip with all of its tiles."""
FULL_FORM = Form(4, tiled=frozenset(range(4)))
"""Every frame of a clip with all of its tiles."""


def clip_form(frames: int) -> Form:
    """Return the form of a video whose frames are one tile each."""
    return Form(frames)


@dataclass(frozen=True)
class Visual:
    """Rendered tiles with their labels.

    Attributes:
        form: how the tiles were cut.
        tiles: uint8 [n, S, S, 3] in the order of the prompt.
        labels: labels of the tiles.
        learn: bool [n]: tiles that get gradients: whole frames, and the tile with the sign.
        observation: ground truth about the frames.
        key: random number that identifies the visual.
    """

    form: Form
    tiles: NDArray[np.uint8]
    labels: TileLabels
    learn: NDArray[np.bool_]
    observation: Observation
    key: int


def render_visual(form: Form, rng: random.Random, max_actors: int) -> Visual:
    """Render a random visual with at most `max_actors` objects, from a training seed."""
    scene_frames = max(form.frames, rng.choice((1, 4)))
    scene_times = tuple(float(t) for t in range(scene_frames))
    scene = sample_scene(rng.randrange(FIRST_EVALUATION_SEED), scene_times, max_actors)
    times = scene_times[-form.frames :]
    small, large = (SMALL_SIZE, TILED_SIZE) if not form.tiled else (TILED_SIZE, FRAME_SIZE)
    frames = render_clip(scene, times, large if rng.random() < 0.2 else small)
    if rng.random() < 0.35:
        frames = [degrade(frame, rng) for frame in frames]
    labels, learn = empty_labels(form.tiles), np.zeros(form.tiles, np.bool_)
    tiles: list[Frame] = []
    for index in sorted(form.tiled):
        for number, tile in enumerate(cut_frame(frames[index])):
            label_cut(labels, len(tiles), scene, number)
            learn[len(tiles)] = number == sign_place(scene)[0]
            tiles.append(tile)
    for index, (frame, t) in enumerate(zip(frames, times, strict=True)):
        label_whole(labels, len(tiles), scene, t, times[index - 1] if index else None)
        learn[len(tiles)] = True
        tiles.append(squash(frame))
    key = rng.getrandbits(62)
    return Visual(form, np.stack(tiles), labels, learn, observe(scene, times), key)


def render_pair(rng: random.Random, max_actors: int) -> Visual:
    """Render two tiles of a tiled still: the thumbnail and one other, often that with the sign."""
    visual = render_visual(STILL_FORM, rng, max_actors)
    with_sign = int(np.argmax(visual.learn))
    kept = [with_sign if rng.random() < 0.8 else rng.randrange(12), STILL_FORM.tiles - 1]
    return replace(
        visual,
        form=FLAT_FORM,
        tiles=visual.tiles[kept],
        labels=visual.labels.take(kept),
        learn=visual.learn[kept],
    )


class Pool:
    """Visuals of one form that are reused with other questions, because rendering is slow.

    Args:
        render: renders a visual with at most a number of objects.
        size: number of visuals to keep.
        fresh: share of draws that render a new visual.
    """

    def __init__(
        self, render: Callable[[random.Random, int], Visual], size: int, fresh: float
    ) -> None:
        self.render, self.size, self.fresh = render, size, fresh
        self._kept: list[Visual] = []

    def draw(self, rng: random.Random, max_actors: int) -> Visual:
        """Return a new or a kept visual."""
        if len(self._kept) >= 100 and rng.random() >= self.fresh:
            return rng.choice(self._kept)
        visual = self.render(rng, max_actors)
        if len(self._kept) < self.size:
            self._kept.append(visual)
        else:
            self._kept[rng.randrange(self.size)] = visual
        return visual
