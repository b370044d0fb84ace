"""Validate user input with messages that name the mistake, and derive names of streams."""

import re
from pathlib import PurePosixPath
from typing import Any, TypeVar
from urllib.parse import unquote, urlsplit

from pydantic import BaseModel, ValidationError

from streamer.errors import ErrorCode, StreamerError

_Record = TypeVar("_Record", bound=BaseModel)

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


def validated(model: type[_Record], /, **fields: Any) -> _Record:
    """Make `model(**fields)`. Raises StreamerError(INVALID_REQUEST) that names field and rule."""
    try:
        return model(**fields)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        field = ".".join(str(part) for part in first["loc"])
        place = f"'{field}': " if field else ""
        message = f"{place}{first['msg']}."
        raise StreamerError(ErrorCode.INVALID_REQUEST, message, field or None) from None


def check_name(name: str) -> str:
    """Return `name`. Raises StreamerError(INVALID_REQUEST) if it is not a valid stream name."""
    if not _NAME.fullmatch(name):
        raise StreamerError(
            ErrorCode.INVALID_REQUEST,
            f"'{name[:80]}' is not a valid name: use up to 64 letters, digits, '.', '_' or '-', "
            "starting with a letter or digit.",
            "name",
        )
    return name


def derive_name(url: str) -> str:
    """Derive a stream name from a URL's host and path, or from a file name."""
    parts = urlsplit(url)
    if parts.scheme in ("", "file"):
        text = PurePosixPath(unquote(parts.path) or url).stem
    else:
        text = f"{parts.hostname or ''}{parts.path}"
    name = re.sub(r"[^A-Za-z0-9._]+", "-", text).strip("-._")
    return name[:48].rstrip("-._") or "stream"
