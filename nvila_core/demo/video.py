"""Render a street video of any length for live demos: objects enter, stop and leave."""

import random
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import av

from nvila_core.demo.render import FRAME_SIZE, Frame, render_frame
from nvila_core.demo.sampling import collides, sample_light, sample_sign
from nvila_core.demo.world import (
    BASE_SIZE,
    COLOURS,
    DIRECTIONS,
    KINDS,
    Actor,
    Observation,
    Scene,
    observe,
)

SPEED = (0.08, 0.13)
"""In fractions of a frame per second: frames a second apart look like the clips of training."""

_REST_SECONDS = (6.0, 14.0)
"""How long an object stops on its way."""
_PAUSE_SECONDS = (1.5, 5.0)
"""Time between two attempts to let an object enter."""
_MAX_TRIES = 12
_MAX_ACTORS = 3


class StreetVideo:
    """Frames of one camera, uint8 RGB [height, width, 3], determined by the seed.

    The number on the sign never changes. No two visible objects share both kind and colour.

    Args:
        seed: seed of the scene.
        seconds: duration.
        fps: frames per second.
        size: (width, height) in pixels.
    """

    def __init__(
        self, seed: int, seconds: float, fps: int = 10, size: tuple[int, int] = FRAME_SIZE
    ) -> None:
        self.seed, self.seconds, self.fps, self.size = seed, seconds, fps, size
        rng = random.Random(f"street {seed}")
        sign, light = sample_sign(rng), sample_light(rng)
        self.scene = Scene(seed, "street", sign, _play(rng, seconds), light)

    @property
    def sign_number(self) -> int:
        """The number on the sign."""
        return self.scene.sign.number

    def __len__(self) -> int:
        return round(self.seconds * self.fps)

    def __iter__(self) -> Iterator[Frame]:
        for index in range(len(self)):
            yield self.frame_at(index / self.fps)

    def frame_at(self, t: float) -> Frame:
        """Render the frame at `t` seconds."""
        return render_frame(self.scene_around(t, t), t, self.size)

    def scene_around(self, start: float, end: float) -> Scene:
        """Return the scene with only the objects that are present between `start` and `end`."""
        near = tuple(
            actor
            for actor in self.scene.actors
            if actor.path[0][0] <= end and actor.path[-1][0] >= start
        )
        return Scene(self.seed, self.scene.style, self.scene.sign, near, self.scene.light)

    def truth_at(self, t: float, window: float = 3.0, frames: int = 4) -> Observation:
        """Return the ground truth about a clip of `frames` frames from the `window` seconds up to
        `t`; with one frame, about the image at `t`.
        """
        start = max(0.0, t - window)
        times = (
            [start + (t - start) * i / (frames - 1) for i in range(frames)] if frames > 1 else [t]
        )
        return observe(self.scene_around(start, t), times)


def _play(rng: random.Random, seconds: float) -> tuple[Actor, ...]:
    """Draw the objects of the whole video. An object enters if it collides with no other one."""
    actors: list[Actor] = []
    t = -12.0
    while t < seconds:
        present = [actor for actor in actors if actor.path[-1][0] > t]
        if len(present) < _MAX_ACTORS:
            entering = _find_room(rng, t, present)
            if entering:
                actors.append(entering)
        t += rng.uniform(*_PAUSE_SECONDS)
    return tuple(actors)


def _find_room(rng: random.Random, t: float, present: list[Actor]) -> Actor | None:
    taken = {(actor.kind, actor.colour) for actor in present}
    for _ in range(_MAX_TRIES):
        actor = _journey(rng, t)
        steps = int((actor.path[-1][0] - t) * 2) + 1
        times = [t + i / 2 for i in range(steps)]
        if (actor.kind, actor.colour) not in taken and not collides(actor, present, times):
            return actor
    return None


def _journey(rng: random.Random, t: float) -> Actor:
    """Draw a straight path from edge to edge; about half of all objects stop on their way."""
    kind, colour, scale = rng.choice(KINDS), rng.choice(COLOURS), rng.uniform(0.93, 1.08)
    width, height = (side * scale * 1.15 / 2 for side in BASE_SIZE[kind])
    dx, dy = DIRECTIONS[rng.choice(tuple(DIRECTIONS))]
    if dx:
        across = rng.uniform(0.15 + height, 0.98 - height)
        start, end = (-width, across), (1 + width, across)
    else:
        across = rng.uniform(0.02 + width, 0.98 - width)
        start, end = (across, -height), (across, 1 + height)
    if dx < 0 or dy < 0:
        start, end = end, start
    speed = rng.uniform(*SPEED)
    length = abs(end[0] - start[0]) + abs(end[1] - start[1])
    knots = [(t, *start)]
    if rng.random() < 0.5:
        share = rng.uniform(0.35, 0.65)
        halt = (start[0] + share * (end[0] - start[0]), start[1] + share * (end[1] - start[1]))
        t += share * length / speed
        knots.append((t, *halt))
        t += rng.uniform(*_REST_SECONDS)
        knots.append((t, *halt))
        length *= 1 - share
    knots.append((t + length / speed, *end))
    return Actor(kind, colour, scale, tuple(knots))


def write_video(path: Path, video: StreetVideo) -> None:
    """Encode a video as H.264 in MP4 for streaming: no B-frames, one key frame per second."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=video.fps)
        stream.width, stream.height = video.size
        stream.pix_fmt = "yuv420p"
        stream.time_base = Fraction(1, video.fps)
        stream.gop_size = video.fps
        stream.options = {"crf": "18", "preset": "veryfast", "bf": "0"}
        for index, picture in enumerate(video):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts = index
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
