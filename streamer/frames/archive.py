"""Archive frames on a disk or in a bucket, for questions about times older than those in Redis.

`<root>/<stream id>/<UTC day>/<first ms>-<last ms>-<greatest change>-<random>.zip`: one zip file
holds about a minute of a stream: `frames.json` (a list of frame references), `0.jpg`, `1.jpg` ...
The file names suffice to select among thousands of files without opening any.
"""

import io
import json
import logging
import re
import secrets
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from streamer.domain.frame import FrameRef
from streamer.errors import ErrorCode, StreamerError
from streamer.frames.selection import select_frames

BUNDLE_SECONDS = 60.0
"""Time that one file spans, approximately; a crash loses at most this much."""

_BUNDLES_PER_FRAME = 4
"""Files read per selected frame."""

_STREAM = re.compile(r"str_[0-9a-f]{8,64}")
_DAY = re.compile(r"\d{4}-\d\d-\d\d")
_BUNDLE = re.compile(r"(\d+)-(\d+)-(\d+\.\d+)-[0-9a-f]+\.zip")
_INDEX = "frames.json"

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ArchivedFrame:
    """An archived frame and the place of its JPEG."""

    ref: FrameRef
    bundle: str
    position: int


class Archive:
    """All archived frames in a folder, or at a URL that fsspec supports.

    Raises StreamerError(ARCHIVE_UNAVAILABLE) for an address that fsspec does not support.
    """

    def __init__(self, url: str) -> None:
        import fsspec

        try:
            self._fs, root = fsspec.url_to_fs(url)
        except (ImportError, ValueError, OSError) as error:
            reason = re.sub(r"\s+", " ", str(error)).rstrip(".")
            raise self._unavailable(url, f"{type(error).__name__}: {reason}") from None
        self._root = str(root).rstrip("/")
        self._is_folder = "file" in self._fs.protocol
        self._url = url

    def require_writable(self) -> None:
        """Raise StreamerError(ARCHIVE_UNAVAILABLE) if the archive cannot be written."""
        probe = f"{self._root}/.writable-{secrets.token_hex(4)}"
        try:
            self._fs.makedirs(self._root, exist_ok=True)
            self._fs.pipe_file(probe, b"")
            self._fs.rm_file(probe)
        except Exception as error:  # fsspec backends raise errors of many types
            raise self._unavailable(self._url, type(error).__name__) from error

    def write(self, stream_id: str, frames: Sequence[tuple[FrameRef, bytes]]) -> None:
        """Store `frames` (oldest first) of a stream: all of them or, on an error, none."""
        times = [ref.time for ref, _ in frames]
        peak = max(ref.change for ref, _ in frames)
        name = (
            f"{min(times) * 1000:.0f}-{max(times) * 1000:.0f}-{peak:.4f}-{secrets.token_hex(4)}.zip"
        )
        folder = f"{self._root}/{stream_id}/{_day(min(times))}"
        content = io.BytesIO()
        with zipfile.ZipFile(content, "w") as bundle:  # uncompressed: a JPEG does not shrink
            records = [ref.model_dump(mode="json", exclude={"stream_id"}) for ref, _ in frames]
            bundle.writestr(_INDEX, json.dumps(records))
            for position, (_, jpeg) in enumerate(frames):
                bundle.writestr(f"{position}.jpg", jpeg)
        self._fs.makedirs(folder, exist_ok=True)
        # A bucket never shows half an object; a folder would show half a file.
        draft = f"{folder}/.{name}" if self._is_folder else f"{folder}/{name}"
        self._fs.pipe_file(draft, content.getvalue())
        if self._is_folder:
            self._fs.mv(draft, f"{folder}/{name}")

    def between(
        self, stream_id: str, since: float, until: float, count: int
    ) -> list[ArchivedFrame]:
        """Return frames captured in `[since, until)`, oldest first, to select `count` of.

        In a long range, only some files are read: those that cover its length and its moments of
        greatest change. Raises StreamerError(ARCHIVE_UNAVAILABLE).
        """
        try:
            bundles = self._bundles(stream_id, since, until)
            found: list[ArchivedFrame] = []
            for bundle in select_frames(bundles, max(1, count) * _BUNDLES_PER_FRAME):
                found += self._read_index(stream_id, bundle.id)
        except Exception as error:
            raise self._unavailable(self._url, type(error).__name__) from error
        return sorted(
            (frame for frame in found if since <= frame.ref.time < until),
            key=lambda frame: frame.ref.time,
        )

    def covered(self, stream_id: str, since: float, until: float) -> list[tuple[float, float]]:
        """Return the parts of `[since, until)` that were archived: first and last frame of each
        file, epoch seconds. Raises StreamerError(ARCHIVE_UNAVAILABLE)."""
        try:
            bundles = self._bundles(stream_id, since, until)
        except Exception as error:
            raise self._unavailable(self._url, type(error).__name__) from error
        names = (_BUNDLE.fullmatch(bundle.id.rsplit("/", 1)[1]) for bundle in bundles)
        return [(float(name[1]) / 1000, float(name[2]) / 1000) for name in names if name]

    def load(self, frames: Sequence[ArchivedFrame]) -> list[bytes]:
        """Return the JPEGs of `frames`, in order. Raises StreamerError(ARCHIVE_UNAVAILABLE)."""
        jpegs: dict[tuple[str, int], bytes] = {}
        try:
            for path in dict.fromkeys(frame.bundle for frame in frames):
                with self._fs.open(path, "rb") as file, zipfile.ZipFile(file) as bundle:
                    for frame in frames:
                        if frame.bundle == path:
                            jpegs[path, frame.position] = bundle.read(f"{frame.position}.jpg")
        except Exception as error:
            raise self._unavailable(self._url, type(error).__name__) from error
        return [jpegs[frame.bundle, frame.position] for frame in frames]

    def expire(self, before: float) -> int:
        """Delete the days that ended before `before` (epoch seconds); return their number.

        Deletes only folders named as this class names them.
        """
        deleted = 0
        for stream in self._folders(self._root, _STREAM):
            days = self._folders(stream, _DAY)
            old = [day for day in days if _end_of_day(day.rsplit("/", 1)[1]) <= before]
            for day in old:
                self._fs.rm(day, recursive=True)
            if old and len(old) == len(days) and not self._list(stream):
                self._fs.rmdir(stream)
            deleted += len(old)
        return deleted

    def _bundles(self, stream_id: str, since: float, until: float) -> list[FrameRef]:
        """Return the files that overlap a range, each as if it were one frame."""
        found = []
        first = _day(since - 2 * BUNDLE_SECONDS)
        for folder in self._folders(f"{self._root}/{stream_id}", _DAY):
            day = folder.rsplit("/", 1)[1]
            if day < first or _end_of_day(day) - 86_400 >= until:
                continue
            for path in self._list(folder):
                match = _BUNDLE.fullmatch(path.rsplit("/", 1)[1])
                if match is None or float(match[2]) / 1000 < since - 0.001:
                    continue
                start = float(match[1]) / 1000
                if start < until:
                    found.append(_as_frame(stream_id, path, start, float(match[3])))
        return sorted(found, key=lambda ref: ref.time)

    def _read_index(self, stream_id: str, path: str) -> Iterator[ArchivedFrame]:
        try:
            with self._fs.open(path, "rb") as file, zipfile.ZipFile(file) as bundle:
                records = [dict(record) for record in json.loads(bundle.read(_INDEX))]
        except (FileNotFoundError, zipfile.BadZipFile, KeyError, ValueError, TypeError) as error:
            _log.warning("The archive file %s is skipped (%s).", path, type(error).__name__)
            return
        for position, record in enumerate(records):
            try:
                ref = FrameRef.read(record | {"stream_id": stream_id})
            except StreamerError as error:
                _log.warning("Frame %d of %s is skipped (%s)", position, path, error.message)
            else:
                yield ArchivedFrame(ref, path, position)

    def _folders(self, path: str, name: "re.Pattern[str]") -> list[str]:
        return [child for child in self._list(path) if name.fullmatch(child.rsplit("/", 1)[1])]

    def _list(self, path: str) -> list[str]:
        self._fs.invalidate_cache(path)
        try:
            children: list[Any] = self._fs.ls(path, detail=False)
        except FileNotFoundError:
            return []
        return [str(child).rstrip("/") for child in children]

    @staticmethod
    def _unavailable(url: str, reason: str) -> StreamerError:
        from streamer.media.urls import redact

        return StreamerError(
            ErrorCode.ARCHIVE_UNAVAILABLE,
            f"The archive of frames at {redact(url)} cannot be used ({redact(reason)}): "
            "check the setting archive_url.",
        )


def archive_folder(url: str) -> Path | None:
    """Return the local folder of an archive's address; None if it is not on this machine."""
    from fsspec.core import split_protocol

    protocol, path = split_protocol(url)
    return Path(path) if protocol in (None, "file", "local") else None


def _as_frame(stream_id: str, path: str, start: float, change: float) -> FrameRef:
    return FrameRef(
        stream_id=stream_id, id=path, time=start, pts=0.0, width=1, height=1, change=change
    )


def _midnight(when: float) -> datetime:
    moment = datetime.fromtimestamp(max(0.0, when), UTC)
    return moment.replace(hour=0, minute=0, second=0, microsecond=0)


def _day(when: float) -> str:
    return f"{_midnight(when):%Y-%m-%d}"


def _end_of_day(day: str) -> float:
    try:
        return (
            datetime.strptime(day, "%Y-%m-%d").replace(tzinfo=UTC) + timedelta(days=1)
        ).timestamp()
    except ValueError:
        return float("inf")
