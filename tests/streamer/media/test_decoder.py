"""Sparse decoding keeps exactly the frames, bit by bit, that full decoding keeps."""

import hashlib
from pathlib import Path
from typing import Any

import pytest

from streamer.media.packet_gate import GateDecision, PacketGate
from streamer.media.packet_reader import Arrival
from streamer.media.sampler import ChangeSampler, FpsSampler, KeyframeSampler, Sampler
from streamer.media.source import Source
from tests.support.videos import number_of, write_video

Kept = list[tuple[float, int, str]]

CODECS: dict[str, dict[str, Any]] = {
    "h264": {"codec": "libx264"},
    "h264-b": {"codec": "libx264", "b_frames": 3, "gop": 40},
    "h264-open": {
        "codec": "libx264",
        "b_frames": 3,
        "options": {"x264-params": "log-level=none:threads=1:open-gop=1:scenecut=0"},
    },
    "hevc-open": {
        "codec": "libx265",
        "suffix": "ts",
        "options": {"x265-params": "log-level=none:open-gop=1:bframes=4:b-pyramid=1:keyint=25"},
    },
    "vp9": {"codec": "libvpx-vp9", "suffix": "webm"},
    "mjpeg": {"codec": "mjpeg", "pix_fmt": "yuvj420p", "suffix": "avi"},
}


def encode(folder: Path, name: str) -> Path:
    arguments = dict(CODECS[name])
    path = folder / f"{name}.{arguments.pop('suffix', 'mp4')}"
    settings = {"seconds": 6, "gop": 25, "width": 160, "height": 120, **arguments}
    write_video(path, **settings)
    return path


def sample(
    path: Path, sampler: Sampler, *, sparse: bool = True, live: bool = False
) -> tuple[Kept, Source]:
    kept: Kept = []
    hint = (lambda: sampler) if sparse else None
    with Source(str(path), live=live, sampler=hint) as source:
        frames = iter(source)
        while True:
            try:
                frame = next(frames)
            except StopIteration:
                break
            except Exception:
                assert live  # the end of a file is a lost connection then
                break
            if sampler.keep(frame.pts, frame.image):
                pixels = frame.image.to_ndarray(format="rgb24")
                digest = hashlib.sha256(pixels.tobytes()).hexdigest()
                kept.append((round(frame.pts, 3), number_of(pixels), digest))
    return kept, source


@pytest.mark.parametrize("name", CODECS)
def test_nothing_is_lost_and_much_is_not_decoded(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = encode(tmp_path, name)
    skipped: list[Arrival] = []
    admit = PacketGate.admit

    def spy(*args: Any, **kwargs: Any) -> GateDecision[Arrival]:
        decision = admit(*args, **kwargs)
        skipped.extend(decision.dropped)
        return decision

    monkeypatch.setattr(PacketGate, "admit", spy)
    for fps in (0.4, 1.0, 3.3):
        whole, everything = sample(path, FpsSampler(fps), sparse=False)
        skipped.clear()
        kept, source = sample(path, FpsSampler(fps))
        assert kept == whole
        assert everything.decoded == 150
        if fps < 1:
            assert source.decoded <= 75
            assert len(skipped) >= 50


def test_live_pictures_are_whole_too(tmp_path: Path) -> None:
    path = encode(tmp_path, "h264-open")
    whole, _ = sample(path, FpsSampler(25), sparse=False)
    kept, source = sample(path, FpsSampler(1.0), live=True)
    assert [round(pts) for pts, _, _ in kept] == [0, 1, 2, 3, 4, 5]
    assert set(kept) <= set(whole)
    assert source.decoded < 75


@pytest.mark.parametrize("name", ["h264", "h264-b", "hevc-open", "mjpeg"])
def test_key_frames_alone(tmp_path: Path, name: str) -> None:
    path = encode(tmp_path, name)
    kept, source = sample(path, KeyframeSampler(0.9))
    numbers = [number for _, number, _ in kept]
    assert numbers == [round(pts * 25) for pts, _, _ in kept]
    # then nothing else was decoded
    assert source.decoded == len(kept)
    if name != "mjpeg":
        assert numbers == list(range(0, 150, 40 if name == "h264-b" else 25))


def test_key_frames_come_out_at_once(tmp_path: Path) -> None:
    path = encode(tmp_path, "h264-b")
    with Source(str(path), live=True, sampler=lambda: KeyframeSampler(0.1)) as source:
        first = next(iter(source))
        # then the decoder did not wait for more packets
        assert first.pts == 0
        assert source.decoded == 1


def test_a_recording_may_change_its_mode_in_the_middle(tmp_path: Path) -> None:
    path = encode(tmp_path, "h264-b")
    sampler: Sampler = KeyframeSampler(0.1)
    numbers = []
    with Source(str(path), live=False, sampler=lambda: sampler) as source:
        for frame in source:
            if sampler.keep(frame.pts, frame.image):
                numbers.append(number_of(frame.image.to_ndarray(format="rgb24")))
            if frame.pts > 1.5 and sampler.keyframes:
                sampler = FpsSampler(25)
    # then the rest begins with a key frame: every frame is complete
    assert numbers == [0, 40, *range(80, 150)]


def test_key_frames_that_are_none_are_found_out(tmp_path: Path) -> None:
    # given intra refresh: packets flagged as key frames only begin a sweep
    write_video(
        tmp_path / "v.mp4",
        seconds=8,
        gop=25,
        width=160,
        height=120,
        options={"x264-params": "log-level=none:threads=1:intra-refresh=1:scenecut=0"},
    )
    whole, _ = sample(tmp_path / "v.mp4", FpsSampler(1), sparse=False)
    kept, _ = sample(tmp_path / "v.mp4", FpsSampler(1))
    # then one frame is late, and everything is decoded from there on
    assert len(kept) == len(whole) == 8
    assert sum(a != b for a, b in zip(kept, whole, strict=True)) <= 1
    assert kept[2:] == whole[2:]


def test_a_change_is_found_and_silence_is_not_stored(tmp_path: Path) -> None:
    from tests.support.videos import numbered_picture

    # given one image for 2 s, another for 2 s, and the first again
    pictures = [numbered_picture(0 if n < 50 or n >= 100 else 1, 160, 120) for n in range(150)]
    write_video(tmp_path / "v.mp4", seconds=6, width=160, height=120, pictures=pictures)
    kept, _ = sample(tmp_path / "v.mp4", ChangeSampler(0.1, 0.2, 60))
    assert [number for _, number, _ in kept] == [0, 1, 0]
    assert [pts for pts, _, _ in kept] == pytest.approx([0, 2, 4], abs=0.2)
    # when one is wanted every second at least
    kept, _ = sample(tmp_path / "v.mp4", ChangeSampler(0.1, 0.2, 1.0))
    assert len(kept) == 6
