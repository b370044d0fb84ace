"""Pictures and files as people have them: what a file holds counts, not what its name says."""

import json
import subprocess
import sys
import zlib
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import pytest
from PIL import Image

from nvila_core import CheckpointError, MediaError, MediaWarning, Video
from nvila_core.checkpoint.random_checkpoint import write_checkpoint
from nvila_core.checkpoint.weights import Weights
from nvila_core.cli import main, open_media
from nvila_core.file_kind import MAX_PIXELS
from nvila_core.json_fields import read_json
from nvila_core.media import video_file
from nvila_core.media.picture import open_image

LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"
HEIC = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(100)
MAX_PEAK = 1 << 30
"""Bytes of memory that a question about a picture may take, PyTorch and a tiny model included."""


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("a.jpg", b"<!DOCTYPE html><html><body>404</body></html>", "an HTML page"),
        ("a.mp4", b"\n\n <html><head>", "an HTML page"),
        ("a.jpg", LFS, "git lfs pull"),
        ("a.mp4", LFS, "git lfs pull"),
        ("a.png", HEIC, "a HEIC picture: install pillow-heif"),
        ("a.mp4", HEIC, "a HEIC picture"),
        ("a.jpg", b"%PDF-1.7 ...", "a PDF document"),
        ("a.jpg", b"PK\x03\x04abc", "a ZIP archive"),
        ("a.mov", b'{"error": "no such file"}', "JSON text"),
        ("a.webp", b"<?xml version='1.0'?><svg/>", "an SVG drawing"),
        ("a.mp4", b"", "is empty"),
        ("a.jpg", b"\xff\xd8\xff\xe0 nothing more", "is damaged: it begins as a JPEG"),
        ("a.png", b"\x89PNG\r\n\x1a\n nothing more", "is damaged: it begins as a PNG"),
    ],
)
def test_a_file_that_is_something_else_is_called_what_it_is(
    tmp_path: Path, name: str, content: bytes, says: str
) -> None:
    file = tmp_path / name
    file.write_bytes(content)
    with pytest.raises(MediaError, match=says):
        open_media(str(file))


@pytest.mark.parametrize("content", [LFS, b"<html>Sign in</html>"])
def test_weights_that_are_something_else_are_called_what_they_are(
    tmp_path: Path, content: bytes
) -> None:
    for name in ("model.safetensors", "config.json"):
        (tmp_path / name).write_bytes(content)
    says = "git lfs pull" if content is LFS else "an HTML page"
    with pytest.raises(CheckpointError, match=says):
        Weights.open(tmp_path)
    with pytest.raises(CheckpointError, match=says):
        read_json(tmp_path / "config.json")


@pytest.mark.parametrize("name", ["photo.jpg", "photo", "photo.mp4", "photo.png"])
@pytest.mark.parametrize("form", ["MPO", "WEBP", "TIFF", "PNG", "GIF", "BMP"])
def test_still_pictures_open_under_any_name(tmp_path: Path, name: str, form: str) -> None:
    # given a picture of each format; an MPO holds a second, smaller one, as phones write it
    red, more = Image.new("RGB", (60, 40), "red"), {}
    if form == "MPO":
        more = {"save_all": True, "append_images": [Image.new("RGB", (6, 4), "blue")]}
    red.save(tmp_path / name, format=form, **more)
    # when
    opened = open_media(str(tmp_path / name))
    # then
    assert (opened.mode, opened.size) == ("RGB", (60, 40))
    assert all(abs(a - b) < 5 for a, b in zip(opened.getpixel((30, 20)), (255, 0, 0), strict=True))


@pytest.mark.parametrize("form", ["WEBP", "GIF", "PNG"])
def test_animated_pictures_are_videos(tmp_path: Path, form: str) -> None:
    # given an animation of four frames, named as a still picture
    frames = [Image.new("RGB", (32, 32), (60 * i, 0, 0)) for i in range(4)]
    file = tmp_path / "a.jpg"
    frames[0].save(
        file, format=form, save_all=True, append_images=frames[1:], duration=100, lossless=True
    )
    # when
    video = open_media(str(file))
    # then
    assert isinstance(video, Video)
    assert len(video) == 4
    reds = [round(np.asarray(frame)[..., 0].mean()) for frame in video.sample(4)]
    assert all(abs(red - 60 * i) < 8 for i, red in enumerate(reds)), reds


