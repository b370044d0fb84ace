"""Decide whether a source is live or a recording, by opening it."""

import contextlib
from urllib.parse import urljoin

from streamer.errors import StreamerError
from streamer.media.access_policy import AccessPolicy
from streamer.media.http_source import HttpFile, HttpOpener
from streamer.media.jpeg_stream import JPEG_START, JpegSplitter
from streamer.media.urls import guess_live, is_remote

MAX_PLAYLIST_BYTES = 4 << 20

_PLAYLIST = b"#EXTM3U"
_HTTP = ("http://", "https://")
_TRAILER = 64
"""Bytes that may follow a picture that is a whole file."""


def detect_live(url: str, *, access: AccessPolicy, timeout: float) -> bool:
    """Return whether the end of `url` is a lost connection.

    Files are recordings; RTSP, RTMP and devices are live. Over HTTP the answer of the server
    decides, since a suffix says nothing (`/api/stream.mp4` may never end): a playlist is a
    recording when it has an end (RFC 8216, EXT-X-ENDLIST); pictures are live, one by one or in a
    multipart stream; anything else is a recording when it has a length.

    Args:
        timeout: seconds that each network call may take.

    Raises StreamerError: why the address cannot be opened.
    """
    if not (is_remote(url) and url.lower().startswith(_HTTP)):
        return guess_live(url)
    with contextlib.closing(HttpOpener(url, access, live=True, timeout=timeout)) as opener:
        file = opener.open_first()
        head = file.fill()
        if head.lstrip(b"\xef\xbb\xbf").startswith(_PLAYLIST):
            return not _has_end(opener, file)
        if file.content_type.startswith("multipart/") or file.size is None:
            return True
        return head.startswith(JPEG_START) and _is_one_picture(file)


def _has_end(opener: HttpOpener, playlist: HttpFile) -> bool:
    lines = _lines(playlist)
    for line, following in zip(lines, [*lines[1:], ""], strict=True):
        if line.startswith("#EXT-X-STREAM-INF"):  # a list of playlists: look into the first one
            variant = opener.open(urljoin(playlist.name, following))
            lines = _lines(variant)
            break
    ends = ("#EXT-X-ENDLIST", "#EXT-X-PLAYLIST-TYPE:VOD")
    return any(line.startswith(ends) for line in lines)


def _lines(file: HttpFile) -> list[str]:
    data = bytearray()
    while len(data) < MAX_PLAYLIST_BYTES and (piece := file.read(1 << 16)):
        data += piece
    return data.decode(errors="replace").splitlines()


def _is_one_picture(file: HttpFile) -> bool:
    """Return whether the file is one JPEG, not several in a row."""
    splitter = JpegSplitter()
    while piece := file.read(1 << 16):
        try:
            pictures = splitter.feed(piece)
        except ValueError:
            return False
        if pictures:
            assert file.size is not None
            return file.size - len(pictures[0]) < _TRAILER
    return False


def is_live_source(url: str, live: bool | None, *, access: AccessPolicy, timeout: float) -> bool:
    """Return `live` if it is given, else what opening `url` tells, else what its form suggests."""
    if live is not None:
        return live
    try:
        return detect_live(url, access=access, timeout=timeout)
    except StreamerError:
        return guess_live(url)
