"""Routes of `/v1/files`: upload videos and pictures, in one request; see `uploads` for parts."""

import contextlib
from collections.abc import AsyncIterator, Iterator
from typing import Any

import anyio.from_thread
from fastapi import APIRouter, Request
from fastapi.responses import FileResponse
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.requests import ClientDisconnect

from streamer.api.dependencies import ClientDependency, Cursor, Limit
from streamer.api.middleware.idempotency import IdempotentId, IdempotentRoute
from streamer.api.schemas import FileList
from streamer.errors import ErrorCode, StreamerError
from streamer.service import Service
from streamer.sources.files import UploadedFile

router = APIRouter(prefix="/v1/files", tags=["files"], route_class=IdempotentRoute)

_FIELD = "file"
"""Field of the form that holds the file."""

_MAX_FORM = 64 << 10
"""Bytes of a form around its file."""

_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "properties": {_FIELD: {"type": "string", "format": "binary"}},
                    "required": [_FIELD],
                }
            }
        },
    }
}


class FilePart:
    """Reads the file out of a form's body as it arrives, so that it is never in memory as a whole.

    Args:
        content_type: header of the request.
        body: parts of the body.

    Raises:
        StreamerError: INVALID_REQUEST if this is no form.
    """

    def __init__(self, content_type: str, body: Iterator[bytes]) -> None:
        kind, options = parse_options_header(content_type)
        if kind != b"multipart/form-data" or b"boundary" not in options:
            raise StreamerError(
                ErrorCode.INVALID_REQUEST,
                "Send the file as a form (multipart/form-data) with the field 'file': "
                "curl -F file=@clip.mp4.",
            )
        self.filename: str | None = None
        """Name of the file, once its headers have been read."""
        self._body = body
        self._header = b""
        self._value = b""
        self._found: list[bytes] = []
        self._inside = self._over = False
        self._parser = MultipartParser(
            options[b"boundary"],
            {
                "on_part_begin": self._begin,
                "on_header_field": self._read_header,
                "on_header_value": self._read_value,
                "on_header_end": self._end_header,
                "on_part_data": self._read_data,
                "on_part_end": self._end,
                "on_end": self._finish,
            },
        )

    def chunks(self) -> Iterator[bytes]:
        """Yield the data of the file. Raises StreamerError(INVALID_REQUEST) for a broken form."""
        try:
            for part in self._body:
                self._parser.write(part)
                yield from self._found
                self._found = []
        except FormParserError as error:
            raise StreamerError(
                ErrorCode.INVALID_REQUEST, f"The form cannot be read ({error}): send it again."
            ) from None
        if self.filename is None:
            raise StreamerError(
                ErrorCode.INVALID_REQUEST,
                "The form has no file in its field 'file': add it.",
                _FIELD,
            )
        if not self._over:
            raise StreamerError(
                ErrorCode.INVALID_REQUEST,
                "The form ends before the end of the file: send it again.",
            )

    def _begin(self) -> None:
        self._inside = False

    def _read_header(self, data: bytes, start: int, end: int) -> None:
        self._header += data[start:end].lower()

    def _read_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _end_header(self) -> None:
        if self._header == b"content-disposition":
            _, options = parse_options_header(self._value)
            if options.get(b"name") == _FIELD.encode() and self.filename is None:
                self._inside = True
                self.filename = options.get(b"filename", b"").decode(errors="replace")
        self._header = self._value = b""

    def _read_data(self, data: bytes, start: int, end: int) -> None:
        if self._inside:
            self._found.append(data[start:end])

    def _end(self) -> None:
        self._inside = False

    def _finish(self) -> None:
        self._over = True


def body_of(request: Request) -> Iterator[bytes]:
    """Yield the body of a request as it arrives, in a thread of FastAPI's pool.

    Raises StreamerError(INVALID_REQUEST) if the connection ends before the body does.
    """
    stream: AsyncIterator[bytes] = request.stream()

    async def next_part() -> bytes:
        return await anext(stream)

    while True:
        try:
            yield anyio.from_thread.run(next_part)
        except StopAsyncIteration:
            return
        except ClientDisconnect:
            raise StreamerError(
                ErrorCode.INVALID_REQUEST,
                "The connection ended before all data had arrived: continue the upload.",
            ) from None


@router.post("", status_code=201, openapi_extra=_BODY)
def upload_file(request: Request, client: ClientDependency, new_id: IdempotentId) -> UploadedFile:
    """Upload a video or a picture as a form with the field `file`.

    It is opened at the end: what is no video or picture is refused. For large files over bad
    networks use the tus protocol at `/v1/uploads`, which resumes.
    """
    files = client.files
    file_id = f"file_{new_id}" if new_id is not None else None
    if file_id is not None and (earlier := _earlier(client, file_id)) is not None:
        return earlier
    part = FilePart(request.headers.get("content-type", ""), body_of(request))
    chunks = part.chunks()
    first = next(chunks, b"")  # the name comes before
    file = files.begin(
        part.filename or "", _bound(request, client.settings.max_file_bytes), file_id
    )
    try:
        files.append(file.id, 0, _after(first, chunks))
        return files.finish(file.id)
    except BaseException:
        _forget(client, file.id)
        raise


def _bound(request: Request, limit: int) -> int:
    """Return how many bytes the file of a form may have: the body also has the lines around it."""
    announced = request.headers.get("content-length", "")
    size = int(announced[:20]) if announced.isdecimal() else limit
    return limit if limit < size <= limit + _MAX_FORM else size


def _after(first: bytes, rest: Iterator[bytes]) -> Iterator[bytes]:
    yield first
    yield from rest


def _earlier(client: Service, file_id: str) -> UploadedFile | None:
    """Return a file that was complete when the API was killed; delete what was incomplete."""
    with contextlib.suppress(StreamerError):
        file = client.files.get(file_id)
        if file.status == "ready":
            return file
        client.files.delete(file_id)
    return None


def _forget(client: Service, file_id: str) -> None:
    with contextlib.suppress(StreamerError):  # what cannot be opened is deleted already
        client.files.delete(file_id)


@router.get("")
def list_files(client: ClientDependency, limit: Limit = 100, cursor: Cursor = None) -> FileList:
    """List the uploaded files, newest first."""
    files, next_cursor = client.files.page(limit, cursor)
    return FileList(files=files, next_cursor=next_cursor)


@router.get("/{file_id}")
def get_file(file_id: str, client: ClientDependency) -> UploadedFile:
    """Return what is known of an uploaded file."""
    return client.files.get(file_id)


@router.get(
    "/{file_id}/content",
    response_class=FileResponse,
    responses={200: {"content": {"application/octet-stream": {}}, "description": "The file."}},
)
def get_file_content(file_id: str, client: ClientDependency) -> FileResponse:
    """Return the data of an uploaded file; ranges are supported."""
    path = client.files.path(file_id)
    return FileResponse(
        path,
        media_type="application/octet-stream",
        filename=client.files.get(file_id).filename,
        headers={"X-Content-Type-Options": "nosniff"},  # it is the data of a stranger
    )


@router.delete("/{file_id}")
def delete_file(file_id: str, client: ClientDependency) -> UploadedFile:
    """Delete an uploaded file and return its record."""
    return client.files.delete(file_id)
