"""Read JPEG pictures that a server sends one after another, with any kind of separator.

FFmpeg's reader of multipart streams wants a boundary first, part headers with a content type, and
trusts their lengths. Many cameras send less: no first boundary, no part types, or bare pictures.
So pictures are found by their own markers (ITU-T T.81, Annex B) and passed on to FFmpeg in the one
form that it reads without delay.
"""

from collections.abc import Callable
from typing import Protocol

JPEG_START = b"\xff\xd8\xff"

MAX_PICTURE_BYTES = 32 << 20
"""Bytes of one picture; longer data is not a picture."""

_BOUNDARY = b"frame"
_MARKER_SIZE = 2
_STANDALONE = frozenset({0x01, 0xD8, *range(0xD0, 0xD8)})
_END, _SCAN = 0xD9, 0xDA


class ByteSource(Protocol):
    """Gives bytes as they arrive."""

    def read(self, size: int) -> bytes:
        """Return up to `size` bytes as soon as there are any; none at the end."""


class JpegSplitter:
    """Finds whole JPEG pictures in a stream of bytes and skips everything between them."""

    def __init__(self) -> None:
        self._data = bytearray()
        self._at = 0  # everything before has been examined
        self._in_scan = False

    def feed(self, data: bytes) -> list[bytes]:
        """Take the next bytes. Return the pictures that are complete now.

        Raises ValueError when a picture is larger than MAX_PICTURE_BYTES.
        """
        self._data += data
        pictures = []
        while (picture := self._next()) is not None:
            pictures.append(picture)
        if len(self._data) > MAX_PICTURE_BYTES:
            raise ValueError("a picture without an end")
        return pictures

    def _next(self) -> bytes | None:
        if self._at == 0 and not self._find_start():
            return None
        while (end := self._advance()) is None:
            pass
        if end < 0:
            return None
        picture = bytes(self._data[:end])
        self._restart(end)
        return picture

    def _find_start(self) -> bool:
        start = self._data.find(JPEG_START)
        if start < 0:
            del self._data[: max(0, len(self._data) - len(JPEG_START) + 1)]
            return False
        del self._data[:start]
        self._at = _MARKER_SIZE
        return True

    def _advance(self) -> int | None:
        """Pass one segment. Return the end of the picture, -1 when more bytes are needed."""
        if self._in_scan:
            return self._pass_scan()
        data, at = self._data, self._at
        if len(data) < at + _MARKER_SIZE:
            return -1
        if data[at] != 0xFF:
            self._restart(_MARKER_SIZE)  # not a picture after all: look for the next one
            return -1 if not self._find_start() else None
        marker = data[at + 1]
        if marker == _END:
            return at + _MARKER_SIZE
        if marker == 0xFF:  # padding
            self._at += 1
        elif marker in _STANDALONE:
            self._at += _MARKER_SIZE
        else:
            length = int.from_bytes(data[at + 2 : at + 4], "big")
            if len(data) < at + 4 or len(data) < at + _MARKER_SIZE + length:
                return -1
            self._at += _MARKER_SIZE + length
            self._in_scan = marker == _SCAN
        return None

    def _pass_scan(self) -> int | None:
        """Pass entropy-coded data, in which 0xFF is followed by 0 or a restart marker."""
        while True:
            at = self._data.find(b"\xff", self._at)
            if at < 0 or at + 1 >= len(self._data):
                self._at = len(self._data) if at < 0 else at
                return -1
            following = self._data[at + 1]
            if following == 0 or 0xD0 <= following <= 0xD7:
                self._at = at + _MARKER_SIZE
                continue
            self._at, self._in_scan = at, False
            return None

    def _restart(self, consumed: int) -> None:
        del self._data[:consumed]
        self._at, self._in_scan = 0, False


class JpegStream:
    """A file that FFmpeg reads as `mpjpeg`, made of the pictures that a server sends.

    A server that sends one picture and ends is asked again, for as long as the stream is open: it
    is a snapshot URL. One that ends after several pictures has ended.

    Args:
        open: asks the server; called for the first picture and for each further snapshot.
        wait: sleeps until the next snapshot is due; returns False when the stream is closed.
        chunk: bytes that are read at once.
    """

    def __init__(
        self, open: Callable[[], ByteSource], wait: Callable[[], bool], chunk: int = 1 << 16
    ) -> None:
        self._open = open
        self._wait = wait
        self._chunk = chunk
        self._source = open()
        self._splitter = JpegSplitter()
        self._pictures = 0  # of this answer
        self._ready = bytearray()

    def read(self, size: int) -> bytes:
        """Return up to `size` bytes as soon as a picture is complete; none at the end."""
        while not self._ready:
            data = self._source.read(self._chunk)
            if not data and not self._ask_again():
                return b""
            try:
                pictures = self._splitter.feed(data)
            except ValueError:
                return b""
            self._pictures += len(pictures)
            for picture in pictures:
                self._ready += as_part(picture)
        piece = bytes(self._ready[:size])
        del self._ready[:size]
        return piece

    def _ask_again(self) -> bool:
        if self._pictures != 1 or not self._wait():
            return False
        self._source, self._splitter, self._pictures = self._open(), JpegSplitter(), 0
        return True


def as_part(picture: bytes) -> bytes:
    """Return `picture` as one part of a multipart stream."""
    return b"--%s\r\nContent-Type: image/jpeg\r\nContent-Length: %d\r\n\r\n%s\r\n" % (
        _BOUNDARY,
        len(picture),
        picture,
    )
