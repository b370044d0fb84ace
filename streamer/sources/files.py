"""Uploaded files: videos and pictures that users send, stored in a folder under limits."""

import contextlib
import errno
import fcntl
import io
import math
import os
import re
import secrets
import shutil
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Literal

from pydantic import Field

from streamer.cursors import page_of
from streamer.domain.ids import new_id
from streamer.domain.record import Record
from streamer.domain.timestamp import Timestamp, utc_now
from streamer.errors import ErrorCode, StreamerError
from streamer.settings import Settings

MAX_FILES = 10_000
"""Maximum number of stored files."""

MAX_FILENAME = 255
"""Maximum characters of the name that a user gives a file."""

MIN_FREE_BYTES = 256 << 20
"""Bytes of the disk that uploads leave free."""

_ID = re.compile(r"file_[0-9a-f]{16}")
_READY, _UPLOADING = ".json", ".upload"
"""Suffixes of the records of complete files, and of uploads that go on."""

_SWEEP_INTERVAL = 600.0
"""Seconds between two looks for expired files."""

_UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f\ud800-\udfff]")


class MediaInfo(Record):
    """What an uploaded file shows; unknown values are null."""

    format: str = Field(description="container")
    codec: str
    width: int = Field(description="pixels")
    height: int = Field(description="pixels")
    duration: float | None = Field(default=None, description="seconds")
    fps: float | None = Field(default=None, description="frames per second")


class UploadedFile(Record):
    """A file that was uploaded, or is being uploaded."""

    id: str
    filename: str = Field(description="the name that the user gave it")
    status: Literal["uploading", "ready"]
    bytes: int = Field(description="size; while it is uploaded the size that was announced")
    received: int = Field(description="bytes that have arrived")
    created_at: Timestamp
    expires_at: Timestamp = Field(description="when it is deleted, unless it is used before")
    media: MediaInfo | None = Field(default=None, description="null while it is uploaded")


@dataclass(frozen=True)
class _Stored:
    """What the folder says of a file, without its record."""

    id: str
    status: Literal["uploading", "ready"]
    received: int
    order: int
    """When its last byte came, microseconds since the Unix epoch."""
    expires: float
    """Seconds since the Unix epoch."""


