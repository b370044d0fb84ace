"""Render frames of a scene: uint8 RGB of any size, with the same content at every size.

Shapes have no front or back, so that only several frames show in which direction an object moves.
"""

from collections.abc import Sequence
from functools import lru_cache
from itertools import pairwise

import cv2
import numpy as np
from numpy.typing import NDArray

from nvila_core.demo.sampling import SIGN_SIZE
from nvila_core.demo.world import Actor, Light, Scene, Sign

Frame = NDArray[np.uint8]
Colour = tuple[int, int, int]
Points = Sequence[tuple[float, float]]

FRAME_SIZE = (640, 480)
PAINT: dict[str, Colour] = {
    "red": (205, 30, 35),
    "green": (25, 150, 50),
    "blue": (35, 70, 210),
    "yellow": (235, 205, 30),
    "white": (240, 240, 240),
    "black": (22, 22, 24),
}
_SHIFT = 4
_ONE = 1 << _SHIFT
_TYRE: Colour = (38, 38, 40)
_NOISE_BANK = 1 << 21
_NOISE_SCALE = 30.0

# The strokes of each digit, through points of a grid of width 2 and height 4.
_STROKES: dict[str, tuple[Points, ...]] = {
    "0": (((0, 0), (2, 0), (2, 4), (0, 4), (0, 0)),),
    "1": (((0.3, 1), (1.2, 0), (1.2, 4)), ((0.2, 4), (2, 4))),
    "2": (((0, 0.6), (0.4, 0), (2, 0), (2, 1.8), (0, 4), (2, 4)),),
    "3": (((0, 0), (2, 0), (1, 1.7), (2, 2.4), (2, 4), (0, 4)),),
    "4": (((1.4, 4), (1.4, 0), (0, 2.7), (2.1, 2.7)),),
    "5": (((2, 0), (0, 0), (0, 1.8), (2, 1.8), (2, 4), (0, 4)),),
    "6": (((1.8, 0), (0.2, 1.4), (0, 4), (2, 4), (2, 2.1), (0, 2.1)),),
    "7": (((0, 0), (2, 0), (0.6, 4)),),
    "8": (((0, 0), (2, 0), (2, 4), (0, 4), (0, 0)), ((0, 2), (2, 2))),
    "9": (((2, 1.9), (0, 1.9), (0, 0), (2, 0), (1.8, 2.6), (0.3, 4)),),
}


class _Canvas:
    """Draws shapes given in fractions of the frame, with the light of the scene, on an image."""

    def __init__(self, picture: Frame, light: Light) -> None:
        self.picture = picture
        self.height, self.width = picture.shape[:2]
        self.gain = light.gain

    def lit(self, colour: Colour) -> tuple[float, float, float]:
        gain = self.gain
        return colour[0] * gain[0], colour[1] * gain[1], colour[2] * gain[2]

    def _fixed(self, points: Points) -> NDArray[np.int32]:
        across, down, half = self.width * _ONE, self.height * _ONE, _ONE // 2
        return np.array(
            [(round(x * across) - half, round(y * down) - half) for x, y in points], np.int32
        )

    def polygon(self, points: Points, colour: Colour) -> None:
        cv2.fillPoly(self.picture, [self._fixed(points)], self.lit(colour), cv2.LINE_AA, _SHIFT)

    def rectangle(
        self, left: float, top: float, right: float, bottom: float, colour: Colour
    ) -> None:
        self.polygon(((left, top), (right, top), (right, bottom), (left, bottom)), colour)

    def ellipse(self, x: float, y: float, rx: float, ry: float, colour: Colour) -> None:
        centre = self._fixed(((x, y),))[0]
        axes = (round(rx * self.width * _ONE), round(ry * self.height * _ONE))
        place = (int(centre[0]), int(centre[1]))
        cv2.ellipse(self.picture, place, axes, 0, 0, 360, self.lit(colour), -1, cv2.LINE_AA, _SHIFT)

    def line(self, points: Points, colour: Colour, thickness: float) -> None:
        """Draw a stroke; `thickness` is a fraction of the width.

        Made of quadrilaterals, because OpenCV's lines are whole pixels thick.
        """
        aspect = self.height / self.width
        for (x0, y0), (x1, y1) in pairwise(points):
            dx, dy = x1 - x0, (y1 - y0) * aspect
            length = max((dx * dx + dy * dy) ** 0.5, 1e-9)
            ux, uy = dx / length * thickness / 2, dy / length * thickness / 2
            # Square caps fill the corners between strokes.
            ax, ay, bx, by = x0 - ux, y0 - uy / aspect, x1 + ux, y1 + uy / aspect
            side = (-uy, ux / aspect)
            self.polygon(
                (
                    (ax + side[0], ay + side[1]),
                    (bx + side[0], by + side[1]),
                    (bx - side[0], by - side[1]),
                    (ax - side[0], ay - side[1]),
                ),
                colour,
            )


