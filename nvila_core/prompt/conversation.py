"""Read a prompt that is given as parts or as the turns of a conversation."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from nvila_core.errors import LONE_SURROGATE, EmptyPrompt, PromptError, PromptTooLong, is_unicode
from nvila_core.media.video import Video
from nvila_core.prompt.tokenizer import IMAGE_TOKEN, VIDEO_TOKEN

ROLES = {
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "system": "system",
}

MAX_CHARACTERS_PER_POSITION = 16
"""More than the tokens of any text have on average, unless it repeats one character."""


def without_media_tokens(text: str) -> str:
    """Remove media tokens from user text; like the original, strip the text only if it had one."""
    for token in (IMAGE_TOKEN, VIDEO_TOKEN):
        if token in text:
            text = text.replace(token, "").strip()
    return text


def as_conversation(parts: Any) -> list[tuple[str, list[Any]]]:
    """Return (role, parts) of every turn; parts without roles are one user turn.

    Raises:
        PromptError: the prompt is empty, or a role or the type of a part is not supported.
    """
    parts = as_list(parts)
    if not parts:
        raise EmptyPrompt("The prompt is empty: give a question, an image, or both.")
    if not any(isinstance(part, Mapping) for part in parts):
        check_texts(parts)
        return [("user", parts)]
    turns = []
    for message in parts:
        if not isinstance(message, Mapping) or "content" not in message:
            raise PromptError(
                "Every turn of a conversation must be of the form {'role': ..., 'content': ...}."
            )
        role = ROLES.get(str(message.get("role")))
        if role is None:
            raise PromptError(
                f"The role {message.get('role')!r} is unknown; use system, user or assistant."
            )
        content = as_list(message["content"])
        check_texts(content)
        if role != "user" and any(not isinstance(part, str) for part in content):
            raise PromptError(f"Only user turns can have images, but a turn of the {role} has one.")
        turns.append((role, content))
    return turns


def check_characters(turns: list[tuple[str, list[Any]]], max_model_len: int) -> None:
    """Raise PromptTooLong where the texts cannot fit into the context, before they are tokenized.

    Tokenizing takes seconds for each megabyte, during which no other thread of the process runs.
    """
    characters = sum(len(p) for _, parts in turns for p in parts if isinstance(p, str))
    if characters > MAX_CHARACTERS_PER_POSITION * max_model_len:
        needed = -(-characters // MAX_CHARACTERS_PER_POSITION)
        raise PromptTooLong(needed, max_model_len, characters=characters)


def check_texts(parts: list[Any]) -> None:
    """Raise PromptError where a text has half of a character, which no tokenizer takes."""
    for part in parts:
        if isinstance(part, str) and not is_unicode(part):
            raise PromptError(LONE_SURROGATE)


def as_list(value: Any) -> list[Any]:
    """Return the parts as a list; a single part becomes a list of one.

    Raises:
        PromptError: the value is neither a part nor a list of parts.
    """
    if isinstance(value, str | Image.Image | Video | Mapping | np.ndarray):
        return [value]
    if isinstance(value, Sequence):
        return list(value)
    raise PromptError(
        f"A prompt must be a list of texts, images and videos, not {type(value).__name__}."
    )
