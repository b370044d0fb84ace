"""Draw random scenes from a seed; training and evaluation use disjoint ranges of seeds."""

import random
from collections.abc import Sequence

from nvila_core.demo.world import (
    BASE_SIZE,
    COLOURS,
    DIRECTIONS,
    KINDS,
    STYLES,
    Actor,
    Light,
    Scene,
    Sign,
)

FIRST_EVALUATION_SEED = 10**9
"""Training seeds are below this number, evaluation seeds are not."""

MAX_ACTORS = 4
STEP = (0.07, 0.14)
"""Displacement of a moving object from one frame of a clip to the next, in fractions of a frame."""

SIGN_SIZE = (0.085, 0.076)

TILE_GRID = (4, 3)
"""Columns and rows of tiles of a tiled 4:3 frame."""
_SIGN_COLUMNS, _SIGN_ROWS = (2 * tiles for tiles in TILE_GRID)
"""A tile has two tokens along each side; the sign lies within one of them."""
_CLEAR = (0.12, 0.6)
"""In the first and last frame of a clip, the visible share of an object is outside this range, so
that the object is clearly visible or clearly not."""


def sample_sign(rng: random.Random) -> Sign:
    """Draw a sign that lies inside one token of a tiled frame, in the top row of 8x6 tokens."""
    width, height = SIGN_SIZE
    column = rng.randrange(_SIGN_COLUMNS)
    spare_x, spare_y = 1 / _SIGN_COLUMNS - width, 1 / _SIGN_ROWS - height
    x = column / _SIGN_COLUMNS + width / 2 + spare_x * rng.uniform(0.1, 0.9)
    y = height / 2 + spare_y * rng.uniform(0.1, 0.9)
    return Sign(rng.randint(10, 99), x, y, yellow=rng.random() < 0.4)


def sample_light(rng: random.Random) -> Light:
    """Draw the brightness, tint, slope and noise of a scene."""
    level = rng.uniform(0.82, 1.12)
    gain = (
        level * rng.uniform(0.95, 1.05),
        level * rng.uniform(0.97, 1.03),
        level * rng.uniform(0.95, 1.05),
    )
    return Light(gain, rng.uniform(-0.12, 0.12), rng.uniform(0.5, 4.0))


def overlap(a: tuple[float, float, float, float], b: tuple[float, float, float, float]) -> float:
    """Return the area of the intersection of two boxes, as a share of the smaller box."""
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    if width <= 0 or height <= 0:
        return 0.0
    smaller = min((a[2] - a[0]) * (a[3] - a[1]), (b[2] - b[0]) * (b[3] - b[1]))
    return width * height / smaller


def collides(
    actor: Actor, others: Sequence[Actor], times: Sequence[float], limit: float = 0.1
) -> bool:
    """Return whether `actor` and one of `others` overlap by more than `limit` at any of `times`."""
    return any(overlap(actor.box(t), other.box(t)) > limit for other in others for t in times)


def sample_scene(
    seed: int, times: Sequence[float], max_actors: int = MAX_ACTORS, min_actors: int = 0
) -> Scene:
    """Draw the scene of `seed` for frames at evenly spaced `times`.

    No two objects share both kind and colour, so that "the red car" is unambiguous.
    """
    rng = random.Random(seed)
    wanted = rng.choices(range(5), weights=(4, 20, 26, 26, 24))[0]
    wanted = min(max(wanted, min_actors), max_actors)
    taken: set[tuple[str, str]] = set()
    actors: list[Actor] = []
    for _ in range(60):
        if len(actors) >= wanted:
            break
        actor = _sample_actor(rng, times)
        if (actor.kind, actor.colour) in taken or not _clear(actor, times):
            continue
        if collides(actor, actors, times):
            continue
        taken.add((actor.kind, actor.colour))
        actors.append(actor)
    return Scene(seed, rng.choice(STYLES), sample_sign(rng), tuple(actors), sample_light(rng))


def _clear(actor: Actor, times: Sequence[float]) -> bool:
    shares = (actor.visible_share(times[0]), actor.visible_share(times[-1]))
    return max(shares) >= _CLEAR[1] and all(not _CLEAR[0] < share < _CLEAR[1] for share in shares)


def _sample_actor(rng: random.Random, times: Sequence[float]) -> Actor:
    kind, colour = rng.choice(KINDS), rng.choice(COLOURS)
    scale = rng.uniform(0.93, 1.08)
    width, height = BASE_SIZE[kind]
    x = rng.uniform(0.42 * width, 1 - 0.42 * width)
    y = rng.uniform(0.46 * height + 0.04, 1 - 0.46 * height)
    if len(times) == 1 or rng.random() < 0.3:
        return Actor(kind, colour, scale, ((times[0], x, y),))
    dx, dy = DIRECTIONS[rng.choice(tuple(DIRECTIONS))]
    speed = rng.uniform(*STEP) / (times[1] - times[0])
    start, end = times[0], times[-1]
    # Objects that stop or start midway teach the model to use the last step, not the first.
    part = rng.random()
    if len(times) >= 4 and part < 0.05:
        end = times[len(times) // 2]
    elif len(times) >= 4 and part < 0.1:
        start = times[len(times) // 2]
    # The sampled position belongs to a random time, so that objects can enter or leave the frame.
    anchor = rng.choice((start, end, end, rng.uniform(start, end)))
    knots = tuple(
        (t, x + dx * speed * (t - anchor), y + dy * speed * (t - anchor)) for t in (start, end)
    )
    return Actor(kind, colour, scale, knots)
