"""Checks of what users hand in, each with a sentence that says what is wrong."""

from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from streamer.errors import ErrorCode, StreamerError

Record = TypeVar("Record", bound=BaseModel)


def validated(model: type[Record], **fields: Any) -> Record:
    """`model(**fields)`, or StreamerError(INVALID_REQUEST) that names the field and the rule."""
    try:
        return model(**fields)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        field = ".".join(str(part) for part in first["loc"])
        raise StreamerError(ErrorCode.INVALID_REQUEST, f"'{field}': {first['msg']}.") from None


def check_prompt(prompt: str) -> None:
    """Raise StreamerError(PROMPT_EMPTY) for a prompt without a word."""
    if not prompt.strip():
        raise StreamerError(
            ErrorCode.PROMPT_EMPTY, "The prompt is empty: write what you want to know."
        )
