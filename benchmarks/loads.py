"""Make models and requests for the engine's benchmarks: random weights, new pictures."""

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
"""96 M parameters, 92 % of them in the language model, and widths in the proportions of
NVILA-Lite-8B. Tiles have 112 pixels and 9 tokens, so that prefill takes about a tenth of an answer
on a CPU, as it does with tiles of 448 pixels on a GPU."""

SIZES = {**SHAPES, "small": SMALL}
QUESTION = "What now?"
"""Short, because the tokenizer of a random checkpoint makes a token of each byte."""


def make_model(folder: Path, shape: Shape, device: str = "cpu", dtype: str = "float32") -> NVILA:
    """Return a model with random weights, the same at every call.

    Rows of the embedding table beyond the tokenizer's are zeros, so that they are never drawn.
    """
    if not folder.exists():
        write_checkpoint(folder, shape, shard_bytes=2**30)
    model = NVILA.from_pretrained(folder, device, dtype)
    known = len(model.tokenizer)
    head = model.language.lm_head
    for table in (model.language.embedding_table, *([] if head is None else [head.weight])):
        table.data[known:] = 0
    return model


class Camera:
    """Makes clips of noise, so that no tile occurs twice."""

    def __init__(self, shape: Shape, seed: int = 0) -> None:
        self.side = shape.image
        self._random = np.random.default_rng(seed)

    def frame(self, columns: int = 1, rows: int = 1) -> Image.Image:
        """Return a new picture that fills `columns` x `rows` tiles."""
        size = (self.side * rows, self.side * columns, 3)
        return Image.fromarray(self._random.integers(0, 256, size, dtype=np.uint8))

    def clip(self, frames: int = 8, question: str = QUESTION) -> list[Any]:
        """Return the parts of a request about `frames` new frames of one tile each."""
        return [Video([self.frame() for _ in range(frames)]), question]

    def clips(self, count: int, frames: int = 8) -> list[list[Any]]:
        """Return the parts of `count` requests, each about its own new frames."""
        return [self.clip(frames) for _ in range(count)]

    def endless(self, frames: int = 8) -> Iterator[list[Any]]:
        """Yield new clips without end."""
        while True:
            yield self.clip(frames)
