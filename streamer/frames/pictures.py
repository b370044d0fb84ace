"""Pictures and videos that callers send or name: `data:` and `http(s):` addresses.

What an address leads to is fetched as a source is: see `http_source`.
"""

import base64
import binascii
import time
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote_to_bytes

import av
import cv2
import numpy as np
from av.error import FFmpegError
from numpy.typing import NDArray

from nvila_core.errors import MediaError
from nvila_core.resolution.meter import Meter
from nvila_core.resolution.policy import Measures
from streamer.errors import ErrorCode, StreamerError
from streamer.frames.jpeg import MAX_SIDE, to_bgr, to_jpeg
from streamer.media import source_errors
from streamer.media.access_policy import AccessPolicy
from streamer.media.http_source import HttpOpener
from streamer.media.urls import parse_source, redact

if TYPE_CHECKING:
    from av.container import InputContainer

_MAX_PICTURE_BYTES = 32 << 20
"""Bytes of one picture or video that a caller sends or names."""

MAX_FETCH_SECONDS = 30.0
"""Seconds until a picture or video must have arrived."""

_CLOSED = {
    "format_whitelist": "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,mpeg,flv,gif",
    "protocol_whitelist": "none",
}
"""Options of FFmpeg: containers that name no other file, and no protocol to open one with."""

MAX_VIDEO_SECONDS = 20.0
"""Seconds that decoding the frames of one video may take."""


MIN_SEEK = 10.0
"""Seconds from which on a part of a video is passed over without decoding it."""


@dataclass(frozen=True)
class StillPicture:
    """A decoded picture, ready to be stored.

    Attributes:
        jpeg: the picture, no side longer than that of a stored frame.
        measures: what a resolution policy plans from.
        pts: its place in a video, seconds; 0 for a picture.
    """

    jpeg: bytes
    measures: Measures
    pts: float = 0.0


def fetch(address: str, access: AccessPolicy, timeout: float) -> bytes:
    """Return what is in a `data:` address, or at an http(s) address.

    Raises StreamerError: INVALID_REQUEST for another address or a damaged one, REQUEST_TOO_LARGE,
    STREAM_URL_FORBIDDEN, and the codes of a stream that cannot be read.
    """
    if address[:5].lower() == "data:":
        return _from_data(address)
    if not address.lower().startswith(("http://", "https://")):
        raise StreamerError(
            ErrorCode.INVALID_REQUEST,
            f"'{redact(address[:80])}' is not an address of a picture: write data:..., https:// or "
            "stream://NAME.",
        )
    url = access.check(parse_source(address))
    opener = HttpOpener(url, access, live=False, timeout=timeout)
    deadline = time.monotonic() + MAX_FETCH_SECONDS
    try:
        file, read = opener.open_first(), bytearray()
        while chunk := file.read(1 << 16):
            read += chunk
            if len(read) > _MAX_PICTURE_BYTES:
                raise _too_large()
            if time.monotonic() > deadline:
                raise source_errors.timed_out(redact(url), MAX_FETCH_SECONDS)
        if opener.error is not None:
            raise opener.error
        return bytes(read)
    finally:
        opener.close()


def _from_data(address: str) -> bytes:
    header, comma, body = address[5:].partition(",")
    if len(body) > _MAX_PICTURE_BYTES * 3:
        raise _too_large()
    try:
        if not comma:
            raise ValueError
        if header.lower().endswith(";base64"):
            packed = "".join(body.split())
            packed = packed.rstrip("=")
            data = base64.b64decode(
                packed.replace("-", "+").replace("_", "/") + "=" * (-len(packed) % 4),
                validate=True,
            )
        else:
            data = unquote_to_bytes(body)
    except (ValueError, binascii.Error):
        raise StreamerError(
            ErrorCode.INVALID_REQUEST,
            "A data: address is damaged: write data:image/jpeg;base64, and the picture in base64.",
        ) from None
    if len(data) > _MAX_PICTURE_BYTES:
        raise _too_large()
    if not data:
        raise StreamerError(ErrorCode.INVALID_REQUEST, "A data: address is empty: send a picture.")
    return data


def _too_large() -> StreamerError:
    return StreamerError(
        ErrorCode.REQUEST_TOO_LARGE,
        f"A picture or video has more than {_MAX_PICTURE_BYTES >> 20} MiB: send a smaller one, or "
        "attach the video as a stream.",
    )


