import struct
from io import BytesIO
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image

from nvila_core.resolution.meter import Meter
from streamer.frames.jpeg import (
    MAX_SIDE,
    MAX_STORED_SIDE,
    from_jpeg,
    jpeg_of_planes,
    luma_plane,
    to_bgr,
    to_jpeg,
)
from tests.support.videos import number_of, numbered_picture, write_video


def frame(picture: np.ndarray, pix_fmt: str = "yuv420p") -> av.VideoFrame:
    return av.VideoFrame.from_ndarray(picture, format="rgb24").reformat(format=pix_fmt)


@pytest.mark.parametrize("pix_fmt", ["yuv420p", "yuvj420p", "yuv444p", "yuv420p10le", "nv12"])
def test_colours_survive_every_pixel_format(pix_fmt: str) -> None:
    picture = np.zeros((64, 96, 3), dtype=np.uint8)
    picture[:, :32], picture[:, 32:64], picture[:, 64:] = (
        (200, 30, 40),
        (30, 160, 60),
        (20, 40, 220),
    )
    rgb = to_bgr(frame(picture, pix_fmt))[..., ::-1]
    for x in (16, 48, 80):
        assert np.abs(rgb[32, x].astype(int) - picture[32, x]).max() <= 8


@pytest.mark.parametrize(
    ("pix_fmt", "video_range"),
    [("yuv420p", True), ("yuv444p", True), ("nv12", True), ("yuvj420p", False), ("gray", False)],
)
@pytest.mark.parametrize("size", [(240, 320), (101, 333)])
def test_the_luma_of_a_frame_measures_as_its_picture(
    pix_fmt: str, video_range: bool, size: tuple[int, int]
) -> None:
    # given two frames with fine structures, of which one moves, and flat black and white
    random = np.random.default_rng(3)
    noise = random.integers(0, 256, (*size, 1), np.uint8)
    pictures = []
    for shift in (0, 9):
        picture = np.zeros((*size, 3), np.uint8)
        picture[: size[0] // 2] = 255
        picture[20:80, 20:120] = np.roll(noise, shift, 1)[20:80, 20:120]
        pictures.append(picture)

    # when each is measured by its luma plane, and as a picture
    by_luma, by_picture = Meter(), Meter(bgr=True)
    for picture in pictures:
        image = frame(picture, pix_fmt)
        found = luma_plane(image)
        assert found is not None
        luma, has_video_range = found
        assert luma.shape == size
        assert has_video_range == video_range
        seen, expected = by_luma.measure(luma, has_video_range), by_picture.measure(to_bgr(image))

        # then the measures are the same, but for the rounding of the picture
        assert (seen.width, seen.height) == (expected.width, expected.height)
        assert seen.change == pytest.approx(expected.change, abs=0.005)
        assert seen.detail == pytest.approx(expected.detail, abs=1.0)
        assert seen.fresh == pytest.approx(expected.fresh, abs=1.0)
    assert max(seen.fresh) > 10, "something has moved"


@pytest.mark.parametrize(
    ("shape", "pix_fmt"),
    [
        ((64, 96), "rgb24"),  # has no luma
        ((64, 96), "yuv420p10le"),  # has more than 8 bits
        ((64, 96), "gray16le"),  # is scaled by its range
        ((1082, 1924), "yuv420p"),  # is stored smaller
    ],
)
def test_the_luma_of_a_frame_that_is_changed_is_not_used(
    shape: tuple[int, int], pix_fmt: str
) -> None:
    assert luma_plane(frame(np.zeros((*shape, 3), np.uint8), pix_fmt)) is None


def test_a_frame_in_full_range_says_so_in_its_header() -> None:
    image = frame(np.full((64, 96, 3), 255, np.uint8))
    image.color_range = 2  # FFmpeg's number of "pc"

    found = luma_plane(image)
    assert found is not None
    assert not found[1]


def test_the_size_is_kept_up_to_a_bound() -> None:
    assert to_bgr(frame(np.zeros((480, 854, 3), np.uint8))).shape == (480, 854, 3)
    assert to_bgr(frame(np.zeros((101, 33, 3), np.uint8))).shape == (101, 33, 3)
    assert to_bgr(frame(np.zeros((2160, 3840, 3), np.uint8))).shape == (1080, MAX_SIDE, 3)
    assert to_bgr(frame(np.zeros((3840, 2160, 3), np.uint8))).shape == (MAX_SIDE, 1080, 3)


def test_a_jpeg_holds_the_picture() -> None:
    jpeg = to_jpeg(to_bgr(frame(numbered_picture(345))), 90)
    assert jpeg[:2] == b"\xff\xd8"
    decoded = cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR)
    assert decoded is not None
    assert decoded.shape == (240, 320, 3)
    assert number_of(decoded) == 345
    assert len(to_jpeg(to_bgr(frame(numbered_picture(345))), 30)) < len(jpeg)