def render_frame(scene: Scene, t: float, size: tuple[int, int] = FRAME_SIZE) -> Frame:
    """Render one frame, uint8 RGB [height, width, 3]; its noise is determined by scene and time."""
    return render_clip(scene, (t,), size)[0]


def render_clip(
    scene: Scene, times: Sequence[float], size: tuple[int, int] = FRAME_SIZE
) -> list[Frame]:
    """Render one frame for each time, uint8 RGB [height, width, 3]; `size` is (width, height)."""
    background = _background(scene.seed, scene.style, scene.sign, scene.light, size)
    sign = _sign_area(scene.sign, size)
    frames = []
    for t in times:
        canvas = _Canvas(background.copy(), scene.light)
        # Farther objects first, so that nearer ones cover them.
        for actor in sorted(scene.actors, key=lambda actor: actor.box(t)[3]):
            if actor.visible_share(t) > 0:
                _draw_actor(canvas, actor, t)
        canvas.picture[sign] = background[sign]
        frames.append(_with_noise(canvas.picture, scene.light.noise, scene.seed, t))
    return frames


@lru_cache(maxsize=2)
def _background(seed: int, style: str, sign: Sign, light: Light, size: tuple[int, int]) -> Frame:
    rng = np.random.default_rng(seed)
    width, height = size
    picture = np.empty((height, width, 3), np.uint8)
    canvas = _Canvas(picture, light)
    street = style == "street"
    ground = _shade((104, 106, 110) if street else (134, 128, 104), rng, 12)
    picture[:] = canvas.lit(ground)
    for _ in range(6):
        shade = _shade(ground, rng, 10)
        x, y = rng.uniform(0, 1, 2)
        canvas.ellipse(x, y, rng.uniform(0.05, 0.25), rng.uniform(0.04, 0.15), shade)
    _draw_street(canvas, rng) if street else _draw_yard(canvas, rng)
    _draw_sign(canvas, sign)
    slope = np.linspace(1 - light.slope, 1 + light.slope, width, dtype=np.float32)
    slopes = np.broadcast_to(slope[None, :, None], picture.shape).copy()
    return np.asarray(cv2.multiply(picture, slopes, dtype=cv2.CV_8U), np.uint8)


def _shade(colour: Colour, rng: np.random.Generator, spread: int) -> Colour:
    change = int(rng.integers(-spread, spread + 1))
    return colour[0] + change, colour[1] + change, colour[2] + change


def _draw_street(canvas: _Canvas, rng: np.random.Generator) -> None:
    top, bottom = rng.uniform(0.16, 0.26), rng.uniform(0.9, 0.96)
    pavement = _shade((138, 136, 132), rng, 10)
    canvas.rectangle(-0.1, -0.1, 1.1, top, pavement)
    canvas.rectangle(-0.1, bottom, 1.1, 1.1, pavement)
    middle, phase = (top + bottom) / 2 + rng.uniform(-0.04, 0.04), rng.uniform(0, 0.2)
    for i in range(-1, 6):
        x = phase + 0.2 * i
        canvas.rectangle(x, middle - 0.006, x + 0.1, middle + 0.006, (160, 160, 156))


def _draw_yard(canvas: _Canvas, rng: np.random.Generator) -> None:
    fence, top = (112, 98, 84), rng.uniform(0.12, 0.2)
    for i in range(-1, 12):
        x = 0.09 * i + rng.uniform(0, 0.02)
        canvas.rectangle(x, -0.1, x + 0.055, top, fence)
    step = rng.uniform(0.22, 0.3)
    for i in range(1, 5):
        canvas.rectangle(step * i, top, step * i + 0.006, 1.1, (118, 114, 96))
        canvas.rectangle(-0.1, top + step * i, 1.1, top + step * i + 0.008, (118, 114, 96))


