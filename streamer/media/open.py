"""Prepare how FFmpeg opens a source: its options, and what it may access."""

import io
import itertools
import stat
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from nvila_core.file_kind import HEIC, file_kind, read_head
from streamer.domain.stream import Transport
from streamer.errors import ErrorCode, StreamerError
from streamer.media import source_errors
from streamer.media.access_policy import AccessPolicy
from streamer.media.jpeg_stream import JpegStream
from streamer.media.urls import (
    SCHEMES,
    forbidden_scheme,
    is_device,
    is_remote,
    local_source,
    path_of,
    with_password,
)

_TRANSPORTS = {
    # TCP works with most cameras and through firewalls; UDP if the camera refuses TCP
    "auto": {"rtsp_transport": "tcp+udp", "rtsp_flags": "prefer_tcp"},
    "tcp": {"rtsp_transport": "tcp"},
    "udp": {"rtsp_transport": "udp"},
}
_PROTOCOLS = {
    "rtsp": "rtp,srtp,udp,tcp,tls,crypto",
    "rtmp": "rtmp,rtmps,ffrtmpcrypt,tcp,tls,crypto",
    "file": "file",
    "http": "",  # none: http_source fetches the data
}

# Containers of video, without formats that read other files (concat, dash, imf, sdp, image
# sequences) and without tty, which renders any text as video.
_CONTAINERS = (
    "mov,mp4,m4a,3gp,3g2,mj2;matroska,webm;avi;mpegts;mpeg;mpegvideo;flv;live_flv;asf;ogg;gif;apng;"
    "h264;hevc;vvc;av1;obu;ivf;m4v;mjpeg;mpjpeg;rm;mxf;nut;yuv4mpegpipe;wtv;dv;dhav;aac;mp3;webvtt"
).replace(";", ",")

_PLAYLIST = b"#EXTM3U"
_JPEG_STARTS = (b"--", b"\xff\xd8")
"""First bytes of JPEGs, with part headers or without."""

MIN_POLL, MAX_POLL = 0.2, 60.0
"""Seconds between two requests of a snapshot URL, at least and at most."""

_PLAYLIST_SUFFIXES = frozenset({".m3u8", ".m3u"})
_HLS = {
    # these two would use FFmpeg's network code, which did not open the files
    "http_persistent": "0",
    "http_multiple": "0",
    "extension_picky": "0",  # the content is checked instead, and only video is accepted
}
_BUFFER = 1 << 18
"""Bytes that FFmpeg reads at once."""


class Opener(Protocol):
    """Opens files for FFmpeg, and keeps the error, which FFmpeg cannot pass on."""

    error: StreamerError | None

    def open(self, url: str, flags: int = 1, options: dict[str, str] | None = None) -> Any:
        """Open the file at `url`, which a playlist names."""

    def interrupt(self) -> None:
        """End all waits; may be called from another thread."""

    def close(self) -> None:
        """Close all files."""


@dataclass
class Opening:
    """Arguments of `av.open`, and the opener of its files. Close it after the container."""

    arguments: dict[str, Any]
    opener: Opener | None = field(default=None)
    head: bytes | None = None
    """First bytes of what a server sent."""

    @property
    def error(self) -> StreamerError | None:
        """Error of the opener, if any."""
        return self.opener.error if self.opener is not None else None

    def interrupt(self) -> None:
        """End all waits of the opener; may be called from another thread."""
        if self.opener is not None:
            self.opener.interrupt()

    def close(self) -> None:
        """Close all files."""
        if self.opener is not None:
            self.opener.close()


def prepare(
    url: str,
    *,
    live: bool,
    timeout: float,
    transport: Transport = "auto",
    access: AccessPolicy,
    poll: float = 1.0,
) -> Opening:
    """Return how to open `url`.

    Args:
        timeout: seconds that each network call may take.
        poll: seconds between two requests of a snapshot URL.

    Raises StreamerError: STREAM_URL_FORBIDDEN, or why a file over http(s) cannot be opened.
    """
    scheme = url.partition("://")[0].lower() if is_remote(url) else ""
    if scheme and scheme not in SCHEMES:
        raise forbidden_scheme(url)
    url = access.check(url)
    if is_device(url):
        return Opening({"file": url, "format": "v4l2"})
    options = {
        "protocol_whitelist": _PROTOCOLS[(scheme or "file").removesuffix("s")],
        # FFmpeg takes a restart far below the first timestamp for a wrapped counter; SourceClock
        # distinguishes them
        "correct_ts_overflow": "0",
    }
    if live:
        # 0.5 s to the first frame instead of 2.8 s; three frames suffice for the frame rate
        options |= {"analyzeduration": "500000", "fpsprobesize": "3"}
    microseconds = str(round(timeout * 1_000_000))
    if scheme in {"rtsp", "rtsps"}:
        options |= {"timeout": microseconds, "allowed_media_types": "video"}
        file = with_password(url)
        return Opening({"file": file, "options": options | _TRANSPORTS[transport]})
    if scheme in {"rtmp", "rtmps"}:
        # FFmpeg ignores analyzeduration here and waits up to 20 s for audio that a camera may not
        # have; probesize ends that wait. RTMP has rw_timeout because its `timeout` means: listen.
        options |= {"rw_timeout": microseconds, "probesize": "32768"}
        return Opening({"file": with_password(url), "options": options})
    options["format_whitelist"] = _CONTAINERS
    if scheme:
        return _over_http(url, options, access, live=live, timeout=timeout, poll=poll)
    return _local(url, options)


