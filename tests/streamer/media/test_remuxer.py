"""Remuxing: what comes out decodes to the frames that went in, one fragment each."""

import re
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import pytest
from av.video.stream import VideoStream

from streamer.media.remuxer import Fragment, Remuxer
from tests.support.videos import decoded_numbers, write_video

MAX_PIXELS = 1920 * 1080


def remuxed(path: Path, *, skip: int = 0, max_pixels: int = MAX_PIXELS) -> list[Fragment]:
    """Remux a file, from its packet `skip` on."""
    with av.open(str(path), "r") as container:
        stream = container.streams.video[0]
        remuxer = Remuxer(stream, max_pixels)
        packets = [packet for packet in container.demux(stream) if packet.size]
        found = [each for packet in packets[skip:] for each in remuxer.mux(packet)]
        return found + remuxer.finish()


def film(fragments: Sequence[Fragment]) -> bytes:
    """What a player is given."""
    return fragments[0].init + b"".join(fragment.data for fragment in fragments)


@pytest.mark.parametrize(
    ("codec", "name", "b_frames", "mime"),
    [
        ("libx264", "v.mp4", 2, "avc1.4D"),
        ("libx264", "v.ts", 0, "avc1.42"),
        ("libx264", "v.flv", 0, "avc1.42"),
        ("libx265", "v.ts", 2, "hvc1.1.6.L"),
        ("libsvtav1", "v.mp4", 0, "av01.0."),
    ],
)
def test_every_frame_comes_out_as_it_went_in(
    tmp_path: Path, codec: str, name: str, b_frames: int, mime: str
) -> None:
    path = tmp_path / name
    write_video(path, codec=codec, seconds=1, b_frames=b_frames)

    fragments = remuxed(path)

    assert len(fragments) == 25
    assert fragments[0].key
    assert 2 <= sum(fragment.key for fragment in fragments) <= 4
    assert all(fragment.data[4:8] == b"moof" for fragment in fragments)
    assert len({fragment.init for fragment in fragments}) == 1
    assert fragments[0].mime.startswith(f'video/mp4; codecs="{mime}')
    assert decoded_numbers(film(fragments)) == list(range(25))
    # and times begin at 0 with the first frame, evenly spaced
    (tmp_path / "out.mp4").write_bytes(film(fragments))
    with av.open(str(tmp_path / "out.mp4"), "r") as container:
        times = [frame.time for frame in container.decode(video=0)]
    assert times[0] is not None
    assert times[0] < 0.13
    assert [time - times[0] for time in times if time is not None] == pytest.approx(
        [n / 25 for n in range(25)], abs=1e-3
    )


def test_it_begins_with_a_key_frame(tmp_path: Path) -> None:
    write_video(tmp_path / "v.ts", seconds=1)
    assert decoded_numbers(film(remuxed(tmp_path / "v.ts", skip=5))) == list(range(12, 25))


def test_a_camera_that_changes_its_size_gets_another_initialization(tmp_path: Path) -> None:
    # given a broadcast that goes on in another size
    write_video(tmp_path / "a.ts", seconds=0.48)
    write_video(tmp_path / "b.ts", seconds=0.48, width=160, height=120)
    whole = (tmp_path / "a.ts").read_bytes() + (tmp_path / "b.ts").read_bytes()
    (tmp_path / "v.ts").write_bytes(whole)

    fragments = remuxed(tmp_path / "v.ts")

    inits = list(dict.fromkeys(fragment.init for fragment in fragments))
    assert len(inits) == 2
    for init, size in zip(inits, ((320, 240), (160, 120)), strict=True):
        part = [fragment for fragment in fragments if fragment.init == init]
        assert part[0].key
        assert decoded_numbers(film(part)) == list(range(12))
        (tmp_path / "part.mp4").write_bytes(film(part))
        with av.open(str(tmp_path / "part.mp4"), "r") as container:
            stream = container.streams.video[0]
            assert (stream.codec_context.width, stream.codec_context.height) == size


def test_a_camera_that_says_only_once_how_it_encodes_is_remuxed_too(tmp_path: Path) -> None:
    # given packets without parameter sets, which such a camera sends in its description only
    write_video(tmp_path / "v.ts", seconds=1)
    with av.open(str(tmp_path / "v.ts"), "r") as container:
        stream = container.streams.video[0]
        remuxer, bare = Remuxer(stream, MAX_PIXELS), 0
        found: list[Fragment] = []
        for packet in container.demux(stream):
            units = re.split(rb"\x00{1,2}\x00\x01", bytes(packet))[1:]
            slices = [unit for unit in units if unit[0] & 0x1F not in (7, 8)]
            bare += len(units) - len(slices)
            stripped = av.Packet(b"".join(b"\0\0\0\1" + unit for unit in slices))
            stripped.pts, stripped.dts = packet.pts, packet.dts
            stripped.time_base = stream.time_base or Fraction(1, 90_000)
            stripped.is_keyframe = packet.is_keyframe
            found += remuxer.mux(stripped) if packet.size else remuxer.finish()
    assert bare >= 4
    # then nothing is missing
    assert decoded_numbers(film(found)) == list(range(25))
    assert len({fragment.init for fragment in found}) == 1


class _Untimed:
    """The packets of a source that has lost its times."""

    def __init__(self, path: Path) -> None:
        self.container = av.open(str(path), "r")
        self.stream: VideoStream = self.container.streams.video[0]

    def remuxed(self) -> list[Fragment]:
        remuxer, found = Remuxer(self.stream, MAX_PIXELS), []
        for number, packet in enumerate(self.container.demux(self.stream)):
            if packet.size:
                # none at all, then one that stands still, then one that runs backwards
                packet.pts = packet.dts = (None, 900, -5)[number % 3]
                found += remuxer.mux(packet)
        return found + remuxer.finish()


def test_times_that_are_missing_or_run_backwards_stop_nothing(tmp_path: Path) -> None:
    write_video(tmp_path / "v.ts", seconds=1)
    assert decoded_numbers(film(_Untimed(tmp_path / "v.ts").remuxed())) == list(range(25))


def test_other_codecs_are_refused_and_huge_pictures_left_out(tmp_path: Path) -> None:
    write_video(tmp_path / "v.avi", codec="mjpeg", pix_fmt="yuvj420p", seconds=0.2)
    with pytest.raises(ValueError, match="mjpeg is not remuxed"):
        remuxed(tmp_path / "v.avi")
    write_video(tmp_path / "v.mp4", seconds=0.2)
    with pytest.raises(av.FFmpegError):
        remuxed(tmp_path / "v.mp4", max_pixels=100)