@pytest.mark.parametrize(
    ("enough", "shape"),
    [
        (None, (480, 640)),
        ((84, 84), (120, 160)),
        ((121, 121), (240, 320)),
        ((448, 448), (480, 640)),
        ((60, 60), (60, 80)),
        ((336, 252), (480, 640)),  # a grid of 4x3 tiles of 84 pixels
        ((168, 84), (240, 320)),
        ((84, 168), (240, 320)),
        ((2000, 60), (480, 640)),
    ],
)
def test_no_more_of_a_jpeg_is_decoded_than_is_enough(
    enough: tuple[int, int] | None, shape: tuple
) -> None:
    # given a stored frame, orange on the left and blue on the right
    picture = np.zeros((480, 640, 3), np.uint8)
    picture[:, :320], picture[:, 320:] = (230, 120, 20), (20, 40, 220)
    jpeg = to_jpeg(picture[..., ::-1], 90)
    # when it is decoded for a tile of some size
    rgb = from_jpeg(jpeg, 640, 480, enough)
    # then it is the same picture, at the smallest scale of a JPEG that is enough
    assert rgb.shape == (*shape, 3)
    for share, colour in ((0.25, (230, 120, 20)), (0.75, (20, 40, 220))):
        pixel = rgb[shape[0] // 2, int(shape[1] * share)]
        assert np.abs(pixel.astype(int) - colour).max() <= 8


REDUCED = {
    8: cv2.IMREAD_REDUCED_COLOR_8,
    4: cv2.IMREAD_REDUCED_COLOR_4,
    2: cv2.IMREAD_REDUCED_COLOR_2,
    1: cv2.IMREAD_COLOR,
}


@pytest.mark.parametrize("size", [(640, 480), (333, 101), (1919, 1079), (17, 9)])
@pytest.mark.parametrize("factor", [1, 2, 4, 8])
def test_a_jpeg_is_opened_to_the_same_pixels_as_by_opencv(
    size: tuple[int, int], factor: int
) -> None:
    # given stored frames in colour and in grey
    small = np.random.default_rng(0).integers(0, 256, (9, 12, 3), np.uint8)
    picture = cv2.resize(small, size).astype(np.uint8)
    for pixels in (picture, picture[..., 0]):
        jpeg = to_jpeg(pixels, 90)
        # when they are opened at a size, then the model sees what it always has
        expected = cv2.imdecode(np.frombuffer(jpeg, np.uint8), REDUCED[factor])
        assert expected is not None
        rgb = from_jpeg(jpeg, *size, (size[0] // factor, size[1] // factor))
        assert np.array_equal(rgb, expected[..., ::-1])


def conversion(image: av.VideoFrame, video_range: bool) -> np.ndarray:
    """Return a frame of 4:2:0 as RGB float by the definition of BT.601, each chroma for 2x2."""
    planes = []
    for number, plane in enumerate(image.planes):
        height, width = (image.height, image.width) if number == 0 else (plane.height, plane.width)
        rows = np.frombuffer(memoryview(plane), np.uint8).reshape(-1, plane.line_size)
        levels = rows[:height, :width].astype(float) - (128 if number else 16 * video_range)
        levels *= (255 / (224 if number else 219)) if video_range else 1.0
        planes.append(np.kron(levels, np.ones((2, 2))) if number else levels)
    y, cb, cr = (plane[: image.height, : image.width] for plane in planes)
    colours = (y + 1.402 * cr, y - 0.344136 * cb - 0.714136 * cr, y + 1.772 * cb)
    return np.clip(np.stack(colours, -1), 0, 255)


@pytest.mark.parametrize(("pix_fmt", "video_range"), [("yuv420p", True), ("yuvj420p", False)])
@pytest.mark.parametrize("size", [(480, 640), (102, 334), (2, 2)])
def test_a_jpeg_of_planes_shows_the_frame_as_exactly_as_one_of_its_pixels(
    pix_fmt: str, video_range: bool, size: tuple[int, int]
) -> None:
    # given a frame with colours, edges, black and white
    small = np.random.default_rng(5).integers(0, 256, (12, 16, 3), np.uint8)
    picture = cv2.resize(small, size[::-1])
    picture[:20], picture[20:40] = 0, 255
    image = frame(picture, pix_fmt)

    # when it is encoded from its planes, and from its pixels
    by_planes, by_pixels = jpeg_of_planes(image, luma_plane(image), 90), to_jpeg(to_bgr(image), 90)
    assert by_planes is not None

    # then both show the frame, the former with no larger error
    truth = conversion(image, video_range)
    errors = [np.abs(from_jpeg(one, *size[::-1]) - truth) for one in (by_planes, by_pixels)]
    assert errors[0].mean() <= errors[1].mean() + 0.05
    assert errors[0].mean() < 3
    assert len(by_planes) < 1.1 * len(by_pixels)


@pytest.mark.parametrize(
    ("pix_fmt", "shape", "colorspace"),
    [
        ("yuv420p", (64, 96), 1),  # BT.709: a JPEG has another matrix
        ("yuv444p", (64, 96), 2),  # has other planes
        ("nv12", (64, 96), 2),
        ("yuv420p10le", (64, 96), 2),
        ("yuv420p", (64, 95), 2),  # has half a pair of columns
        ("yuv420p", (63, 96), 2),
        ("yuv420p", (1082, 1924), 2),  # is stored smaller
    ],
)
def test_a_frame_whose_planes_are_not_those_of_its_jpeg_goes_by_its_pixels(
    pix_fmt: str, shape: tuple[int, int], colorspace: int
) -> None:
    image = frame(np.zeros((*shape, 3), np.uint8), pix_fmt)
    image.colorspace = colorspace
    assert jpeg_of_planes(image, luma_plane(image), 90) is None


def test_a_damaged_jpeg_is_said_to_be_one() -> None:
    with pytest.raises(ValueError, match="not a JPEG"):
        from_jpeg(b"\xff\xd8 nothing", 640, 480)


def test_an_interlaced_frame_shows_no_comb(tmp_path: Path) -> None:
    # given a frame of two fields, between which a black bar moved to the right
    picture = np.full((240, 320, 3), 255, np.uint8)
    picture[0::2, 100:140] = 0
    picture[1::2, 160:200] = 0
    options = {"flags": "+ilme+ildct", "x264-params": "tff=1:log-level=none", "crf": "5"}
    write_video(tmp_path / "v.mp4", times=[0.0, 0.04], pictures=[picture] * 2, options=options)
    with av.open(str(tmp_path / "v.mp4")) as container:
        frame = next(container.decode(video=0))
    assert frame.interlaced_frame

    bgr = to_bgr(frame)

    # then one of the two moments is shown, on all rows
    rows = bgr[:, :, 0].astype(int)
    assert np.abs(rows[10:-10:2] - rows[11:-9:2]).max() < 60
    assert rows[:, 110:130].max() < 60
    assert rows[:, 170:190].min() > 200


SMALL = to_jpeg(np.zeros((8, 8, 3), np.uint8), 90)


@pytest.mark.parametrize(
    "options", [{}, {"progressive": True}, {"comment": b"x" * 60_000}, {"exif": b"Exif\0\0MM"}]
)
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_a_picture_larger_than_any_frame_is_not_decoded(mode: str, options: dict) -> None:
    # given one that is just as large as a frame may be, and one that is larger
    for side in (MAX_STORED_SIDE, MAX_STORED_SIDE + 1):
        jpeg = BytesIO()
        Image.new(mode, (side, 8)).save(jpeg, "JPEG", **options)

        # then only the former is opened
        if side == MAX_STORED_SIDE:
            assert from_jpeg(jpeg.getvalue(), side, 8).shape == (8, side, 3)
        else:
            with pytest.raises(ValueError, match="larger"):
                from_jpeg(jpeg.getvalue(), side, 8)


def segment(marker: int, body: bytes = b"") -> bytes:
    return struct.pack(">BBH", 0xFF, marker, len(body) + 2) + body


@settings(max_examples=300, deadline=None)
@given(st.integers(0, 255), st.binary(max_size=40), st.integers(2, 40), st.booleans())
@example(0x01, b"", 2, True)
@example(0xD0, SMALL[2:], 2, True)
@example(0xFF, b"", 2, True)
def test_no_header_hides_the_size_of_a_picture(
    marker: int, body: bytes, cut: int, whole: bool
) -> None:
    # given a picture that is too large, after a segment that may lead past its header
    large = BytesIO()
    Image.new("L", (MAX_STORED_SIDE + 1, 8)).save(large, "JPEG")
    head = segment(marker, body) if whole else segment(marker, body)[:cut]
    jpeg = b"\xff\xd8" + head + large.getvalue()[2:] + SMALL[2:]

    # then it is decoded in no case
    try:
        opened = from_jpeg(jpeg, 8, 8)
    except ValueError:
        return
    assert max(opened.shape) <= MAX_STORED_SIDE
