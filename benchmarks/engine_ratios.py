"""Measure four typical workloads, beside one request at a time; see engine.py."""

import random
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loads import Camera, make_model
from report import percentiles
from rival import Rival

from nvila_core import Engine, SamplingParams, Video
from nvila_core.checkpoint.random_checkpoint import Shape
from nvila_core.engine.handle import Handle


@dataclass
class Outcome:
    """Seconds that each side took."""

    alone: float
    engine: float

    @property
    def ratio(self) -> float:
        """How many times as long the rival takes."""
        return self.alone / self.engine


class Bench:
    """The engine and the rival, with the same weights.

    Args:
        folder: where the checkpoint is written.
        shape: sizes of the model, see `loads`.
        max_num_batched_tokens: positions in a step; default: the engine's own.
        answer: tokens in a caption.
        sample: requests at most that the rival is timed on; its time is scaled up.
        clock: returns seconds; `time.process_time` leaves out other programs' share of the machine.
    """

    def __init__(
        self,
        folder: Path,
        shape: Shape,
        dtype: str,
        max_num_batched_tokens: int | None = None,
        answer: int = 100,
        sample: int = 8,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.clock, self.random = clock, random.Random(0)
        self.rival = Rival(make_model(folder, shape, dtype=dtype))
        self.model = make_model(folder, shape, dtype=dtype)
        self.camera = Camera(shape)
        self.answer, self.sample = answer, sample
        self.max_num_batched_tokens = max_num_batched_tokens
        self.equal = self.compared = 0
        self.idle: list[float] = []
        self.busy: list[float] = []
        self.together([self.camera.clip(1)], 2)

    def engine(self) -> Engine:
        """Return a new engine with empty caches."""
        return Engine(self.model, 64, 32768, max_num_batched_tokens=self.max_num_batched_tokens)

    def together(self, requests: Sequence[list[Any]], tokens: int, **options: Any) -> Outcome:
        """Time the rival on one request after another, and an engine on all at once."""
        some = requests[: self.sample]
        began = self.clock()
        expected = [self.rival.answer(parts, tokens, **options) for parts in some]
        alone = (self.clock() - began) * len(requests) / len(some)
        engine = self.engine()
        began = self.clock()
        handles = [engine.submit(parts, asked(tokens), **options) for parts in requests]
        while engine.step():
            pass
        spent = self.clock() - began
        answers = [handle.result().token_ids for handle in handles]
        self.compared += len(some)
        self.equal += sum(a == b for a, b in zip(answers, expected, strict=False))
        return Outcome(alone, spent)

    def different_clips(self) -> Outcome:
        """Measure (a): captions of 8 different clips."""
        return self.together(self.camera.clips(8), self.answer)

    def one_clip(self) -> Outcome:
        """Measure (b): 8 questions on one clip of 64 frames, each answer a fifth of a caption."""
        video = self.camera.clip(64)[0]
        asks = [[video, f"{number} what?"] for number in range(8)]
        return self.together(asks, max(1, self.answer // 5), num_video_frames=64)

    def still_camera(self) -> Outcome:
        """Measure (c): captions of 60 windows of a camera that sees one still picture."""
        video = Video([self.camera.frame()] * 8)
        return self.together([[video, "What now?"]] * 60, self.answer)

    def first_token(self, questions: int = 6) -> Outcome:
        """Measure (d): p95 of the time to the first token of a question on a new clip, while 8
        clips are captioned, compared with an idle engine instead of the rival.

        When a question arrives, the captions are at different stages, and a new one replaces each
        that ends. The question arrives at a random moment of a step and waits for its rest.
        """
        engine = self.engine()
        for _ in range(questions):
            self.idle.append(self._ask(engine))
        captions: list[Handle] = []
        for _ in range(questions):
            for _ in range(self.random.randint(1, 60)):
                captions = [handle for handle in captions if not handle.done]
                while len(captions) < 8:
                    captions.append(engine.submit(self.camera.clip(), asked(self.answer)))
                began = self.clock()
                engine.step()
                last = self.clock() - began
            self.busy.append(self.random.random() * last + self._ask(engine))
        return Outcome(percentiles(self.busy, 95)[0], percentiles(self.idle, 95)[0])

    def _ask(self, engine: Engine) -> float:
        parts = self.camera.clip()
        began = self.clock()
        handle = engine.submit(parts, asked(1), priority=1)
        while not handle.done:
            engine.step()
        return self.clock() - began


def asked(tokens: int) -> SamplingParams:
    """Return parameters for a greedy answer of exactly `tokens` tokens."""
    return SamplingParams(max_tokens=tokens, ignore_eos=True)


SCENARIOS = {
    "a": ("8 different clips at once", Bench.different_clips, 3.0),
    "b": ("8 questions on one clip", Bench.one_clip, 6.0),
    "c": ("60 windows of a still camera", Bench.still_camera, 5.0),
    "d": ("first token among 8 captions", Bench.first_token, 1.5),
}


def measure(bench: Bench, wanted: Sequence[str], rounds: int) -> dict[str, Any]:
    """Return the median round of each scenario: seconds of both sides and their ratio."""
    found: dict[str, list[Outcome]] = {key: [] for key in wanted}
    for _ in range(rounds):
        for key in wanted:
            found[key].append(SCENARIOS[key][1](bench))
            print(f"({key}) {found[key][-1].ratio:.2f}", file=sys.stderr, flush=True)
    results = {}
    for key, outcomes in found.items():
        if key == "d":  # its percentiles cover all rounds
            outcomes = outcomes[-1:]
        middle = sorted(outcomes, key=lambda o: o.ratio)[len(outcomes) // 2]
        results[key] = {
            "what": SCENARIOS[key][0],
            "alone_s": middle.alone,
            "engine_s": middle.engine,
            "ratio": middle.ratio,
            "ratios": [outcome.ratio for outcome in outcomes],
            "aim": SCENARIOS[key][2],
        }
    return results
