"""Pictures and videos that callers send."""

import base64
import io

import cv2
import numpy as np
import pytest
from PIL import Image

from streamer.errors import ErrorCode, StreamerError
from streamer.frames.jpeg import MAX_SIDE
from streamer.frames.pictures import decode_picture, decode_video, fetch
from streamer.media.access_policy import AccessPolicy
from tests.support.videos import number_of, write_video

NO_LIMIT = 100_000_000


def pixels(still):
    found = cv2.imdecode(np.frombuffer(still.jpeg, np.uint8), cv2.IMREAD_COLOR)
    assert found is not None
    assert found.shape[:2] == (still.measures.height, still.measures.width)
    return found


def encoded(image, form, **options):
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def test_a_picture_is_upright_opaque_and_no_larger_than_a_frame():
    # given a transparent PNG, and a large JPEG on its side
    clear = Image.new("RGBA", (40, 30), (0, 0, 0, 0))
    exif = Image.Exif()
    exif[0x0112] = 6
    large = Image.new("RGB", (2400, 1200), "red")
    # when
    white = decode_picture(encoded(clear, "PNG"), 90, NO_LIMIT)
    turned = decode_picture(encoded(large, "JPEG", exif=exif), 90, NO_LIMIT)
    # then
    assert pixels(white).min() > 250
    assert (turned.measures.width, turned.measures.height) == (MAX_SIDE // 2, MAX_SIDE)
    assert pixels(turned)[0, 0, 2] > 200


@pytest.mark.parametrize("data", [b"", b"not a picture", b"\xff\xd8\xff\xe0 cut", b"<html></html>"])
def test_what_is_no_picture_is_refused(data):
    with pytest.raises(StreamerError) as refused:
        decode_picture(data, 90, NO_LIMIT)
    assert refused.value.code is ErrorCode.INVALID_REQUEST


def test_a_picture_of_too_many_pixels_is_refused():
    with pytest.raises(StreamerError, match="pixels"):
        decode_picture(encoded(Image.new("RGB", (200, 200)), "PNG"), 90, max_pixels=10_000)


@pytest.mark.parametrize(("seconds", "gop"), [(2, 12), (90, 20), (90, 400)])
def test_the_frames_of_a_video_are_spread_over_its_time(tmp_path, seconds, gop):
    # given a video of 4 frames a second, with key frames far apart or not
    path = tmp_path / "clip.mp4"
    write_video(path, seconds=seconds, fps=4, gop=gop)
    # when
    sent = decode_video(path.read_bytes(), 4, 90, NO_LIMIT)
    stored = decode_video(path, 4, 90, NO_LIMIT)
    # then they are those in the middle of each quarter
    numbers = [number_of(pixels(still)) for still in sent]
    total = seconds * 4
    assert numbers == [-(-total * (2 * part + 1) // 8) for part in range(4)]
    assert [still.pts for still in sent] == pytest.approx([n / 4 for n in numbers])
    assert [number_of(pixels(still)) for still in stored] == numbers


def test_a_short_video_has_all_of_its_frames_once(tmp_path):
    path = tmp_path / "clip.mp4"
    write_video(path, seconds=0.5, fps=4)
    numbers = [number_of(pixels(still)) for still in decode_video(path, 16, 90, NO_LIMIT)]
    assert numbers == sorted(set(numbers))
    assert set(numbers) <= {0, 1}


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"#EXTM3U\n#EXTINF:1,\nfile:///etc/passwd\n",
        b"ffconcat version 1.0\nfile /etc/passwd\n",
        b"\0\0\0\x18ftypisom cut",
    ],
)
def test_what_is_no_video_or_names_other_files_is_refused(data):
    with pytest.raises(StreamerError) as refused:
        decode_video(data, 4, 90, NO_LIMIT)
    assert refused.value.code is ErrorCode.INVALID_REQUEST


def test_data_addresses_are_read_in_any_of_their_forms():
    access, wanted = AccessPolicy(), bytes(range(256))
    plain = base64.b64encode(wanted).decode()
    loose = base64.urlsafe_b64encode(wanted).decode().rstrip("=")
    for packed in (plain, loose, f"{plain[:40]}\n {plain[40:]}"):
        assert fetch(f"data:image/png;base64,{packed}", access, 1) == wanted
    assert fetch("data:text/plain,a%20b", access, 1) == b"a b"
    for damaged in ("data:", "data:image/png;base64", "data:image/png;base64,*", "data:;base64,"):
        with pytest.raises(StreamerError) as refused:
            fetch(damaged, access, 1)
        assert refused.value.code is ErrorCode.INVALID_REQUEST


@pytest.mark.parametrize(
    "address", ["http://127.0.0.1/a", "https://[::1]/a", "http://169.254.169.254/latest"]
)
def test_addresses_of_this_machine_are_not_fetched(address):
    with pytest.raises(StreamerError) as refused:
        fetch(address, AccessPolicy(), 1)
    assert refused.value.code is ErrorCode.STREAM_URL_FORBIDDEN
