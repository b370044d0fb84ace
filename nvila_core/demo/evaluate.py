"""Measure the exact-match accuracy of a checkpoint on held-out scenes, through the public API.

Frames are rendered at full size and processed like those of a user. The sign is asked about twice:
with the tiled image, and with the image resized to one tile, where it is too small to be read.
"""

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from nvila_core import NVILA, SamplingParams, Video
from nvila_core.demo.questions import QUESTION_KINDS, QuestionAnswer, make_question
from nvila_core.demo.render import render_clip
from nvila_core.demo.sampling import FIRST_EVALUATION_SEED, sample_scene
from nvila_core.demo.world import observe

CLIP_FRAMES = 4
CLIP_KINDS = tuple(kind for kind in QUESTION_KINDS if kind != "sign")
STILL_KINDS = ("exists", "count", "colour", "caption", "sign")
TESTS = (
    *(("clip", kind) for kind in CLIP_KINDS),
    *(("tiled still", kind) for kind in STILL_KINDS),
    ("still in one tile", "sign"),
)
"""Form of the input, and kind of question."""

_SEEDS_PER_TEST = 10**6


@dataclass(frozen=True)
class Score:
    """Number of questions of one test that were answered exactly right."""

    form: str
    kind: str
    right: int
    asked: int

    @property
    def accuracy(self) -> float:
        """Share of correct answers, 0 to 1."""
        return self.right / self.asked


def evaluate(
    checkpoint: Path,
    questions: int = 100,
    seed: int = 0,
    device: str = "cpu",
    show: Callable[[str], None] | None = None,
) -> list[Score]:
    """Run all `TESTS` on a checkpoint.

    Args:
        checkpoint: folder of the checkpoint.
        questions: number of questions of each test.
        seed: seed of the held-out scenes.
        device: "cpu", "cuda", or "auto".
        show: receives one line for each wrong answer.
    """
    model = NVILA.from_pretrained(checkpoint, device=device, dtype="float32")
    size = model.config.processor.size
    scores = []
    for number, (form, kind) in enumerate(TESTS):
        first = FIRST_EVALUATION_SEED + (seed * len(TESTS) + number) * _SEEDS_PER_TEST
        right = 0
        for parts, question in held_out(form, kind, questions, first, size):
            answer = model.generate(parts, SamplingParams(max_tokens=64, temperature=0.0)).text
            right += answer == question.answer
            if show and answer != question.answer:
                show(f"{form} {kind}: {question.text} -> {answer!r}, not {question.answer!r}")
        scores.append(Score(form, kind, right, questions))
    return scores


def held_out(
    form: str, kind: str, count: int, first_seed: int, tile: int
) -> Iterator[tuple[list[Any], QuestionAnswer]]:
    """Yield `count` prompts and their questions, about scenes from `first_seed` on.

    Args:
        form: form of the input, see `TESTS`.
        kind: kind of question.
        count: number of prompts.
        first_seed: at least `FIRST_EVALUATION_SEED`.
        tile: side in pixels of the image for "still in one tile".
    """
    assert first_seed >= FIRST_EVALUATION_SEED
    times = [float(t) for t in range(CLIP_FRAMES if form == "clip" else 1)]
    seed = first_seed
    while count:
        scene = sample_scene(seed, times)
        question = make_question(observe(scene, times), kind, random.Random(seed))
        seed += 1
        if question is None:
            continue
        frames = render_clip(scene, times)
        media: Any = Video(frames)
        if form != "clip":
            media = Image.fromarray(frames[0])
        if form == "still in one tile":
            media = media.resize((tile, tile), Image.Resampling.BICUBIC)
        yield [media, question.text], question
        count -= 1


def format_table(scores: Sequence[Score]) -> str:
    """Format the scores as a text table."""
    lines = [f"{'form':<18} {'question':<10} {'right':>5} {'of':>5} {'accuracy':>9}"]
    for score in scores:
        counts = f"{score.right:>5} {score.asked:>5} {score.accuracy:>9.1%}"
        lines.append(f"{score.form:<18} {score.kind:<10} {counts}")
    return "\n".join(lines)
