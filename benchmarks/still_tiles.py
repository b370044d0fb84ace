"""Count the tiles that cheap tests for a still tile spare, and the answers that they change.

    .venv/bin/python benchmarks/still_tiles.py [VIDEO] [--seconds 80] [--policy fixed:12] [--json]

A test decides whether the features of an earlier tile stand in for a new one whose bytes differ:
`tile_tolerance` of the tile cache, the motion vectors of the codec, the difference of the luma as
ingest measures it, and motion vectors that loosen the tolerance where nothing moved. The new tile
is compared with a tile that was encoded; the vectors and differences with the one that was last
encoded at its place. The demo model answers questions about clips of four frames, one a second,
with the tiles that stand in, and with its own.

Footage: VIDEO, by default vtest.avi of Debian's package opencv-doc, as it is and as H.264, and a
street of the demo as H.264. The counts do not depend on the speed of the machine.
"""

import argparse
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import lru_cache
from hashlib import sha256
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from report import publish
from resolution import footage

from nvila_core import NVILA, Engine, Measures, Meter, Prompt, SamplingParams, Video
from nvila_core.demo import CHECKPOINT
from nvila_core.demo.video import StreetVideo, write_video
from nvila_core.engine.prefix_keys import hash_tiles
from nvila_core.engine.tile_cache import TileCache
from nvila_core.resolution.meter import Comparison, halve, noise_floor, shrink
from streamer.frames.jpeg import from_jpeg, to_bgr, to_jpeg
from streamer.settings import Settings

BLOCK = 16
"""Side of the blocks of motion vectors and differences, in pixels of the frame."""
CLIP_FRAMES = 4
QUESTIONS = (
    "Describe the scene.",
    "What changed?",
    "How many people are there?",
    "What number is on the sign?",
)
TOLERANCES = (0.0, 0.01, 0.02, 0.03, 0.05, 0.1)

Blocks = NDArray[Any]


@dataclass
class Sample:
    """One sampled frame: its JPEG, measures, and what a cheap test sees of it.

    Attributes:
        small: luma at a quarter of the size.
        noise: of the sensor, as the meter estimates it.
        moved: pixels by which each block moved at most since the sample before; infinite where
            the codec predicted nothing, except in key frames.
        key: whether a key frame came since the sample before.
    """

    jpeg: bytes
    measures: Measures
    small: NDArray[np.uint8]
    noise: float
    moved: Blocks
    key: bool


def read(video: Path, seconds: float) -> list[Sample]:
    """Decode every frame, and keep one a second."""
    samples: list[Sample] = []
    meter, quality = Meter(), Settings().jpeg_quality
    with av.open(str(video)) as container:
        stream = container.streams.video[0]
        stream.codec_context.options = {"flags2": "+export_mvs"}
        moved: Any = None
        key = False
        for image in container.decode(stream):
            step = movement(image)
            moved = step if moved is None else np.maximum(moved, step)
            key |= image.key_frame
            time = float(image.time or 0)
            if time >= seconds:
                break
            if time < len(samples):
                continue
            luma: Any = image.to_ndarray(format="gray")
            small = halve(halve(luma))
            rows, columns = moved.shape
            lost = cv2.absdiff(luma, cv2.medianBlur(luma, 3)).astype(np.float32)
            noise = noise_floor(shrink(lost, (columns, rows)), luma)
            bgr = to_bgr(image)
            measures = meter.measure(luma)
            samples.append(Sample(to_jpeg(bgr, quality), measures, small, noise, moved, key))
            moved, key = None, False
    return samples


def movement(image: Any) -> Blocks:
    """Return the pixels by which each block of 16x16 moved; see `Sample.moved`."""
    rows, columns = image.height // BLOCK, image.width // BLOCK
    if image.key_frame:
        return np.zeros((rows, columns), np.float32)
    moved = np.full((rows, columns), np.inf, np.float32)
    exported = image.side_data.get("MOTION_VECTORS")
    if exported is None:
        return moved
    vectors = exported.to_ndarray()
    length = np.hypot(vectors["motion_x"], vectors["motion_y"]) / vectors["motion_scale"]
    row, column = vectors["dst_y"] // BLOCK, vectors["dst_x"] // BLOCK
    inside = (row >= 0) & (row < rows) & (column >= 0) & (column < columns)
    row, column, length = row[inside], column[inside], length[inside]
    moved[row, column] = 0
    np.maximum.at(moved, (row, column), length)
    return moved


@dataclass(frozen=True)
class Place:
    """A tile of a grid (columns, rows)."""

    grid: tuple[int, int]
    number: int

    def cut(self, blocks: Blocks) -> Blocks:
        """Return the blocks that the tile covers, in part or whole."""
        columns, rows = self.grid
        row, column = divmod(self.number, columns)
        height, width = blocks.shape
        top, bottom = row * height // rows, -(-(row + 1) * height // rows)
        left, right = column * width // columns, -(-(column + 1) * width // columns)
        return blocks[top:bottom, left:right]


