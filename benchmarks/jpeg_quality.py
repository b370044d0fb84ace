"""Count the answers that `jpeg_quality` changes, and the bytes of a stored frame.

    .venv/bin/python benchmarks/jpeg_quality.py [--questions 25] [--size 640x480] [--json]

The demo model answers its 275 held-out questions (11 kinds, 25 of each) about frames that went the
way of the service: measured, stored in a frame store as a JPEG, planned by the default policy,
loaded, opened as large as the plan needs, and asked about. They are compared with the answers about
the same frames without a JPEG in between. `--size` is that of the frames, such as 1920x1080.
Nothing here depends on the speed of the machine.
"""

import argparse
import random
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from statistics import mean

import numpy as np
import torch
from numpy.typing import NDArray
from report import publish

from nvila_core import NVILA, Measures, Meter, SamplingParams
from nvila_core.demo import CHECKPOINT
from nvila_core.demo.evaluate import CLIP_FRAMES, TESTS
from nvila_core.demo.questions import QuestionAnswer, make_question
from nvila_core.demo.render import render_clip
from nvila_core.demo.sampling import FIRST_EVALUATION_SEED, sample_scene
from nvila_core.demo.world import observe
from streamer.frames.jpeg import from_jpeg, to_jpeg
from streamer.frames.store import FrameStore, Retention
from streamer.local.redis_server import EmbeddedServer
from streamer.redis_client.connections import Connections
from streamer.settings import Settings
from workers.gpu.engine_backend import parts_of

QUALITIES = (None, 95, 90, 80, 70)
"""`jpeg_quality`; None: no JPEG at all."""

KINDS = tuple((form, kind) for form, kind in TESTS if form != "still in one tile")
"""The demo's tests, without the one that has no right answers."""

_SEEDS_PER_KIND = 10**6

_Picture = NDArray[np.uint8]


def held_out(number: int, count: int) -> list[tuple[int, list[float], QuestionAnswer]]:
    """Return seed, times and question of `count` scenes for the kind `number` of `KINDS`."""
    form, kind = KINDS[number]
    times = [float(t) for t in range(CLIP_FRAMES if form == "clip" else 1)]
    seed = FIRST_EVALUATION_SEED + number * _SEEDS_PER_KIND
    found: list[tuple[int, list[float], QuestionAnswer]] = []
    while len(found) < count:
        question = make_question(
            observe(sample_scene(seed, times), times), kind, random.Random(seed)
        )
        if question is not None:
            found.append((seed, times, question))
        seed += 1
    return found


class Service:
    """The way of a frame from the camera to the model.

    Attributes:
        bytes: of each stored frame, by quality.
    """

    def __init__(self, model: NVILA, store: FrameStore, policy: str) -> None:
        self._model, self._store, self._policy = model, store, policy
        self.bytes: dict[int | None, list[int]] = defaultdict(list)

    def ask(
        self, frames: list[_Picture], clip: list[Measures], question: str, quality: int | None
    ) -> str:
        """Return the answer about frames, RGB uint8 [height, width, 3], and their measures, stored
        with a quality."""
        refs = []
        for second, (frame, measures) in enumerate(zip(frames, clip, strict=True)):
            jpeg = b"" if quality is None else to_jpeg(frame[..., ::-1], quality)
            self.bytes[quality].append(len(jpeg))
            now = time.time() + second
            refs.append(self._store.put("str_1", jpeg, measures, time=now, pts=float(second)))
        plan = self._model.plan([ref.measures for ref in refs], self._policy)
        if quality is not None:
            side = self._model.config.processor.size
            frames = [
                from_jpeg(
                    jpeg, ref.width, ref.height, (side * choice.grid[0], side * choice.grid[1])
                )
                for jpeg, ref, choice in zip(self._store.load(refs), refs, plan.frames, strict=True)
            ]
        self._store.discard("str_1")
        prompt = self._model.prepare(
            parts_of(frames, question), num_video_frames=len(frames), plan=plan
        )
        return self._model.generate(prompt, SamplingParams(max_tokens=64, temperature=0.0)).text


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--questions", type=int, default=25, help="questions of each kind")
    parser.add_argument("--size", default="640x480", help="width and height of the frames")
    parser.add_argument("--json", action="store_true", help="print JSON")
    given = parser.parse_args()
    count, size = given.questions, tuple(map(int, given.size.split("x")))
    torch.set_num_threads(1)  # threads wait for each other on so small a model
    model = NVILA.from_pretrained(CHECKPOINT, device="cpu", dtype="float32")
    right: dict[int | None, int] = dict.fromkeys(QUALITIES, 0)
    same: dict[int | None, int] = dict.fromkeys(QUALITIES, 0)
    with (
        tempfile.TemporaryDirectory() as folder,
        EmbeddedServer(Path(folder), persistent=False, max_memory=256 << 20) as server,
        Connections(settings := Settings(redis_url=server.url)) as connections,
    ):
        store = FrameStore(connections.frames, Retention.of(settings))
        service = Service(model, store, settings.policy)
        for number in range(len(KINDS)):
            for seed, times, question in held_out(number, count):
                frames = render_clip(sample_scene(seed, times), times, (size[0], size[1]))
                meter, answers = Meter(), {}
                clip = [meter.measure(frame) for frame in frames]
                for quality in QUALITIES:
                    answers[quality] = service.ask(frames, clip, question.text, quality)
                    right[quality] += answers[quality] == question.answer
                    same[quality] += answers[quality] == answers[None]
    rows = [
        [
            "none" if quality is None else quality,
            len(KINDS) * count,
            right[quality],
            same[quality],
            None if quality is None else mean(service.bytes[quality]) / 1000,
        ]
        for quality in QUALITIES
    ]
    header = ["jpeg_quality", "questions", "right", "as without a JPEG", "KB a frame"]
    publish({"size": given.size, "rows": rows}, header, rows)


if __name__ == "__main__":
    main()
