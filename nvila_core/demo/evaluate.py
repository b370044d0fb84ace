"""Exact-match accuracy of a checkpoint on held-out scenes, through the public API.

Frames are rendered at full size and go the way of any user's frames. The sign is asked twice, of
the tiled picture and of the picture squashed into one tile, where it is too small to be read.
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
"""What is looked at, and the kind of question."""

_SCENES_A_TEST = 10**6


@dataclass(frozen=True)
class Score:
    """How many of one kind of questions were answered exactly right."""

    look: str
    kind: str
    right: int
    asked: int

    @property
    def accuracy(self) -> float:
        """Share of right answers, 0 to 1."""
        return self.right / self.asked


def evaluate(
    checkpoint: Path,
    questions: int = 100,
    seed: int = 0,
    device: str = "cpu",
    show: Callable[[str], None] | None = None,
) -> list[Score]:
    """Ask `questions` questions of each of `TESTS`; `show` gets a line for each wrong answer."""
    model = NVILA.from_pretrained(checkpoint, device=device, dtype="float32")
    size = model.config.tile_side
    scores = []
    for number, (look, kind) in enumerate(TESTS):
        first = FIRST_EVALUATION_SEED + (seed * len(TESTS) + number) * _SCENES_A_TEST
        right = 0
        for parts, question in held_out(look, kind, questions, first, size):
            answer = model.generate(parts, SamplingParams(max_tokens=64, temperature=0.0)).text
            right += answer == question.answer
            if show and answer != question.answer:
                show(f"{look} {kind}: {question.text} -> {answer!r}, not {question.answer!r}")
        scores.append(Score(look, kind, right, questions))
    return scores


def held_out(
    look: str, kind: str, count: int, first_seed: int, tile: int
) -> Iterator[tuple[list[Any], QuestionAnswer]]:
    """`count` prompts with their questions, of scenes from `first_seed` on."""
    assert first_seed >= FIRST_EVALUATION_SEED
    times = [float(t) for t in range(CLIP_FRAMES if look == "clip" else 1)]
    seed = first_seed
    while count:
        scene = sample_scene(seed, times)
        question = make_question(observe(scene, times), kind, random.Random(seed))
        seed += 1
        if question is None:
            continue
        frames = render_clip(scene, times)
        media: Any = Video(frames)
        if look != "clip":
            media = Image.fromarray(frames[0])
        if look == "still in one tile":
            media = media.resize((tile, tile), Image.Resampling.BICUBIC)
        yield [media, question.text], question
        count -= 1


def format_table(scores: Sequence[Score]) -> str:
    """The scores as a text table."""
    lines = [f"{'look':<18} {'question':<10} {'right':>5} {'of':>5} {'accuracy':>9}"]
    for score in scores:
        counts = f"{score.right:>5} {score.asked:>5} {score.accuracy:>9.1%}"
        lines.append(f"{score.look:<18} {score.kind:<10} {counts}")
    return "\n".join(lines)