Still = Callable[[Place, int, int], bool]
"""Whether a place shows the same in sample `now` as in sample `then`."""


class Cheap:
    """What motion vectors and differences say about the samples of one video."""

    def __init__(self, samples: Sequence[Sample]) -> None:
        self.samples = samples
        self.changed = lru_cache(None)(self._changed)
        self.moved = lru_cache(None)(self._moved)

    def _changed(self, then: int, now: int) -> Blocks:
        before, after = self.samples[then], self.samples[now]
        light = round(cv2.mean(after.small)[0] - cv2.mean(before.small)[0])
        comparison = Comparison(*after.small.shape)
        return comparison.changed(after.small, before.small, after.noise, light)

    def _moved(self, then: int, now: int) -> Blocks:
        steps = [sample.moved for sample in self.samples[then + 1 : now + 1]]
        moved: Blocks = np.max(steps, axis=0)
        return moved

    def vectors(self, pixels: float, share: float = 0.0, keys: bool = True) -> Still:
        """Accept if at most a `share` of the blocks moved by more than `pixels`.

        Without `keys`, nothing is known across a key frame.
        """

        def still(place: Place, then: int, now: int) -> bool:
            if not keys and any(sample.key for sample in self.samples[then + 1 : now + 1]):
                return False
            return float((place.cut(self.moved(then, now)) > pixels).mean()) <= share

        return still

    def difference(self, beyond: float) -> Still:
        """Accept if no cell differs by more than 1 + `beyond` times the limit of the meter."""
        return lambda place, then, now: bool((place.cut(self.changed(then, now)) <= beyond).all())


def tiles_of(prompt: Prompt, clip: range) -> list[tuple[int, Place]]:
    """Return the sample and the place of each tile of a prompt about the samples of `clip`."""
    found: list[tuple[int, Place]] = []
    grids = [choice.grid for choice in prompt.plan.frames]
    for number, grid in zip(clip, grids, strict=True):
        if grid != (1, 1):
            found += [(number, Place(grid, i)) for i in range(grid[0] * grid[1])]
    found += [(number, Place((1, 1), 0)) for number in clip]
    assert len(found) == prompt.tiles
    return found


class CacheTest:
    """The tile cache of the engine with a tolerance."""

    def __init__(self, tolerance: float) -> None:
        self.cache = TileCache(2**28, tolerance)
        self.pixels: dict[bytes, Any] = {}
        self.encoded = 0

    def show(self, key: bytes, pixels: Any, number: int, place: Place) -> Any:
        """Return the pixels of the tile whose features stand in for a tile."""
        (found,) = self.cache.resolve([key], pixels[None])
        if found not in self.pixels:
            self.encoded += 1
            self.pixels[found] = pixels
            self.cache.put(found, torch.zeros(4, 1), pixels)
        return self.pixels[found]


class PlaceTest:
    """Equal tiles, and a test of each tile against the last that was encoded at its place.

    Where `loose` accepts, a tile is also compared with that one with a `tolerance`.
    """

    def __init__(self, still: Still, tolerance: float | None = None, loose: float = 0.0) -> None:
        self.still, self.tolerance, self.loose = still, tolerance, loose
        self.inner = CacheTest(tolerance or 0.0)
        self.last: dict[Place, tuple[int, Any]] = {}

    @property
    def encoded(self) -> int:
        return self.inner.encoded

    def show(self, key: bytes, pixels: Any, number: int, place: Place) -> Any:
        """See `CacheTest.show`."""
        if place in self.last and key not in self.inner.pixels:
            then, earlier = self.last[place]
            accepted = then < number and self.still(place, then, number)
            if accepted and self.loose:
                near = TileCache(2**20, self.loose)
                near.put(b"", torch.zeros(4, 1), earlier)
                accepted = near.resolve([key], pixels[None]) == [b""]
            if accepted:
                return earlier
        before = self.encoded
        found = self.inner.show(key, pixels, number, place)
        if self.encoded > before:
            self.last[place] = number, found
        return found


def tests(samples: Sequence[Sample]) -> dict[str, Any]:
    """Return the tests to compare, by name."""
    cheap = Cheap(samples)
    found: dict[str, Any] = {
        f"`tile_tolerance` {t:g}" if t else "equal tiles": CacheTest(t) for t in TOLERANCES
    }
    for pixels, share in ((0.5, 0.0), (1, 0.0), (1, 0.05), (2, 0.05)):
        name = f"vectors: {share:.0%} beyond {pixels:g} px"
        found[name] = PlaceTest(cheap.vectors(pixels, share))
    found["the same, key frames encoded"] = PlaceTest(cheap.vectors(2, 0.05, keys=False))
    for beyond in (0.0, 0.5, 0.99):
        found[f"difference: {1 + beyond:.1f} x limit"] = PlaceTest(cheap.difference(beyond))
    for tight, loose in ((0.02, 0.03), (0.02, 0.05), (0.03, 0.05), (0.05, 0.1)):
        name = f"`tile_tolerance` {tight:g}, {loose:g} if vectors: 5% beyond 1 px"
        found[name] = PlaceTest(cheap.vectors(1, 0.05), tight, loose)
    return found