def _draw_actor(canvas: _Canvas, actor: Actor, t: float) -> None:
    left, top, right, bottom = actor.box(t)
    width, height = right - left, bottom - top

    def at(points: Points) -> Points:
        return tuple((left + x * width, top + y * height) for x, y in points)

    canvas.ellipse(
        left + width / 2, bottom - 0.02 * height, width * 0.52, height * 0.07, (72, 72, 70)
    )
    paint = PAINT[actor.colour]
    dark: Colour = (paint[0] * 7 // 10, paint[1] * 7 // 10, paint[2] * 7 // 10)
    if actor.kind == "car":
        canvas.polygon(at(((0.2, 0.42), (0.3, 0.0), (0.7, 0.0), (0.8, 0.42))), paint)
        canvas.polygon(at(((0.27, 0.4), (0.34, 0.1), (0.47, 0.1), (0.47, 0.4))), (165, 200, 215))
        canvas.polygon(at(((0.53, 0.4), (0.53, 0.1), (0.66, 0.1), (0.73, 0.4))), (165, 200, 215))
        canvas.polygon(at(((0.0, 0.42), (1.0, 0.42), (1.0, 0.84), (0.0, 0.84))), paint)
        for x in (0.22, 0.78):
            canvas.ellipse(
                left + x * width, top + 0.82 * height, width * 0.12, height * 0.18, _TYRE
            )
            canvas.ellipse(
                left + x * width, top + 0.82 * height, width * 0.05, height * 0.075, (170, 170, 170)
            )
    elif actor.kind == "person":
        canvas.polygon(
            at(
                (
                    (0.2, 0.62),
                    (0.8, 0.62),
                    (0.78, 1.0),
                    (0.54, 1.0),
                    (0.5, 0.72),
                    (0.46, 1.0),
                    (0.22, 1.0),
                )
            ),
            (58, 52, 62),
        )
        canvas.polygon(
            at(((0.0, 0.24), (1.0, 0.24), (1.0, 0.6), (0.8, 0.66), (0.2, 0.66), (0.0, 0.6))), paint
        )
        canvas.ellipse(
            left + width / 2, top + 0.12 * height, width * 0.27, height * 0.12, (222, 178, 148)
        )
    elif actor.kind == "bike":
        for x in (0.22, 0.78):
            canvas.ellipse(left + x * width, top + 0.7 * height, width * 0.22, height * 0.3, _TYRE)
            canvas.ellipse(
                left + x * width, top + 0.7 * height, width * 0.15, height * 0.2, (142, 142, 138)
            )
        frame = at(((0.22, 0.7), (0.36, 0.3), (0.7, 0.3), (0.5, 0.72), (0.22, 0.7)))
        canvas.polygon(frame, paint)
        canvas.line(at(((0.78, 0.7), (0.68, 0.08))), paint, 0.11 * width)
        canvas.line(at(((0.5, 0.7), (0.34, 0.16))), paint, 0.11 * width)
        canvas.line(at(((0.22, 0.12), (0.44, 0.12))), _TYRE, 0.08 * width)
        canvas.line(at(((0.58, 0.04), (0.8, 0.04))), _TYRE, 0.08 * width)
    else:
        canvas.polygon(at(((0.0, 0.18), (1.0, 0.18), (1.0, 1.0), (0.0, 1.0))), paint)
        canvas.polygon(at(((0.0, 0.18), (0.16, 0.0), (0.84, 0.0), (1.0, 0.18))), dark)
        canvas.polygon(at(((0.42, 0.0), (0.58, 0.0), (0.58, 0.45), (0.42, 0.45))), (176, 148, 104))


def _sign_area(sign: Sign, size: tuple[int, int]) -> tuple[slice, slice]:
    """Return the pixels of the sign: it is in front, so they are copied over moving objects."""
    (width, height), (across, down) = SIGN_SIZE, size
    rows = slice(round((sign.y - height / 2) * down), round((sign.y + height / 2) * down))
    return rows, slice(round((sign.x - width / 2) * across), round((sign.x + width / 2) * across))


def _draw_sign(canvas: _Canvas, sign: Sign) -> None:
    width, height = SIGN_SIZE
    left, top = sign.x - width / 2, sign.y - height / 2
    canvas.rectangle(left, top, left + width, top + height, (60, 60, 64))
    plate: Colour = (240, 214, 70) if sign.yellow else (244, 244, 244)
    canvas.rectangle(left + 0.003, top + 0.004, left + width - 0.003, top + height - 0.004, plate)
    digit_width, digit_height = 0.0215, 0.041
    for place, digit in enumerate(f"{sign.number:02d}"):
        x = left + 0.0135 + place * 0.0365
        y = top + (height - digit_height) / 2
        for stroke in _STROKES[digit]:
            points = tuple(
                (x + px / 2 * digit_width, y + py / 4 * digit_height) for px, py in stroke
            )
            canvas.line(points, (20, 20, 26), 0.0046)


@lru_cache(maxsize=1)
def _noise_bank() -> Frame:
    noise = np.random.default_rng(7).standard_normal(_NOISE_BANK) * _NOISE_SCALE + 128
    return noise.round().clip(0, 255).astype(np.uint8)


def _with_noise(picture: Frame, sigma: float, seed: int, t: float) -> Frame:
    bank = _noise_bank()
    if picture.size >= len(bank):
        bank = np.resize(bank, 2 * picture.size)
    start = hash((seed, round(t * 1000))) % (len(bank) - picture.size)
    noise = bank[start : start + picture.size].reshape(picture.shape)
    weight = sigma / _NOISE_SCALE
    return np.asarray(cv2.addWeighted(picture, 1.0, noise, weight, -128 * weight), np.uint8)
