"""JPEG pictures found by their own markers."""

import io

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from streamer.media.jpeg_stream import JpegSplitter, JpegStream


def jpeg(seed: int, **options: object) -> bytes:
    """A picture of noise, so that its data holds every byte."""
    pixels = np.random.default_rng(seed).integers(0, 256, (48, 64, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", **options)
    return buffer.getvalue()


def with_thumbnail(seed: int) -> bytes:
    """A picture whose APP1 segment holds another picture."""
    whole, small = jpeg(seed), jpeg(seed + 100)
    segment = b"\xff\xe1" + (len(small) + 2).to_bytes(2, "big") + small
    return whole[:2] + segment + whole[2:]


PICTURES = [
    jpeg(1),
    jpeg(2, progressive=True),
    jpeg(3, quality=100, subsampling=0),
    jpeg(4, restart_marker_blocks=1),
    with_thumbnail(5),
]


@given(
    st.lists(st.sampled_from(range(len(PICTURES))), max_size=6),
    st.sampled_from(
        [
            b"",
            b"\r\n--frame\r\nContent-Type: image/jpeg\r\nContent-Length: 99\r\n\r\n",
            b"\r\n--\r\n\r\n",
            b"\xff\xd8 not a picture \xff\xd9",
            b"\xff",
        ]
    ),
    st.integers(1, 5000),
)
def test_pictures_come_out_whole_however_they_are_separated_and_cut(choice, between, size):
    data = between.join([b"", *(PICTURES[n] for n in choice), b""])
    splitter, found = JpegSplitter(), []

    for start in range(0, len(data), size):
        found += splitter.feed(data[start : start + size])

    assert found == [PICTURES[n] for n in choice]


def test_a_picture_without_an_end_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("streamer.media.jpeg_stream.MAX_PICTURE_BYTES", 1000)

    with pytest.raises(ValueError, match="without an end"):
        JpegSplitter().feed(jpeg(1)[:1500])


def test_ffmpeg_reads_what_it_is_given() -> None:
    import av

    body = io.BytesIO(b"HTTP noise".join(PICTURES))
    stream = JpegStream(lambda: body, lambda: False, chunk=700)

    with av.open(stream, "r", format="mpjpeg") as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]

    assert len(frames) == len(PICTURES)
    expected = [cv2.imdecode(np.frombuffer(p, np.uint8), cv2.IMREAD_COLOR_RGB) for p in PICTURES]
    for frame, picture in zip(frames, expected, strict=True):
        assert np.abs(frame.astype(int) - picture).mean() < 25


def read_all(stream: JpegStream) -> list[bytes]:
    data = b""
    while piece := stream.read(1000):
        data += piece
    return JpegSplitter().feed(data)


def test_a_snapshot_is_asked_for_until_the_stream_is_closed() -> None:
    answers = iter([io.BytesIO(picture) for picture in PICTURES])
    waits = iter([True, True, False])

    pictures = read_all(JpegStream(lambda: next(answers), lambda: next(waits)))

    assert pictures == PICTURES[:3]


def test_the_end_of_several_pictures_is_the_end() -> None:
    answers = iter([io.BytesIO(b"".join(PICTURES[:2]))])

    assert read_all(JpegStream(lambda: next(answers), lambda: True)) == PICTURES[:2]


def test_a_snapshot_that_fails_ends_the_stream() -> None:
    answers = iter([io.BytesIO(PICTURES[0]), io.BytesIO(b"")])

    assert read_all(JpegStream(lambda: next(answers), lambda: True)) == PICTURES[:1]
