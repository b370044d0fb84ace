"""Checks of what users hand in, each with a sentence that says what is wrong; names for what has
none."""

import re
from pathlib import PurePosixPath
from typing import Any, TypeVar
from urllib.parse import unquote, urlsplit

from pydantic import BaseModel, ValidationError

from streamer.errors import ErrorCode, StreamerError

Record = TypeVar("Record", bound=BaseModel)

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


def validated(model: type[Record], **fields: Any) -> Record:
    """`model(**fields)`, or StreamerError(INVALID_REQUEST) that names the field and the rule."""
    try:
        return model(**fields)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        field = ".".join(str(part) for part in first["loc"])
        place = f"'{field}': " if field else ""
        raise StreamerError(ErrorCode.INVALID_REQUEST, f"{place}{first['msg']}.") from None


def check_name(name: str) -> str:
    """`name`, or StreamerError(INVALID_REQUEST) when a stream cannot be called so."""
    if not _NAME.fullmatch(name):
        raise StreamerError(
            ErrorCode.INVALID_REQUEST,
            f"'{name[:80]}' cannot be a name: use up to 64 letters, digits, '.', '_' or '-', "
            "beginning with a letter or digit.",
        )
    return name


def check_prompt(prompt: str) -> None:
    """Raise StreamerError(PROMPT_EMPTY) for a prompt without a word."""
    if not prompt.strip():
        raise StreamerError(
            ErrorCode.PROMPT_EMPTY, "The prompt is empty: write what you want to know."
        )


def derive_name(url: str) -> str:
    """A stream name from a URL's host and path, or from a file's name."""
    parts = urlsplit(url)
    if parts.scheme in ("", "file"):
        text = PurePosixPath(unquote(parts.path) or url).stem
    else:
        text = f"{parts.hostname or ''}{parts.path}"
    name = re.sub(r"[^A-Za-z0-9._]+", "-", text).strip("-._")
    return name[:48].rstrip("-._") or "stream"