def read_picture(path: Path) -> bytes:
    """Return the bytes of an uploaded picture. Raises StreamerError(REQUEST_TOO_LARGE)."""
    with path.open("rb") as file:
        data = file.read(_MAX_PICTURE_BYTES + 1)
    if len(data) > _MAX_PICTURE_BYTES:
        raise _too_large()
    return data


def decode_picture(data: bytes, quality: int, max_pixels: int) -> StillPicture:
    """Decode a picture, upright and on white. Raises StreamerError(INVALID_REQUEST)."""
    from nvila_core.media.picture import decode_image

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of reduced pictures: a stored frame is smaller still
            rgb = np.asarray(decode_image(data, "The picture", max_pixels))
    except MediaError as error:
        raise StreamerError(ErrorCode.INVALID_REQUEST, str(error)) from None
    return _still(cv2.cvtColor(rgb, cv2.COLOR_RGB2BGR), quality, 0.0, None)


def decode_video(
    video: bytes | Path, count: int, quality: int, max_pixels: int
) -> list[StillPicture]:
    """Decode `count` frames of a video at most, evenly spaced in time.

    Raises StreamerError(INVALID_REQUEST) for what is not a video, or a damaged one.
    """
    deadline = time.monotonic() + MAX_VIDEO_SECONDS
    meter = Meter(bgr=True)
    found: list[StillPicture] = []
    try:
        source = BytesIO(video) if isinstance(video, bytes) else str(video)
        options = _CLOSED if isinstance(video, bytes) else _CLOSED | {"protocol_whitelist": "file"}
        with av.open(source, mode="r", options=options) as container:
            times = _times(container, count)
            stream = container.streams.video[0]
            stream.codec_context.options = {"max_pixels": str(max_pixels)}
            stream.thread_type = "SLICE"
            for when, frame in _frames_at(container, times):
                if frame.width * frame.height > max_pixels:
                    raise _bad_video("has too many pixels")
                if time.monotonic() > deadline:
                    raise _bad_video(f"takes more than {MAX_VIDEO_SECONDS:g} s to decode")
                if when is not None:
                    found.append(_still(to_bgr(frame), quality, when, meter))
    except (FFmpegError, OSError, ValueError, IndexError):
        raise _bad_video("cannot be decoded") from None
    if not found:
        raise _bad_video("has no picture")
    return found


def _times(container: "InputContainer", count: int) -> Sequence[float]:
    """Return the stream times, seconds from its first frame, of the frames to take."""
    stream = container.streams.video[0]
    duration = 0.0
    if stream.duration is not None and stream.time_base is not None:
        duration = float(stream.duration * stream.time_base)
    elif container.duration is not None:
        duration = container.duration / 1e6
    # the middle of each of `count` equal parts
    return [duration * (2 * part + 1) / (2 * count) for part in range(count)]


def _frames_at(
    container: "InputContainer", times: Sequence[float]
) -> Iterator[tuple[float | None, Any]]:
    """Yield every frame that is decoded; with its time, seconds from the first one, those that are
    the first at or after one of `times` (ascending), or the last one if none is."""
    stream = container.streams.video[0]
    start: float | None = None
    taken, number, sought = False, 0, -1
    when, frame = 0.0, None

    def is_far() -> bool:
        return number < len(times) and times[number] - when > MIN_SEEK and sought != number

    while number < len(times):
        if start is not None and is_far():
            container.seek(int((start + times[number]) * av.time_base), backward=True)
            sought = number
        for frame in container.decode(stream):
            at = float(frame.time or 0.0)
            start = at if start is None else start
            when = at - start
            if when >= times[number] - 1e-6:
                taken = True
                yield when, frame
                while number < len(times) and when >= times[number] - 1e-6:
                    number += 1
            else:
                yield None, frame
            if number == len(times) or is_far():
                break
        else:
            break  # the end
    if not taken and frame is not None:
        yield when, frame


def _bad_video(why: str) -> StreamerError:
    return StreamerError(
        ErrorCode.INVALID_REQUEST, f"The video {why}: send a shorter MP4 or WebM with H.264 or VP9."
    )


def _still(bgr: Any, quality: int, pts: float, meter: Meter | None) -> StillPicture:
    pixels: NDArray[np.uint8] = np.asarray(bgr)
    height, width = pixels.shape[:2]
    scale = min(1.0, MAX_SIDE / max(width, height))
    if scale < 1:
        size = (max(1, round(width * scale)), max(1, round(height * scale)))
        pixels = np.asarray(cv2.resize(pixels, size, interpolation=cv2.INTER_AREA), np.uint8)
    measures = (meter or Meter(bgr=True)).measure(pixels)
    return StillPicture(to_jpeg(pixels, quality), measures, pts)
