"""Recordings whose clock steps back: every picture that sampling wants comes out, in order."""

from collections.abc import Callable
from fractions import Fraction
from functools import cache
from itertools import pairwise
from pathlib import Path

import pytest

from streamer.domain.sampling import Sampling
from streamer.media.sampler import make_sampler
from streamer.media.source import DecodedFrame, Source
from tests.support.videos import number_of, numbered_picture, write_video

Parts = list[Path]


def write_parts(
    folder: Path, lengths: list[int], fps: list[int], b_frames: int, gop: int = 20
) -> Parts:
    """MPEG-TS files with pictures numbered through; each begins at the same timestamp."""
    first, paths = 0, []
    for place, (length, rate) in enumerate(zip(lengths, fps, strict=True)):
        path = folder / f"part{place}.ts"
        pictures = [numbered_picture(first + n) for n in range(length)]
        times = [n / rate for n in range(length)]
        write_video(path, times=times, fps=rate, pictures=pictures, b_frames=b_frames, gop=gop)
        paths.append(path)
        first += length
    return paths


def join(folder: Path, parts: list[Path]) -> Path:
    path = folder / "joined.ts"
    path.write_bytes(b"".join(part.read_bytes() for part in parts))
    return path


def playlist(folder: Path, parts: list[Path], seconds: list[float]) -> Path:
    lines = ["#EXTM3U", "#EXT-X-VERSION:3", "#EXT-X-TARGETDURATION:60"]
    for part, length in zip(parts, seconds, strict=True):
        lines += ["#EXT-X-DISCONTINUITY", f"#EXTINF:{length:.3f},", part.name]
    path = folder / "joined.m3u8"
    path.write_text("\n".join([*lines, "#EXT-X-ENDLIST", ""]))
    return path


def kept(path: Path, sampling: Sampling) -> list[DecodedFrame]:
    """What sampling keeps, through the decoder that leaves out what it does not need."""
    sampler = make_sampler(sampling)
    with Source(str(path), live=False, sampler=lambda: sampler) as source:
        return [frame for frame in source if sampler.keep(frame.pts, frame.image)]


def numbers(frames: list[DecodedFrame]) -> list[int]:
    return [number_of(frame.image.to_ndarray(format="rgb24")) for frame in frames]


@pytest.fixture(scope="module")
def parts_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[tuple[int, ...], int], Parts]:
    """Encode parts of these lengths at 10 pictures a second, once for all tests that read them."""

    @cache
    def make(lengths: tuple[int, ...], b_frames: int) -> Parts:
        folder = tmp_path_factory.mktemp("parts")
        return write_parts(folder, list(lengths), [10] * len(lengths), b_frames)

    return make


@pytest.mark.parametrize("form", ["ts", "m3u8"])
@pytest.mark.parametrize("b_frames", [0, 3])
@pytest.mark.parametrize("lengths", [(61, 61), (62, 62), (3, 40, 5, 61), (100, 7, 100)])
@pytest.mark.parametrize("sampled_fps", [1.0, 2.5, 10.0])
def test_every_sample_of_a_join_is_there(
    parts_of: Callable[[tuple[int, ...], int], Parts],
    form: str,
    b_frames: int,
    lengths: tuple[int, ...],
    sampled_fps: float,
) -> None:
    # given pictures at 10/s in parts whose clocks begin again
    parts = parts_of(lengths, b_frames)
    folder = parts[0].parent
    path = (
        join(folder, parts) if form == "ts" else playlist(folder, parts, [n / 10 for n in lengths])
    )

    frames = kept(path, Sampling(fps=sampled_fps))

    # then what is sampled is every n-th picture, at its place in the film
    every = round(10 / sampled_fps)
    assert numbers(frames) == list(range(0, sum(lengths), every))
    assert [frame.pts for frame in frames] == pytest.approx(
        [n / 10 for n in range(0, sum(lengths), every)], abs=0.002
    )


