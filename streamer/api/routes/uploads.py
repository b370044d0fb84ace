"""Routes of `/v1/uploads`: resumable uploads by the tus protocol 1.0.0, for any client of it.

A complete upload is a file with the same id, at `/v1/files`.
Source of the protocol: https://tus.io/protocols/resumable-upload
"""

import base64
import binascii
from email.utils import format_datetime

from fastapi import APIRouter, Depends, Request, Response

from streamer.api.dependencies import ClientDependency
from streamer.api.routes.files import body_of
from streamer.errors import ErrorCode, StreamerError
from streamer.sources.files import UploadedFile

TUS_VERSION = "1.0.0"
"""The version of the protocol."""

_CONTENT_TYPE = "application/offset+octet-stream"


def _require_tus(request: Request, response: Response) -> None:
    response.headers["Tus-Resumable"] = TUS_VERSION
    if request.headers.get("tus-resumable") != TUS_VERSION:
        raise StreamerError(
            ErrorCode.INVALID_REQUEST,
            f"This path speaks tus {TUS_VERSION}: send the header 'Tus-Resumable: {TUS_VERSION}', "
            "or upload in one request to /v1/files.",
            "Tus-Resumable",
        )


router = APIRouter(prefix="/v1/uploads", tags=["files"])
_TUS = [Depends(_require_tus)]


@router.options("", status_code=204)
def describe_uploads(client: ClientDependency, response: Response) -> None:
    """Say what this server can do."""
    response.headers.update(
        {
            "Tus-Resumable": TUS_VERSION,
            "Tus-Version": TUS_VERSION,
            "Tus-Extension": "creation,expiration,termination",
            "Tus-Max-Size": str(client.settings.max_file_bytes),
        }
    )


@router.post("", status_code=201, dependencies=_TUS)
def begin_upload(request: Request, client: ClientDependency, response: Response) -> UploadedFile:
    """Begin an upload of `Upload-Length` bytes, at the address in `Location`."""
    file = client.files.begin(
        _filename(request.headers.get("upload-metadata", "")), _number(request, "Upload-Length")
    )
    response.headers["Location"] = str(request.url_for("append_upload", file_id=file.id).path)
    _describe(response, file)
    return file


@router.head("/{file_id}", dependencies=_TUS)
def get_upload(file_id: str, client: ClientDependency, response: Response) -> None:
    """Say how much has arrived."""
    file = client.files.get(file_id)
    response.headers["Cache-Control"] = "no-store"
    response.headers["Upload-Length"] = str(file.bytes)
    _describe(response, file)


@router.patch("/{file_id}", status_code=204, dependencies=_TUS)
def append_upload(
    file_id: str, request: Request, client: ClientDependency, response: Response
) -> None:
    """Add the body to the upload at `Upload-Offset`; what arrives stays if the connection ends."""
    if request.headers.get("content-type") != _CONTENT_TYPE:
        raise StreamerError(
            ErrorCode.INVALID_REQUEST,
            f"Send the data as '{_CONTENT_TYPE}'.",
            "Content-Type",
        )
    offset = _number(request, "Upload-Offset")
    _describe(response, client.files.append(file_id, offset, body_of(request)))


@router.delete("/{file_id}", status_code=204, dependencies=_TUS)
def abandon_upload(file_id: str, client: ClientDependency) -> None:
    """Delete the upload."""
    client.files.delete(file_id)


def _describe(response: Response, file: UploadedFile) -> None:
    response.headers["Upload-Offset"] = str(file.received)
    response.headers["Upload-Expires"] = format_datetime(file.expires_at, usegmt=True)


def _number(request: Request, header: str) -> int:
    text = request.headers.get(header, "")
    if not (text.isascii() and text.isdecimal() and len(text) < 20):
        raise StreamerError(
            ErrorCode.INVALID_REQUEST, f"The header '{header}' must be a number of bytes.", header
        )
    return int(text)


def _filename(metadata: str) -> str:
    """Return the file name in `Upload-Metadata`: pairs of a key and a value in Base64."""
    for pair in metadata.split(","):
        key, _, value = pair.strip().partition(" ")
        if key == "filename":
            try:
                return base64.b64decode(value, validate=True).decode()
            except (binascii.Error, UnicodeDecodeError):
                raise StreamerError(
                    ErrorCode.INVALID_REQUEST,
                    "The file name in 'Upload-Metadata' is not UTF-8 in Base64.",
                    "Upload-Metadata",
                ) from None
    return ""
