"""What a prompt may be given as: parts, or turns of a conversation."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from nvila_core.errors import EmptyPrompt, PromptError
from nvila_core.media.video import Video
from nvila_core.prompt.tokenizer import IMAGE, VIDEO

ROLES = {
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "system": "system",
}


def without_media_tokens(text: str) -> str:
    """User text without media tokens; it is stripped only if it had one, as the original does."""
    for token in (IMAGE, VIDEO):
        if token in text:
            text = text.replace(token, "").strip()
    return text


def as_conversation(parts: Any) -> list[tuple[str, list[Any]]]:
    """(role, parts) of every turn; plain parts are one user turn.

    Raises:
        PromptError: unknown role, content of another type, or nothing at all.
    """
    parts = as_list(parts)
    if not parts:
        raise EmptyPrompt("The prompt is empty, so give a question, a picture or both.")
    if not any(isinstance(part, Mapping) for part in parts):
        return [("user", parts)]
    turns = []
    for message in parts:
        if not isinstance(message, Mapping) or "content" not in message:
            raise PromptError(
                "A conversation must be a list of {'role': ..., 'content': ...} only."
            )
        role = ROLES.get(str(message.get("role")))
        if role is None:
            raise PromptError(
                f"The role {message.get('role')!r} is unknown; use system, user or assistant."
            )
        content = as_list(message["content"])
        if role != "user" and any(not isinstance(part, str) for part in content):
            raise PromptError(f"A picture can only be in a user's turn, not in the {role}'s.")
        turns.append((role, content))
    return turns


def as_list(value: Any) -> list[Any]:
    """One part alone as a list of it."""
    if isinstance(value, str | Image.Image | Video | Mapping | np.ndarray):
        return [value]
    if isinstance(value, Sequence):
        return list(value)
    raise PromptError(
        f"A prompt must be a list of texts, images and videos, not {type(value).__name__}."
    )