@pytest.mark.parametrize("mode", ["keyframes", "change"])
def test_other_samplings_go_on_after_a_join(tmp_path: Path, mode: str) -> None:
    parts = write_parts(tmp_path, [61, 61], [10, 10], 0)
    sampling = Sampling.model_validate(
        {"mode": "keyframes", "min_interval": 0.5}
        if mode == "keyframes"
        else {"mode": "change", "threshold": 0.001, "min_interval": 1.0}
    )

    frames = kept(join(tmp_path, parts), sampling)

    found = numbers(frames)
    if mode == "keyframes":  # of each part, every 20th; the last one before the join is 0.1 s off
        assert found == [0, 20, 40, 60, 81, 101, 121]
    assert all(before < after for before, after in pairwise(found))
    assert sum(number >= 61 for number in found) >= 3
    assert frames[-1].pts == pytest.approx(found[-1] / 10, abs=0.01)


def test_parts_of_other_rates_keep_their_rates(tmp_path: Path) -> None:
    parts = write_parts(tmp_path, [50, 20], [25, 5], 0)

    with Source(str(join(tmp_path, parts)), live=False) as source:
        frames = list(source)

    assert numbers(frames) == list(range(70))
    steps = [after.pts - before.pts for before, after in pairwise(frames)]
    assert steps[:50] == pytest.approx([0.04] * 50, abs=0.002)
    assert steps[50:] == pytest.approx([0.2] * 19, abs=0.002)


def test_a_restart_far_below_the_first_timestamp_is_no_wrapped_counter(tmp_path: Path) -> None:
    # given a first part whose clock begins at 100 s, and a second one that begins at 0
    first = [100 + n / 10 for n in range(61)]
    write_video(tmp_path / "a.ts", times=first, fps=10, gop=20)
    pictures = [numbered_picture(61 + n) for n in range(61)]
    write_video(tmp_path / "b.ts", times=[n / 10 for n in range(61)], fps=10, pictures=pictures)

    frames = kept(join(tmp_path, [tmp_path / "a.ts", tmp_path / "b.ts"]), Sampling(fps=1.0))

    assert numbers(frames) == list(range(0, 122, 10))
    assert frames[-1].pts == pytest.approx(12.0, abs=0.01)
    assert {frame.epoch for frame in frames} == {0, 1}


@pytest.mark.parametrize("codec", ["libx264", "mpeg4"])
@pytest.mark.parametrize("sampled_fps", [1.0, 10.0])
def test_reordered_pictures_in_avi_come_in_order(
    tmp_path: Path, codec: str, sampled_fps: float
) -> None:
    path, tick = tmp_path / "v.avi", Fraction(1, 10)
    write_video(path, seconds=6, fps=10, codec=codec, b_frames=2, gop=12, time_base=tick)

    frames = kept(path, Sampling(fps=sampled_fps))

    every = round(10 / sampled_fps)
    assert numbers(frames) == list(range(0, 60, every))
    assert [f.pts for f in frames] == pytest.approx([n / 10 for n in range(0, 60, every)], abs=0.01)


@pytest.mark.parametrize("pids", [[0x100, 0x200], [0x100, 0x200, 0x300], [0x100, 0x200, 0x100]])
@pytest.mark.parametrize("goes_on", [True, False])
def test_a_video_is_followed_to_another_pid(tmp_path: Path, pids: list[int], goes_on: bool) -> None:
    # given parts under other PIDs, whose clocks go on or begin again
    parts = []
    for place, pid in enumerate(pids):
        path, start = tmp_path / f"{place}.ts", 6.2 * place if goes_on else 0.0
        write_video(
            path,
            times=[start + n / 10 for n in range(62)],
            fps=10,
            gop=20,
            pictures=[numbered_picture(62 * place + n) for n in range(62)],
            container_options={"mpegts_start_pid": str(pid)},
        )
        parts.append(path)

    frames = kept(join(tmp_path, parts), Sampling(fps=10.0))

    # then all pictures are there, but for those that FFmpeg holds when a PID ends
    found = numbers(frames)
    assert found == sorted(set(found))
    assert set(range(62 * len(pids))) - set(found) <= {
        62 * place - back for place in range(1, len(pids)) for back in (1, 2)
    }
    assert frames[-1].pts == pytest.approx(6.2 * len(pids) - 0.1, abs=0.5)
