"""Feed endless training batches, rendered by worker processes."""

import os
import random
from collections.abc import Iterator
from functools import partial
from multiprocessing.sharedctypes import Synchronized
from pathlib import Path
from typing import Any

import cv2
import torch
from torch import Tensor
from torch.utils.data import IterableDataset, get_worker_info
from transformers import AutoTokenizer

from nvila_core.demo.training.batches import (
    ChatEncoder,
    Group,
    collate,
    stack_labels,
    stack_tiles,
)
from nvila_core.demo.training.config import ModelShape, TrainingConfig
from nvila_core.demo.training.visuals import (
    FLAT_FORM,
    FULL_FORM,
    MIXED_FORMS,
    STILL_FORM,
    Form,
    Pool,
    clip_form,
    render_pair,
    render_visual,
)

_CLIP_FRAMES, _CLIP_WEIGHTS = (2, 3, 4, 5, 6), (5, 6, 78, 6, 5)


class TileFeed(IterableDataset[dict[str, Tensor]]):
    """Batches of labelled tiles: half of the scenes as whole frames, half as pairs of tiles."""

    def __init__(self, config: TrainingConfig, progress: "Synchronized[float]") -> None:
        self.config, self.progress = config, progress

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        rng = _start_worker(self.config.seed, "see")
        pools = [Pool(partial(render_visual, FLAT_FORM), 15000, 0.3), Pool(render_pair, 15000, 0.3)]
        whole, pairs = self.config.see_tiles // 2, self.config.see_tiles // 2
        while True:
            max_actors = min(4, 1 + int(self.progress.value * 16))
            visuals = [pools[0].draw(rng, max_actors) for _ in range(whole)]
            visuals += [pools[1].draw(rng, max_actors) for _ in range(pairs)]
            yield {"tiles": stack_tiles(visuals), **stack_labels(visuals)}


class ClipFeed(IterableDataset[Group]):
    """Batches of clips without questions."""

    def __init__(self, tokenizer: Path, shape: ModelShape, config: TrainingConfig) -> None:
        self.tokenizer, self.shape, self.config = tokenizer, shape, config

    def __iter__(self) -> Iterator[Group]:
        rng = _start_worker(self.config.seed, "watch")
        tokenizer: Any = AutoTokenizer.from_pretrained(self.tokenizer)
        encoder = ChatEncoder(tokenizer, self.shape.tokens_per_tile)
        pool = Pool(partial(render_visual, clip_form(4)), 12000, 0.25)
        while True:
            visuals = [pool.draw(rng, 4) for _ in range(self.config.watch_clips)]
            yield collate(visuals, encoder, 0, rng)


class AnswerFeed(IterableDataset[list[Group]]):
    """Batches of a few groups each; scenes get more objects as `progress` goes from 0 to 1."""

    def __init__(
        self,
        tokenizer: Path,
        shape: ModelShape,
        config: TrainingConfig,
        progress: "Synchronized[float]",
    ) -> None:
        self.tokenizer, self.shape, self.config, self.progress = tokenizer, shape, config, progress

    def __iter__(self) -> Iterator[list[Group]]:
        rng = _start_worker(self.config.seed, "answer")
        tokenizer: Any = AutoTokenizer.from_pretrained(self.tokenizer)
        encoder = ChatEncoder(tokenizer, self.shape.tokens_per_tile)
        pools: dict[Form, Pool] = {}
        while True:
            max_actors = min(4, 2 + int(self.progress.value * 20))
            yield [
                self._group(form, count, pools, encoder, max_actors, rng)
                for form, count in self._recipe(rng)
            ]

    def _recipe(self, rng: random.Random) -> list[tuple[Form, int]]:
        config = self.config
        frames = rng.choices(_CLIP_FRAMES, _CLIP_WEIGHTS)[0]
        scale = config.batch_scale
        recipe = [
            (clip_form(frames), scale * config.clips * 4 // frames),
            (STILL_FORM, scale * config.stills),
        ]
        # Plans mostly tile the newest frame of a clip, because the others show the same sign.
        form = rng.choices((FLAT_FORM, FULL_FORM, *MIXED_FORMS), (6, 8, 6, 4, 4, 40))[0]
        if rng.random() < 0.9:
            recipe.append((form, scale * {FLAT_FORM: 6, FULL_FORM: 2}.get(form, 4)))
        return recipe

    def _group(
        self,
        form: Form,
        count: int,
        pools: dict[Form, Pool],
        encoder: ChatEncoder,
        max_actors: int,
        rng: random.Random,
    ) -> Group:
        if form not in pools:
            size = 8000 if form == clip_form(4) else 40000 // form.tiles
            pools[form] = Pool(partial(render_visual, form), size, self.config.fresh)
        visuals = [pools[form].draw(rng, max_actors) for _ in range(count)]
        return collate(visuals, encoder, self.config.questions, rng)


def _start_worker(seed: int, stage: str) -> random.Random:
    cv2.setNumThreads(1)
    os.nice(3)
    info = get_worker_info()
    # The loader's seed differs between runs, so that a resumed run gets new scenes.
    return random.Random(f"{seed}-{stage}-{info.id if info else 0}-{torch.initial_seed()}")
