"""Upload a file in parts, by the tus protocol 1.0.0, so that a broken upload goes on.

Source of the protocol: https://tus.io/protocols/resumable-upload
"""

import base64
from os import PathLike
from pathlib import Path

from streamer.errors import ErrorCode, StreamerError
from streamer.http_client.call import Call, Flow
from streamer.sources.files import UploadedFile

_PART = 4 << 20
"""Bytes of one request."""

_MAX_CONFLICTS = 10
"""How often in a row the server may have another number of bytes than it was thought to have."""

_CONFLICT = 409

_TUS = {"Tus-Resumable": "1.0.0"}


def upload(path: str | PathLike[str], resume: str | None = None) -> Flow[UploadedFile]:
    """Upload a file, or the rest of one of which the upload `resume` has the beginning.

    Raises StreamerError(INVALID_REQUEST) if it cannot be read.
    """
    source = Path(path)
    try:
        with source.open("rb") as data:
            size = source.stat().st_size
            file: UploadedFile
            file = yield _begin(source.name, size) if resume is None else _state(resume)
            if file.bytes != size:
                raise StreamerError(
                    ErrorCode.INVALID_REQUEST,
                    f"{source} has {size:,} bytes, and the upload {file.id} is of {file.bytes:,}: "
                    "give the file that it was begun with.",
                )
            conflicts = 0
            while file.status != "ready":
                before = file.received
                data.seek(before)
                yield _append(file.id, before, data.read(_PART))
                file = yield _state(file.id)
                conflicts = 0 if file.received > before else conflicts + 1
                if conflicts > _MAX_CONFLICTS:
                    raise StreamerError(
                        ErrorCode.UPLOAD_CONFLICT,
                        f"The upload {file.id} does not grow: another program may be sending it.",
                    )
            return file
    except OSError as error:
        raise StreamerError(
            ErrorCode.INVALID_REQUEST,
            f"{source} cannot be read ({error.strerror}): give the path of a file.",
        ) from None


def _begin(name: str, size: int) -> Call[UploadedFile]:
    encoded = base64.b64encode(name.encode(errors="replace")).decode()
    headers = {**_TUS, "Upload-Length": str(size), "Upload-Metadata": f"filename {encoded}"}
    return Call("POST", "/v1/uploads", UploadedFile.read, headers=headers)


def _append(file_id: str, offset: int, data: bytes) -> Call[bytes]:
    headers = {
        **_TUS,
        "Upload-Offset": str(offset),
        "Content-Type": "application/offset+octet-stream",
    }
    # After a lost connection the server may have a part of it: its state says where to go on.
    return Call(
        "PATCH",
        f"/v1/uploads/{file_id}",
        bytes,
        content=data,
        headers=headers,
        patience=60.0,
        also=frozenset({_CONFLICT}),
    )


def _state(file_id: str) -> Call[UploadedFile]:
    return Call("GET", f"/v1/files/{file_id}", UploadedFile.read)