def prepare(model: NVILA, samples: Sequence[Sample], policy: str) -> list[tuple[range, Any, Any]]:
    """Return for each clip its samples, pictures and plan."""
    side, clips = model.config.processor.size, []
    for first in range(0, len(samples) - CLIP_FRAMES + 1, CLIP_FRAMES):
        clip = range(first, first + CLIP_FRAMES)
        seen = [samples[i].measures for i in clip]
        plan = model.plan(seen, policy)
        pictures = [
            from_jpeg(
                samples[i].jpeg,
                samples[i].measures.width,
                samples[i].measures.height,
                (side * choice.grid[0], side * choice.grid[1]),
            )
            for i, choice in zip(clip, plan.frames, strict=True)
        ]
        clips.append((clip, Video(pictures, sampled=True), plan))
    return clips


def compare(model: NVILA, samples: Sequence[Sample], policy: str) -> list[list[Any]]:
    """Return for each test: its name, tiles, tiles encoded, answers, answers changed."""
    clips = prepare(model, samples, policy)
    prompts = [
        [model.prepare([video, question], plan=plan) for question in QUESTIONS]
        for _, video, plan in clips
    ]
    keys = [hash_tiles(first) for first, *_ in prompts]
    engine = Engine(model, max_num_seqs=64, max_num_batched_tokens=2048, max_waiting=10**5)
    own = [prompt for asked in prompts for prompt in asked]
    true = ask(engine, own)
    known = {
        (prompt.text, sha256(prompt.pixels.data).digest()): answer
        for prompt, answer in zip(own, true, strict=True)
    }
    rows = []
    for name, test in tests(samples).items():
        shown = []
        for (clip, _, _), asked, hashes in zip(clips, prompts, keys, strict=True):
            places = tiles_of(asked[0], clip)
            pixels = np.stack(
                [
                    test.show(key, tile, number, place)
                    for key, tile, (number, place) in zip(
                        hashes, asked[0].pixels, places, strict=True
                    )
                ]
            )
            shown += [replace(prompt, pixels=pixels) for prompt in asked]
        looks = [(prompt.text, sha256(prompt.pixels.data).digest()) for prompt in shown]
        new = {look: prompt for look, prompt in zip(looks, shown, strict=True) if look not in known}
        known.update(zip(new, ask(engine, list(new.values())), strict=True))
        changed = sum(known[look] != b for look, b in zip(looks, true, strict=True))
        tiles = sum(asked[0].tiles for asked in prompts)
        rows.append([name, tiles, test.encoded, len(true), changed])
    return rows


def ask(engine: Engine, prompts: Sequence[Prompt]) -> list[str]:
    """Return the answers."""
    handles = [engine.submit(prompt, SamplingParams(max_tokens=64)) for prompt in prompts]
    while engine.step():
        pass
    return [handle.result(0).text for handle in handles]


def as_h264(video: Path, path: Path) -> Path:
    """Encode a video again as cameras do: H.264 without B-frames, a key frame a second."""
    with av.open(str(video)) as source, av.open(str(path), "w") as target:
        seen = source.streams.video[0]
        rate = seen.average_rate or Fraction(10)
        stream = target.add_stream("libx264", rate=rate)
        stream.width, stream.height, stream.pix_fmt = seen.width, seen.height, "yuv420p"
        stream.gop_size = round(rate)
        stream.options = {"preset": "veryfast", "bf": "0", "sc_threshold": "0", "crf": "23"}
        for number, image in enumerate(source.decode(seen)):
            frame = image.reformat(format="yuv420p")
            frame.pts, frame.time_base = number, 1 / rate
            frame.pict_type = 0
            target.mux(stream.encode(frame))
        target.mux(stream.encode())
    return path


def main() -> None:
    """Count and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("video", nargs="?", type=Path)
    parser.add_argument("--seconds", type=float, default=80.0, help="length of each video")
    parser.add_argument("--policy", default="fixed:12", help="resolution policy")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    model = NVILA.from_pretrained(CHECKPOINT, dtype="float32")
    found: dict[str, list[list[Any]]] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        video = options.video or footage(folder)
        videos = {video.name: video, f"{video.stem} as H.264": as_h264(video, folder / "h264.mp4")}
        videos["demo street"] = folder / "street.mp4"
        write_video(videos["demo street"], StreetVideo(1, options.seconds))
        for label, path in videos.items():
            found[label] = compare(model, read(path, options.seconds), options.policy)
    header, rows = [""], [[row[0]] for row in next(iter(found.values()))]
    for label, counted in found.items():
        _, tiles, _, answers, _ = counted[0]
        header += [f"{label}: encoded of {tiles}", f"changed of {answers}"]
        for row, (_, _, encoded, _, changed) in zip(rows, counted, strict=True):
            row += [encoded, changed]
    publish(
        {"policy": options.policy, "rows": [dict(zip(header, row, strict=True)) for row in rows]},
        header,
        rows,
    )


if __name__ == "__main__":
    main()
