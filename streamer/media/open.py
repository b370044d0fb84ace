"""How FFmpeg opens a source: its options, and whom it may talk to meanwhile."""

import io
import stat
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from streamer.domain import Transport
from streamer.errors import ErrorCode, StreamerError
from streamer.media import source_errors
from streamer.media.access_policy import AccessPolicy
from streamer.media.urls import SCHEMES, forbidden, is_device, is_remote

_TRANSPORTS = {
    # what most cameras do best, and through every firewall; the other one if they refuse it
    "auto": {"rtsp_transport": "tcp+udp", "rtsp_flags": "prefer_tcp"},
    "tcp": {"rtsp_transport": "tcp"},
    "udp": {"rtsp_transport": "udp"},
}
_PROTOCOLS = {
    "rtsp": "rtp,srtp,udp,tcp,tls,crypto",
    "rtmp": "rtmp,rtmps,ffrtmpcrypt,tcp,tls,crypto",
    "file": "file",
    "http": "",  # nothing: we fetch it ourselves
}

# Containers of video. Not among them: what reads other files that it names (concat, dash, imf, sdp,
# image sequences) and what makes pictures of anything (tty).
_CONTAINERS = (
    "mov,mp4,m4a,3gp,3g2,mj2;matroska,webm;avi;mpegts;mpeg;mpegvideo;flv;live_flv;asf;ogg;gif;apng;"
    "h264;hevc;vvc;av1;obu;ivf;m4v;mjpeg;mpjpeg;rm;mxf;nut;yuv4mpegpipe;wtv;dv;dhav;aac;mp3;webvtt"
).replace(";", ",")

_PLAYLIST = b"#EXTM3U"
_PICTURES = (b"--", b"\xff\xd8")
"""How one JPEG after the other begins, with headers between them or without."""

_PLAYLIST_SUFFIXES = frozenset({".m3u8", ".m3u"})
_HLS = {
    # these two would ask FFmpeg's own network code, which is not what has opened the files
    "http_persistent": "0",
    "http_multiple": "0",
    "extension_picky": "0",  # segments are looked at by their contents, and can be video only
}
_BUFFER = 1 << 18
"""Bytes that FFmpeg reads from us at once."""


class Opener(Protocol):
    """Opens files for FFmpeg, and knows what went wrong: FFmpeg cannot be told."""

    error: StreamerError | None

    def open(self, url: str, flags: int = 1, options: dict[str, str] | None = None) -> Any:
        """The file at `url`, which a playlist names."""

    def close(self) -> None:
        """Let go of all that was opened."""


@dataclass
class Opening:
    """Arguments of `av.open`, and who serves it; close it after the container."""

    arguments: dict[str, Any]
    opener: Opener | None = field(default=None)

    @property
    def error(self) -> StreamerError | None:
        """What went wrong so far with what we opened for FFmpeg."""
        return self.opener.error if self.opener is not None else None

    def close(self) -> None:
        """Let go of all that was opened."""
        if self.opener is not None:
            self.opener.close()


def prepare(
    url: str, *, live: bool, timeout: float, transport: Transport = "auto", access: AccessPolicy
) -> Opening:
    """How to open `url`; `timeout` bounds each call on the network, seconds.

    Raises StreamerError: STREAM_URL_FORBIDDEN, and why a file over http(s) cannot be had.
    """
    scheme = url.partition("://")[0].lower() if is_remote(url) else ""
    if scheme and scheme not in SCHEMES:
        raise forbidden(url)
    url = access.check(url)
    if is_device(url):
        return Opening({"file": url, "format": "v4l2"})
    options = {
        "protocol_whitelist": _PROTOCOLS[(scheme or "file").removesuffix("s")],
        # FFmpeg takes a restart far below the first timestamp for a wrapped counter; SourceClock
        # tells them apart
        "correct_ts_overflow": "0",
    }
    if live:
        # 0.5 s to the first picture instead of 2.8 s; three pictures tell the frame rate
        options |= {"analyzeduration": "500000", "fpsprobesize": "3"}
    microseconds = str(round(timeout * 1_000_000))
    if scheme in {"rtsp", "rtsps"}:
        options |= {"timeout": microseconds, "allowed_media_types": "video"}
        return Opening({"file": url, "options": options | _TRANSPORTS[transport]})
    if scheme in {"rtmp", "rtmps"}:
        # FFmpeg waits up to 20 s for sound that a camera may not have, whatever analyzeduration
        # says, but not beyond so many bytes. And `timeout` means: listen.
        options |= {"rw_timeout": microseconds, "probesize": "32768"}
        return Opening({"file": url, "options": options})
    options["format_whitelist"] = _CONTAINERS
    if scheme:
        return _over_http(url, options, access, live=live, timeout=timeout)
    return _local(url, options)