class Files:
    """The uploaded files in `settings.files_dir`: for each the data, and its record as JSON.

    A record is last modified when its file expires, so that a look at the folder tells what has
    expired and what the rest takes, and records need not be read. A file is opened and one frame of
    it decoded when it is complete: what holds no video or picture is refused. Several processes may
    use the folder at once.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self.folder = settings.files_dir or settings.data_dir / "files"
        self._swept_at = -math.inf

    def begin(self, filename: str, size: int, file_id: str | None = None) -> UploadedFile:
        """Accept an upload of `size` bytes; `append` adds the data. It gets a new id by default.

        Raises StreamerError: REQUEST_TOO_LARGE; STORAGE_FULL; INVALID_REQUEST for an empty file.
        """
        limit = self._settings.max_file_bytes
        if size < 1:
            raise StreamerError(
                ErrorCode.INVALID_REQUEST, "The file is empty: send the whole file."
            )
        if size > limit:
            raise StreamerError(
                ErrorCode.REQUEST_TOO_LARGE,
                f"The file has {size:,} bytes, {limit:,} are allowed: send a smaller one, or raise "
                "the setting max_file_bytes.",
            )
        with self._storing(), self._locked():
            self._require_room(size, self._kept())
            now = utc_now()
            file = UploadedFile(
                id=file_id or new_id("file"),
                filename=_UNPRINTABLE.sub("", filename)[:MAX_FILENAME] or "unnamed",
                status="uploading",
                bytes=size,
                received=0,
                created_at=now,
                expires_at=self._expiry(now),
            )
            self._data(file.id).touch(mode=0o600)
            self._write(file)
        return file

    def append(self, file_id: str, offset: int, chunks: Iterable[bytes]) -> UploadedFile:
        """Add data at `offset`, which must be `received`; what arrived stays if `chunks` raises.

        The last byte completes the file, which is then opened.

        Raises StreamerError: UNKNOWN_FILE; UPLOAD_CONFLICT if the offset is another, or another
        request adds data; REQUEST_TOO_LARGE if more bytes come than were announced; STORAGE_FULL; a
        stream code if the complete file cannot be opened (it is deleted then).
        """
        with self._storing(), self._writing(file_id) as (file, data):
            if offset != file.received or file.status != "uploading":
                raise StreamerError(
                    ErrorCode.UPLOAD_CONFLICT,
                    f"The file has {file.received} of {file.bytes} bytes: continue there.",
                )
            data.seek(offset)
            for chunk in chunks:
                offset += len(chunk)
                if offset > file.bytes:
                    raise StreamerError(
                        ErrorCode.REQUEST_TOO_LARGE,
                        f"More than {file.bytes:,} bytes came, which were announced or are "
                        "allowed: begin a new upload, or raise the setting max_file_bytes.",
                    )
                data.write(chunk)
        file = self.get(file_id)
        return self._complete(file) if file.received == file.bytes else file

    def finish(self, file_id: str) -> UploadedFile:
        """Complete a file of which fewer bytes came than were announced, if that was a guess.

        Raises StreamerError: UNKNOWN_FILE; INVALID_REQUEST if nothing came; a stream code if it
        cannot be opened (it is deleted then).
        """
        file = self.get(file_id)
        if file.status == "ready":
            return file
        if not file.received:
            self.delete(file_id)
            raise StreamerError(
                ErrorCode.INVALID_REQUEST, "The file is empty: send the whole file."
            )
        return self._complete(file.model_copy(update={"bytes": file.received}))

    def get(self, file_id: str) -> UploadedFile:
        """Return a file. Raises StreamerError(UNKNOWN_FILE)."""
        try:
            if not _ID.fullmatch(file_id):
                raise FileNotFoundError
            file = self._read(file_id)
            if file.status == "uploading":  # what arrived is known even if the API was killed
                arrived = self._data(file_id).stat().st_size
                file = file.model_copy(update={"received": arrived})
            return file
        except OSError:
            raise StreamerError(
                ErrorCode.UNKNOWN_FILE,
                f"There is no file '{file_id[:80]}': it was deleted, or has expired.",
            ) from None

    def page(
        self, limit: int = 100, cursor: str | None = None
    ) -> tuple[list[UploadedFile], str | None]:
        """Return up to `limit` files after `cursor`, newest first, and the cursor of the rest.

        Raises StreamerError(INVALID_REQUEST) for an invalid cursor.
        """
        page, following = page_of(self._kept(), _place, limit, cursor, descending=True)
        files = []
        for stored in page:
            with contextlib.suppress(StreamerError):  # it was just deleted
                files.append(self.get(stored.id))
        return files, following

    def path(self, file_id: str) -> Path:
        """Return the path of a complete file, and keep it for another `files_days`.

        Raises StreamerError: UNKNOWN_FILE; UPLOAD_CONFLICT if it is still being uploaded.
        """
        file = self.get(file_id)
        if file.status != "ready":
            raise StreamerError(
                ErrorCode.UPLOAD_CONFLICT,
                f"Only {file.received} of {file.bytes} bytes of {file_id} have arrived: finish the "
                "upload first.",
            )
        with self._storing():
            self._write(file.model_copy(update={"expires_at": self._expiry(utc_now())}))
        return self._data(file_id)

    def delete(self, file_id: str) -> UploadedFile:
        """Delete a file and return its record; programs that read it read on.

        Raises StreamerError(UNKNOWN_FILE).
        """
        file = self.get(file_id)
        for path in (self._record(file_id), self._draft(file_id), self._data(file_id)):
            path.unlink(missing_ok=True)
        return file

    def sweep(self) -> None:
        """Delete the files whose time is over, if it is time to look. Call it often."""
        now = time.monotonic()
        if now - self._swept_at >= _SWEEP_INTERVAL:
            self._swept_at = now
            self._kept()

    def _kept(self) -> list[_Stored]:
        """Delete the files whose time is over; return the others."""
        now = utc_now()
        kept = []
        for stored in self._stored():
            if stored.expires > now.timestamp():
                kept.append(stored)
                continue
            with contextlib.suppress(StreamerError):
                file = self.get(stored.id)
                if file.expires_at <= now:
                    self.delete(stored.id)
                else:  # the folder was copied without its dates
                    self._write(file)
                    kept.append(stored)
        return kept

    def _stored(self) -> Iterator[_Stored]:
        """Look at the folder, and yield what it has; no record is read."""
        seen: dict[str, os.stat_result] = {}
        with contextlib.suppress(FileNotFoundError), os.scandir(self.folder) as entries:
            for entry in entries:
                with contextlib.suppress(FileNotFoundError):  # it was just renamed or deleted
                    seen[entry.name] = entry.stat()
        for file_id, data in seen.items():
            ready, draft = seen.get(file_id + _READY), seen.get(file_id + _UPLOADING)
            record = ready or draft
            if record is not None and _ID.fullmatch(file_id):
                yield _Stored(
                    id=file_id,
                    status="ready" if ready is not None else "uploading",
                    received=data.st_size,
                    order=data.st_mtime_ns // 1000,
                    expires=record.st_mtime,
                )

    def _require_room(self, size: int, files: list[_Stored]) -> None:
        announced = {stored.id: stored.received for stored in files}
        for stored in files:
            if stored.status == "uploading":
                with contextlib.suppress(StreamerError):
                    announced[stored.id] = self.get(stored.id).bytes
        used = sum(announced.values())
        coming = used - sum(stored.received for stored in files)
        free = shutil.disk_usage(self.folder).free - coming
        limit = self._settings.max_files_bytes
        if len(files) >= MAX_FILES or used + size > limit:
            reason = f"{len(files)} uploaded files take {used:,} of {limit:,} bytes"
            advice = "delete some, or raise the setting max_files_bytes"
        elif free - size < MIN_FREE_BYTES:
            reason = f"The disk of {self.folder} has too little room for {size:,} bytes"
            advice = "free some, or choose another files_dir"
        else:
            return
        raise StreamerError(ErrorCode.STORAGE_FULL, f"{reason}: {advice}.")

    def _complete(self, file: UploadedFile) -> UploadedFile:
        from streamer.media.source import inspect_source

        try:
            info = inspect_source(str(self._data(file.id)), self._settings.open_timeout, live=False)
        except StreamerError as error:
            self.delete(file.id)
            message = error.message.replace(str(self._data(file.id)), file.filename)
            raise StreamerError(error.code, message) from None
        media = MediaInfo(
            format=info.format,
            codec=info.codec,
            width=info.width,
            height=info.height,
            duration=info.duration,
            fps=info.fps,
        )
        file = file.model_copy(update={"status": "ready", "media": media})
        with self._storing():
            self._write(file)
        return file

    def _expiry(self, now: datetime) -> datetime:
        return now + timedelta(days=self._settings.files_days)

    def _data(self, file_id: str) -> Path:
        return self.folder / file_id

    def _record(self, file_id: str) -> Path:
        return self.folder / f"{file_id}{_READY}"

    def _draft(self, file_id: str) -> Path:
        """Return the path of the record while the file is uploaded."""
        return self.folder / f"{file_id}{_UPLOADING}"

    def _read(self, file_id: str) -> UploadedFile:
        # The record takes the place of the draft, maybe between two looks.
        for path in (self._record(file_id), self._draft(file_id)):
            with contextlib.suppress(FileNotFoundError):
                return UploadedFile.read(path.read_bytes())
        return UploadedFile.read(self._record(file_id).read_bytes())

    def _write(self, file: UploadedFile) -> None:
        # Another request may write it at this moment.
        new = self.folder / f"{file.id}.{secrets.token_hex(4)}.new"
        new.write_text(file.model_dump_json())
        os.utime(new, (file.expires_at.timestamp(), file.expires_at.timestamp()))
        if file.status == "uploading":
            new.replace(self._draft(file.id))
        else:
            new.replace(self._record(file.id))
            self._draft(file.id).unlink(missing_ok=True)

    @contextlib.contextmanager
    def _writing(self, file_id: str) -> Iterator[tuple[UploadedFile, io.FileIO]]:
        """Open the data of a file for this request alone, without a buffer."""
        self.get(file_id)
        with io.FileIO(self._data(file_id), "r+") as data:
            try:
                fcntl.flock(data, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise StreamerError(
                    ErrorCode.UPLOAD_CONFLICT,
                    "Another request is sending this file: wait for its end.",
                ) from None
            yield self.get(file_id), data

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """Let one upload begin at a time, so that together they stay within the limits."""
        with (self.folder / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    @contextlib.contextmanager
    def _storing(self) -> Iterator[None]:
        """Raise StreamerError(STORAGE_FULL) for what the disk refuses."""
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            yield
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS):
                raise
            raise StreamerError(
                ErrorCode.STORAGE_FULL,
                f"{self.folder} cannot be written ({os.strerror(error.errno)}): free some space, "
                "or choose another files_dir.",
            ) from None


def _place(stored: _Stored) -> tuple[int, str]:
    return stored.order, stored.id
