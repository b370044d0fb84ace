"""Model a demo scene: coloured objects on straight paths, and a sign with a number.

Positions and sizes are fractions of the frame (x to the right, y down). Times are in seconds.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

KINDS = ("person", "car", "bike", "box")
PLURALS = {"person": "people", "car": "cars", "bike": "bikes", "box": "boxes"}
COLOURS = ("red", "green", "blue", "yellow", "white", "black")
DIRECTIONS = {"left": (-1, 0), "right": (1, 0), "away": (0, -1), "closer": (0, 1)}
STYLES = ("street", "yard")
STILL = "still"

BASE_SIZE = {"person": (0.14, 0.34), "car": (0.31, 0.22), "bike": (0.28, 0.26), "box": (0.19, 0.23)}
"""Width and height of each kind at scale 1 in the middle of the frame."""

MIN_VISIBLE_SHARE = 0.5
"""Share of an object's box that must be inside the frame for the object to count as visible."""

MIN_DISPLACEMENT = 0.02
"""Displacement between two frames from which on an object counts as moving."""


@dataclass(frozen=True)
class Actor:
    """An object and its path: knots `(t, x, y)` joined by straight lines, at rest outside."""

    kind: str
    colour: str
    scale: float
    path: tuple[tuple[float, float, float], ...]

    def position(self, t: float) -> tuple[float, float]:
        """Return the centre `(x, y)` at time `t`."""
        before = self.path[0]
        if t <= before[0]:
            return before[1], before[2]
        for after in self.path[1:]:
            if t < after[0]:
                share = (t - before[0]) / (after[0] - before[0])
                return before[1] + share * (after[1] - before[1]), before[2] + share * (
                    after[2] - before[2]
                )
            before = after
        return before[1], before[2]

    def box(self, t: float) -> tuple[float, float, float, float]:
        """Return `(left, top, right, bottom)` at time `t`.

        An object lower in the frame is nearer and therefore larger.
        """
        x, y = self.position(t)
        width, height = BASE_SIZE[self.kind]
        scale = self.scale * (0.85 + 0.3 * min(max(y, 0.0), 1.0))
        return (
            x - width * scale / 2,
            y - height * scale / 2,
            x + width * scale / 2,
            y + height * scale / 2,
        )

    def visible_share(self, t: float) -> float:
        """Return the share of the box that is inside the frame, 0 to 1."""
        left, top, right, bottom = self.box(t)
        width = max(0.0, min(right, 1.0) - max(left, 0.0))
        height = max(0.0, min(bottom, 1.0) - max(top, 0.0))
        return width * height / ((right - left) * (bottom - top))

    def visible(self, t: float) -> bool:
        """Return whether the object counts as visible at time `t`."""
        return self.visible_share(t) >= MIN_VISIBLE_SHARE

    def motion(self, start: float, end: float) -> str:
        """Return the direction of the displacement: a key of `DIRECTIONS`, or `STILL`."""
        (x0, y0), (x1, y1) = self.position(start), self.position(end)
        dx, dy = x1 - x0, y1 - y0
        if max(abs(dx), abs(dy)) < MIN_DISPLACEMENT:
            return STILL
        if abs(dx) >= abs(dy):
            return "right" if dx > 0 else "left"
        return "closer" if dy > 0 else "away"


@dataclass(frozen=True)
class Sign:
    """A plate with a number from 10 to 99; `(x, y)` is its centre."""

    number: int
    x: float
    y: float
    yellow: bool = False


@dataclass(frozen=True)
class Light:
    """Light and sensor of a scene.

    Attributes:
        gain: gain of the channels R, G and B.
        slope: change of brightness from the middle of the frame to its right edge.
        noise: standard deviation of the sensor noise, of 255.
    """

    gain: tuple[float, float, float] = (1.0, 1.0, 1.0)
    slope: float = 0.0
    noise: float = 2.0


@dataclass(frozen=True)
class Scene:
    """Everything that a fixed camera sees; `seed` determines background and noise."""

    seed: int
    style: str
    sign: Sign
    actors: tuple[Actor, ...]
    light: Light = Light()

    def visible(self, t: float) -> list[Actor]:
        """Return the objects that are visible at time `t`, in the order of captions."""
        return sorted((actor for actor in self.actors if actor.visible(t)), key=caption_order)


@dataclass(frozen=True)
class Sighting:
    """One object as a clip shows it.

    Attributes:
        kind, colour: which object it is.
        motion: motion between the last two frames; None for a single image.
        change: change since the first frame, e.g. "moved left" or "appeared"; None: no change.
    """

    kind: str
    colour: str
    motion: str | None
    change: str | None

    @property
    def name(self) -> str:
        """Colour and kind, e.g. "red car"."""
        return f"{self.colour} {self.kind}"


@dataclass(frozen=True)
class Observation:
    """The ground truth about a scene, as far as some frames show it.

    Attributes:
        style: the background.
        sign_number: the number on the sign.
        seen: objects that the last frame shows.
        changes: objects that moved, appeared or disappeared since the first frame.
        frames: number of frames.
    """

    style: str
    sign_number: int
    seen: tuple[Sighting, ...]
    changes: tuple[Sighting, ...]
    frames: int

    @cached_property
    def kinds(self) -> dict[str, list[Sighting]]:
        """The visible objects by kind."""
        return {
            kind: [sighting for sighting in self.seen if sighting.kind == kind] for kind in KINDS
        }


def caption_order(thing: Actor | Sighting) -> tuple[int, int]:
    """Return the sort key of captions: kind, then colour. It makes one wording the correct one."""
    return KINDS.index(thing.kind), COLOURS.index(thing.colour)


def observe(scene: Scene, times: Sequence[float]) -> Observation:
    """Return the ground truth about frames of `scene` at `times`; one time: a single image."""
    first, last = times[0], times[-1]
    still = len(times) == 1
    seen, changes = [], []
    for actor in sorted(scene.actors, key=caption_order):
        before, now = actor.visible(first), actor.visible(last)
        motion = None if still else actor.motion(times[-2], last)
        if before and now:
            moved = actor.motion(first, last)
            change = None if moved == STILL else f"moved {moved}"
        else:
            change = "appeared" if now else "disappeared" if before else None
        sighting = Sighting(actor.kind, actor.colour, motion, change)
        if now:
            seen.append(sighting)
        if change:
            changes.append(sighting)
    return Observation(scene.style, scene.sign.number, tuple(seen), tuple(changes), len(times))