def _over_http(
    url: str,
    options: dict[str, str],
    access: AccessPolicy,
    *,
    live: bool,
    timeout: float,
    poll: float,
) -> Opening:
    from streamer.media.http_source import HttpOpener  # slow to import

    opener = HttpOpener(url, access, live=live, timeout=timeout)
    try:
        file = opener.open_first()
    except BaseException:
        opener.close()
        raise
    arguments: dict[str, Any] = {"file": file, "options": options, "buffer_size": _BUFFER}
    head = file.fill()
    if file_kind(head) is HEIC:  # FFmpeg would show one of its tiles
        opener.close()
        raise source_errors.other_kind(url, HEIC)
    if head.lstrip(b"\xef\xbb\xbf").startswith(_PLAYLIST):
        arguments |= _playlist(options, opener)
    elif live and _has_pictures(file.content_type, head):
        # otherwise FFmpeg assumes 25 fps, and waits for several pictures to tell the rate
        options |= {"use_wallclock_as_timestamps": "1", "fpsprobesize": "0"}
        arguments["format"] = "mpjpeg"
        poll = max(MIN_POLL, min(poll, MAX_POLL, timeout / 2))
        answers = itertools.chain([file], iter(lambda: opener.open_again(), None))
        arguments["file"] = JpegStream(lambda: next(answers), lambda: opener.wait(poll))
    return Opening(arguments, opener, head)


def _has_pictures(content_type: str, head: bytes) -> bool:
    """Return whether an HTTP answer holds JPEG pictures, whatever it is called."""
    if content_type.startswith(("multipart/", "image/jp")) or b"image/jpeg" in head[:512].lower():
        return True
    return head.lstrip().startswith(_JPEG_STARTS)


def _local(url: str, options: dict[str, str]) -> Opening:
    path = Path(path_of(url))
    try:
        mode = path.stat().st_mode
    except OSError:
        mode = stat.S_IFREG  # FFmpeg reports what is wrong
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        raise StreamerError(
            ErrorCode.STREAM_NO_VIDEO, f"{url} is not a regular file: give a video file."
        )
    if stat.S_ISREG(mode) and file_kind(read_head(path)) is HEIC:
        raise source_errors.other_kind(url, HEIC)  # FFmpeg would show one of its tiles
    if path.suffix.lower() in _PLAYLIST_SUFFIXES:
        opener = _FolderOpener(path)
        first = opener.open(str(path))
        return Opening(
            {"file": first, "buffer_size": _BUFFER, **_playlist(options, opener)}, opener
        )
    if str(path) != url:  # FFmpeg would take the name for UTF-8
        file = path.open("rb")
        return Opening({"file": file, "buffer_size": _BUFFER, "options": options}, _OneFile(file))
    # `file:` prevents FFmpeg from reading a name with a colon as a protocol.
    return Opening({"file": f"file:{url}", "options": options})


def _playlist(options: dict[str, str], opener: Opener) -> dict[str, Any]:
    allowed = {"format_whitelist": "hls,applehttp," + options["format_whitelist"]}
    return {"format": "hls", "options": options | allowed | _HLS, "io_open": opener.open}


class _OneFile:
    """Closes a file that names no other."""

    error: StreamerError | None = None

    def __init__(self, file: BinaryIO) -> None:
        self._file = file

    def open(self, url: str, flags: int = 1, options: dict[str, str] | None = None) -> BinaryIO:
        """Open nothing: FFmpeg reads an empty file."""
        return io.BytesIO()

    def interrupt(self) -> None:
        """Do nothing: reading a file does not wait."""

    def close(self) -> None:
        """Close the file."""
        self._file.close()


class _FolderOpener:
    """Opens the files that a local playlist names, if they are in its folder or below."""

    def __init__(self, playlist: Path) -> None:
        self._playlist = playlist
        self._folder = playlist.resolve().parent
        self._files: list[BinaryIO] = []
        self.error: StreamerError | None = None

    def open(self, url: str, flags: int = 1, options: dict[str, str] | None = None) -> BinaryIO:
        """Open the file at `url`."""
        path = Path(url.removeprefix("file:")).resolve()
        inside = self._folder in path.parents and not flags & 2
        try:
            if not inside or not path.is_file():
                raise self._refused(inside)
            file = path.open("rb")
        except (OSError, StreamerError) as error:
            self.error = self.error or source_errors.from_exception(error, local_source(str(path)))
            return io.BytesIO()
        self._files = [*(f for f in self._files if not f.closed), file]
        return file

    def interrupt(self) -> None:
        """Do nothing: files on disk are not waited for."""

    def close(self) -> None:
        """Close the files."""
        for file in self._files:
            file.close()

    def _refused(self, inside: bool) -> Exception:
        if inside:
            return FileNotFoundError()
        return StreamerError(
            ErrorCode.STREAM_URL_FORBIDDEN,
            f"{self._playlist} refers to a file outside its folder: "
            "put the segments of a recording next to its playlist.",
        )