def _over_http(
    url: str, options: dict[str, str], access: AccessPolicy, *, live: bool, timeout: float
) -> Opening:
    from streamer.media.http_source import HttpOpener  # httpx takes a while

    opener = HttpOpener(url, access, live=live, timeout=timeout)
    try:
        file = opener.open_first()
    except BaseException:
        opener.close()
        raise
    arguments: dict[str, Any] = {"file": file, "options": options, "buffer_size": _BUFFER}
    head = file.fill()
    if head.lstrip(b"\xef\xbb\xbf").startswith(_PLAYLIST):
        arguments |= _playlist(options, opener)
    elif live and head.lstrip().startswith(_PICTURES):
        options["use_wallclock_as_timestamps"] = "1"  # else FFmpeg takes it for 25 a second
        arguments["format"] = "mpjpeg" if head.lstrip().startswith(b"--") else "mjpeg"
    return Opening(arguments, opener)


def _local(url: str, options: dict[str, str]) -> Opening:
    path = Path(url)
    try:
        mode = path.stat().st_mode
    except OSError:
        mode = stat.S_IFREG  # FFmpeg says what is wrong
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        raise StreamerError(
            ErrorCode.STREAM_NO_VIDEO, f"{url} is not a regular file: give a video file."
        )
    if path.suffix.lower() in _PLAYLIST_SUFFIXES:
        opener = _FolderOpener(path)
        first = opener.open(url)
        return Opening(
            {"file": first, "buffer_size": _BUFFER, **_playlist(options, opener)}, opener
        )
    # `file:` keeps FFmpeg from reading a name with a colon as a protocol.
    return Opening({"file": f"file:{url}", "options": options})


def _playlist(options: dict[str, str], opener: Opener) -> dict[str, Any]:
    allowed = {"format_whitelist": "hls,applehttp," + options["format_whitelist"]}
    return {"format": "hls", "options": options | allowed | _HLS, "io_open": opener.open}


class _FolderOpener:
    """Opens what a local playlist names, as long as it lies beside or below it."""

    def __init__(self, playlist: Path) -> None:
        self._playlist = playlist
        self._folder = playlist.resolve().parent
        self._files: list[BinaryIO] = []
        self.error: StreamerError | None = None

    def open(self, url: str, flags: int = 1, options: dict[str, str] | None = None) -> BinaryIO:
        """The file at `url`."""
        path = Path(url.removeprefix("file:")).resolve()
        inside = self._folder in path.parents and not flags & 2
        try:
            if not inside or not path.is_file():
                raise self._refused(inside)
            file = path.open("rb")
        except (OSError, StreamerError) as error:
            self.error = self.error or source_errors.from_exception(error, str(path))
            return io.BytesIO()
        self._files = [*(f for f in self._files if not f.closed), file]
        return file

    def close(self) -> None:
        """Close the files."""
        for file in self._files:
            file.close()

    def _refused(self, inside: bool) -> Exception:
        if inside:
            return FileNotFoundError()
        return StreamerError(
            ErrorCode.STREAM_URL_FORBIDDEN,
            f"{self._playlist} refers to something outside of its own folder: "
            "put the segments of a recording beside its playlist.",
        )
