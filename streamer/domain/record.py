"""Define the base of all records, and what of a value can be stored."""

import json
import re
from math import isfinite
from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, model_validator
from pydantic_core import PydanticCustomError

from nvila_core.errors import is_unicode
from streamer.errors import ErrorCode, StreamerError
from streamer.limits import MAX_MODEL_NAME


def unstorable(value: Any) -> str | None:
    """Return why JSON, Redis or a database cannot store `value`, None where they can."""
    found: list[Any] = [value]
    while found:
        item = found.pop()
        if isinstance(item, str):
            if "\0" in item:
                return "the text has a NUL character: remove it"
            if not item.isascii() and not is_unicode(item):
                return "the text has half of a character (a lone surrogate): send it as UTF-8"
        elif isinstance(item, float):
            if not isfinite(item):
                return "the number is not finite: give a number"
        elif isinstance(item, int):  # a truth value too
            if not -(2**63) < item < 2**63:
                return "the number is too large: give one below 2**63"
        elif isinstance(item, dict):
            found += item
            found += item.values()
        elif isinstance(item, list | tuple):
            found += item
    return None


_SUSPECT = (b"\\u0000", b"\\ud", b"\\uD", b"\xed", b"NaN", b"Inf")
_SUSPECT_NUMBER = re.compile(rb"[:,\[]\s*-?(?:\d{19}|[\d.]+[eE]\+?\d{3})")
_AS_ZEROS = bytes.maketrans(b"123456789.E", b"0000000000e")


def _is_suspect(text: bytes) -> bool:
    """Return whether :func:`unstorable` may refuse what JSON has; to look at each value takes
    longer."""
    if any(part in text for part in _SUSPECT):
        return True
    digits = text.translate(_AS_ZEROS, b"+")  # the pattern takes ten times as long
    return (b"0" * 19 in digits or b"0e000" in digits) and bool(_SUSPECT_NUMBER.search(text))


_STORED = {"stored": True}
"""Context of fields that have nothing suspect, such as those that have been stored."""


class Record(BaseModel):
    """Base of all records.

    Unknown fields are errors, so that no misspelt field goes unnoticed, except where a stored
    record is read: another release may have written it.
    """

    model_config = ConfigDict(extra="forbid")

    @model_validator(mode="before")
    @classmethod
    def _storable(cls, fields: Any, info: ValidationInfo) -> Any:
        """Refuse what JSON, Redis or a database cannot store, wherever in the fields it is."""
        if info.context == _STORED:
            return fields
        reason = unstorable(fields)
        if reason is not None:
            raise PydanticCustomError("unstorable", "{reason}", {"reason": reason})
        return fields

    @classmethod
    def of_storable(cls, fields: dict[str, Any]) -> Self:
        """Build a record of fields in which nothing is that :func:`unstorable` refuses."""
        return cls.model_validate(fields, context=_STORED)

    @classmethod
    def read(cls, stored: bytes | str | dict[str, Any]) -> Self:
        """Return a stored record, as JSON or as its fields; pass over unknown fields.

        Raises StreamerError(RECORD_UNREADABLE).
        """
        try:
            if isinstance(stored, dict):
                return cls.model_validate(stored, extra="ignore", context=_STORED)
            text = stored if isinstance(stored, bytes) else stored.encode(errors="surrogatepass")
            context = None if _is_suspect(text) else _STORED
            return cls.model_validate_json(stored, extra="ignore", context=context)
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            place = ".".join(str(part) for part in first["loc"])
            raise StreamerError(
                ErrorCode.RECORD_UNREADABLE,
                f"A stored {cls.__name__} cannot be read ({place + ': ' if place else ''}"
                f"{first['msg']}): if a newer release wrote it, upgrade this program.",
            ) from None

    @classmethod
    def read_in_part(cls, stored: bytes | str | dict[str, Any], **defaults: Any) -> Self:
        """Return the readable fields of a record that :meth:`read` refuses.

        `defaults` are the values of required fields that cannot be read.
        """
        try:
            fields = stored if isinstance(stored, dict) else json.loads(stored)
        except (ValueError, RecursionError):
            fields = None
        readable: dict[str, Any] = dict(fields) if isinstance(fields, dict) else {}
        while True:
            try:
                return cls.model_validate(defaults | readable, extra="ignore")
            except ValidationError as error:
                refused = {each["loc"][0] for each in error.errors() if each["loc"]}
                if not readable:
                    raise
                kept = {name: value for name, value in readable.items() if name not in refused}
                readable = kept if len(kept) < len(readable) else {}


ModelName = Annotated[str, Field(min_length=1, max_length=MAX_MODEL_NAME)]
"""Name of a model, as `GET /v1/models` lists it."""
