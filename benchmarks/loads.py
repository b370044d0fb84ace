"""Models and requests for the engine's benchmarks: random weights, pictures that never repeat."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from nvila_core import NVILA, Video
from nvila_core.checkpoint.random_checkpoint import SHAPES, SIGLIP, Shape, write_checkpoint

SMALL = replace(
    SIGLIP,
    image=112,
    vision_hidden=256,
    vision_layers=7,
    vision_heads=4,
    vision_inner=956,
    hidden=768,
    layers=7,
    heads=6,
    kv_heads=1,
    inner=4480,
    vocab=8192,
)
"""96 M parameters, 92 % of them in the language model, as in NVILA-Lite-8B, and widths in its
proportions. Tiles of 112 pixels, 9 tokens each, so that reading a clip is as large a part of an
answer on a CPU as it is with tiles of 448 pixels on a GPU: about a tenth."""

SIZES = {**SHAPES, "small": SMALL}
QUESTION = "What now?"
"""The tokenizer of a random checkpoint knows bytes: this is as many tokens as a real question."""


def make_model(folder: Path, shape: Shape, device: str = "cpu", dtype: str = "float32") -> NVILA:
    """A model of random weights, the same ones every time.

    Rows of the embedding table that the tokenizer does not know are zeros, so that nobody ever
    draws them.
    """
    if not folder.exists():
        write_checkpoint(folder, shape, shard_bytes=2**30)
    model = NVILA.from_pretrained(folder, device, dtype)
    known = len(model.tokenizer)
    head = model.language.lm_head
    for table in (model.language.table, *([] if head is None else [head.weight])):
        table.data[known:] = 0
    return model


class Camera:
    """Clips of noise: no tile is seen twice, unless it is asked for."""

    def __init__(self, shape: Shape, seed: int = 0) -> None:
        self.side = shape.image
        self._random = np.random.default_rng(seed)

    def frame(self, columns: int = 1, rows: int = 1) -> Image.Image:
        """A picture that fills `columns` x `rows` tiles."""
        size = (self.side * rows, self.side * columns, 3)
        return Image.fromarray(self._random.integers(0, 256, size, dtype=np.uint8))

    def clip(self, frames: int = 8, question: str = QUESTION) -> list[Any]:
        """Parts of a request about `frames` new frames of one tile each."""
        return [Video([self.frame() for _ in range(frames)]), question]

    def clips(self, count: int, frames: int = 8) -> list[list[Any]]:
        """Parts of `count` requests, each about frames of its own."""
        return [self.clip(frames) for _ in range(count)]

    def endless(self, frames: int = 8) -> Iterator[list[Any]]:
        """New clips for ever."""
        while True:
            yield self.clip(frames)