@pytest.mark.parametrize("orientation", range(1, 9))
def test_photos_are_turned_upright(tmp_path: Path, orientation: int) -> None:
    # given how each orientation stores one and the same picture, red at its top left
    upright = Image.new("RGB", (64, 48), "blue")
    upright.paste("red", (0, 0, 32, 24))
    turn = Image.Transpose
    stored = {
        1: upright,
        2: upright.transpose(turn.FLIP_LEFT_RIGHT),
        3: upright.transpose(turn.ROTATE_180),
        4: upright.transpose(turn.FLIP_TOP_BOTTOM),
        5: upright.transpose(turn.TRANSPOSE),
        6: upright.transpose(turn.ROTATE_90),
        7: upright.transpose(turn.TRANSVERSE),
        8: upright.transpose(turn.ROTATE_270),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored.save(tmp_path / "a.jpg", exif=exif, quality=95)
    # when
    opened = open_image(tmp_path / "a.jpg")
    # then
    assert opened.size == upright.size
    difference = np.abs(np.asarray(opened, int) - np.asarray(upright, int))
    assert difference.mean() < 4


@pytest.mark.parametrize("form", ["PNG", "WEBP", "TIFF"])
def test_transparent_parts_are_white(tmp_path: Path, form: str) -> None:
    picture_ = Image.new("RGBA", (8, 8), (0, 0, 0, 0))
    picture_.putpixel((0, 0), (255, 0, 0, 255))
    picture_.save(tmp_path / "a", format=form, **({"lossless": True} if form == "WEBP" else {}))
    opened = open_image(tmp_path / "a")
    assert opened.getpixel((0, 0)) == (255, 0, 0)
    assert opened.getpixel((5, 5)) == (255, 255, 255)
    with_key = Image.new("P", (4, 4), 1)
    with_key.putpalette([9, 9, 9, 0, 0, 0])
    with_key.save(tmp_path / "b.png", transparency=1)
    assert open_image(tmp_path / "b.png").getpixel((1, 1)) == (255, 255, 255)


def ramp(low: float, high: float, dtype: Any) -> Any:
    """[16, 64] values that rise from left to right."""
    return np.repeat(np.linspace(low, high, 64)[None], 16, axis=0).astype(dtype)


@pytest.mark.parametrize(
    ("name", "pixels"),
    [
        ("thermal.png", ramp(29_300, 31_000, np.uint16)),
        ("thermal.tiff", ramp(29_300, 31_000, np.uint16)),
        ("dark.png", ramp(0, 200, np.uint16)),
        ("kelvin.tiff", ramp(280.5, 310.25, np.float32)),
        ("celsius.tiff", ramp(-20, 35, np.float32)),
        ("twelve-bits.png", np.repeat(ramp(0, 4095, np.uint16)[..., None], 3, axis=2)),
        ("colours.tiff", np.repeat(ramp(100, 900, np.float32)[..., None], 3, axis=2)),
        ("signed.tiff", ramp(-500, 500, np.int32)),
    ],
)
def test_deep_pictures_are_scaled_by_their_range_and_say_so(
    tmp_path: Path, name: str, pixels: Any
) -> None:
    if pixels.dtype == np.int32:
        Image.fromarray(pixels).save(tmp_path / name)
    else:
        assert cv2.imwrite(str(tmp_path / name), pixels)
    with pytest.warns(MediaWarning, match="shown as black to white"):
        opened = np.asarray(open_image(tmp_path / name))
    assert opened.min() == 0
    assert opened.max() == 255
    assert (np.diff(opened[0, :, 0].astype(int)) >= 0).all()
    assert 100 < opened.mean() < 155


@pytest.mark.filterwarnings("error")
def test_deep_pictures_that_fill_their_range_keep_their_brightness(tmp_path: Path) -> None:
    pixels = np.repeat(ramp(2000, 65_000, np.uint16)[..., None], 3, axis=2)
    cv2.imwrite(str(tmp_path / "a.png"), pixels)
    cv2.imwrite(str(tmp_path / "b.tiff"), ramp(0.1, 0.9, np.float32))
    assert (np.asarray(open_image(tmp_path / "a.png")) == pixels >> 8).all()
    assert abs(np.asarray(open_image(tmp_path / "b.tiff")).mean() - 127.5) < 2


def test_values_that_are_no_numbers_are_black(tmp_path: Path) -> None:
    pixels = ramp(280, 310, np.float32)
    pixels[0, :8], pixels[1, 0] = np.nan, np.inf
    cv2.imwrite(str(tmp_path / "a.tiff"), pixels)
    with pytest.warns(MediaWarning, match="280 to 310"):
        opened = np.asarray(open_image(tmp_path / "a.tiff"))
    assert opened[0, 0, 0] == 0
    assert opened[5, -1, 0] == 255


def test_thermal_video_is_scaled_by_its_range(tmp_path: Path) -> None:
    # given a video whose values fill two percent of 16 bits
    file = tmp_path / "thermal.mkv"
    with av.open(str(file), "w") as container:
        stream: Any = container.add_stream("ffv1", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 16, "gray16le"
        for _ in range(4):
            frame = av.VideoFrame.from_ndarray(ramp(29_300, 31_000, np.uint16), "gray16le")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    # when
    with pytest.warns(MediaWarning, match="29300 to 31000"):
        frames = Video.from_path(file).sample(2)
    # then
    for sampled in frames:
        assert np.asarray(sampled).min() == 0
        assert np.asarray(sampled).max() == 255


def big_picture(file: Path, side: int, progressive: bool = False) -> None:
    """Write a grey JPEG of side x side pixels, in another process, because that takes memory."""
    code = (
        f"from PIL import Image; Image.new('L', ({side}, {side}), 99)"
        f".save({str(file)!r}, format='JPEG', progressive={progressive})"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def png_header(side: int) -> bytes:
    """The beginning of a PNG of side x side pixels."""
    _, data = cv2.imencode(".png", np.zeros((1, 1, 3), np.uint8))
    png = bytearray(data.tobytes())
    png[16:24] = side.to_bytes(4, "big") * 2
    png[29:33] = zlib.crc32(bytes(png[12:29])).to_bytes(4, "big")
    return bytes(png)


WITH_PEAK = """
import json, resource, subprocess, sys
done = subprocess.run(sys.argv[1:], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss << 10
print(json.dumps([done.returncode, done.stdout, peak]))
"""
"""A small program that runs another: a program begins with the peak of the process that started it,
and that of the tests may be gigabytes."""


def ask_with_peak(folder: Path, file: Path) -> tuple[int, str, int]:
    """Run `ask` about a file: the exit code, what it printed, and its peak memory in bytes."""
    ask = [sys.executable, "-m", "nvila_core", "ask", "--model", str(folder), str(file), "What?"]
    done = subprocess.run(
        [sys.executable, "-c", WITH_PEAK, *ask], stdout=subprocess.PIPE, check=True, text=True
    )
    code, printed, peak = json.loads(done.stdout)
    return code, printed, peak


@pytest.mark.slow
def test_a_jpeg_larger_than_the_limit_is_decoded_smaller(tiny_folder: Path, tmp_path: Path) -> None:
    # given 256 million pixels in 4 MB
    big_picture(tmp_path / "big.jpg", 16_000)
    # when
    code, printed, peak = ask_with_peak(tiny_folder, tmp_path / "big.jpg")
    # then it is answered, says so, and takes little memory
    assert code == 0, printed
    assert "16000 x 16000 pixels and is used at 8000 x 8000" in printed
    assert peak < MAX_PEAK


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["png", "progressive"])
def test_a_picture_that_cannot_be_reduced_is_refused(
    tiny_folder: Path, tmp_path: Path, kind: str
) -> None:
    file = tmp_path / "big"
    if kind == "png":
        file.write_bytes(png_header(20_000))
    else:
        big_picture(file, 12_000, progressive=True)
    code, printed, peak = ask_with_peak(tiny_folder, file)
    assert code == 1
    assert "million that are allowed" in printed
    assert printed.count("\n") == 1
    assert peak < MAX_PEAK


def test_a_video_larger_than_the_limit_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "a.mkv"
    with av.open(str(file), "w") as container:
        stream: Any = container.add_stream("ffv1", rate=10)
        stream.width, stream.height, stream.pix_fmt = 640, 480, "yuv420p"
        container.mux(stream.encode(av.VideoFrame(640, 480, "yuv420p")))
        container.mux(stream.encode())
    monkeypatch.setattr(video_file, "MAX_PIXELS", 640 * 480 - 1)
    with pytest.raises(MediaError, match="640 x 480 pixels, more than"):
        open_media(str(file))


def test_many_large_frames_are_reduced_to_fit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for i in range(3):
        Image.new("RGB", (400, 200), (i, 0, 0)).save(tmp_path / f"{i}.png")
    file = tmp_path / "a.mkv"
    with av.open(str(file), "w") as container:
        stream: Any = container.add_stream("ffv1", rate=10)
        stream.width, stream.height, stream.pix_fmt = 640, 480, "yuv420p"
        for _ in range(4):
            container.mux(stream.encode(av.VideoFrame(640, 480, "yuv420p")))
        container.mux(stream.encode())
    monkeypatch.setattr(video_file, "MAX_CLIP_PIXELS", 640 * 480)
    assert {frame.size for frame in Video.from_path(file).sample(4)} == {(320, 240)}


def test_ask_notes_what_was_done_to_a_picture(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = write_checkpoint(tmp_path / "tiny")
    cv2.imwrite(str(tmp_path / "t.png"), ramp(29_300, 31_000, np.uint16))
    question = [str(tmp_path / "t.png"), "What is warm?"]
    options = ["--model", str(root), "--device", "cpu", "--max-tokens", "2", "--json"]
    assert main(["ask", *options, *question]) == 0
    shown = capsys.readouterr()
    assert shown.err.startswith("note: The image ")
    assert shown.err.count("\n") == 1
    assert '"notes": ["The image ' in shown.out


def test_the_limit_is_a_parameter(tmp_path: Path) -> None:
    Image.new("RGB", (100, 100)).save(tmp_path / "a.png")
    assert open_image(tmp_path / "a.png", MAX_PIXELS).size == (100, 100)
    with pytest.raises(MediaError, match="100 x 100 pixels, more than"):
        open_image(tmp_path / "a.png", 5000)
