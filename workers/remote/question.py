"""Write the request for the answer to a clip: its pictures, its question, its format."""

import base64
import json
from collections.abc import Sequence
from itertools import islice
from math import sqrt
from typing import Any

from nvila_core.resolution.grids import Grid
from nvila_core.resolution.policy import TilingConfig
from streamer.domain.conversation import ChatRequest
from streamer.domain.frame import FrameRef
from streamer.domain.request import ClipRequest
from streamer.errors import ErrorCode, StreamerError
from streamer.limits import MAX_LOGPROBS
from streamer.response_format import ResponseFormat

TILING = TilingConfig(size=448, tokens=256)
"""A tile, as plans for models elsewhere count it: its pixels, and what it costs most of them."""

ANSWER = "answer"
"""The property of the object in which a choice comes: OpenAI's own servers want an object."""

_CLIP = "These pictures are frames of one video, in order of time."
_FORM_TOKENS = 32
"""Tokens of the object around a choice, white space included."""


def chat_body(model: str, clip: ClipRequest, pictures: Sequence[bytes]) -> dict[str, Any]:
    """Return the body of `POST /chat/completions` that asks about JPEGs in order of time, or that
    continues the conversation of a `ChatRequest`."""
    schema = answer_schema(clip.response_format)
    instructions = [] if schema is None else [_text(_words_of(schema))]
    if isinstance(clip, ChatRequest):
        messages = _turns(clip, pictures)
        asked = next(each for each in reversed(messages) if each["role"] == "user")
        asked["content"] += instructions
    else:
        order = [_text(_CLIP)] if len(pictures) > 1 else []
        shown = [_picture(jpeg) for jpeg in pictures]
        messages = [
            {"role": "user", "content": [*order, *shown, _text(clip.prompt), *instructions]}
        ]
    choice = clip.response_format.type == "choice"
    body: dict[str, Any] = {
        "model": model,
        "messages": messages,
        "max_tokens": clip.max_tokens + (_FORM_TOKENS if choice else 0),
        "temperature": 0,
    }
    if isinstance(clip, ChatRequest):
        wanted = {"temperature": clip.temperature, "top_p": clip.top_p}
        optional = {"seed": clip.seed, "stop": clip.stop or None}
        body |= wanted | {key: value for key, value in optional.items() if value is not None}
    if schema is not None:
        allowed = answer_schema(clip.allowed_format)
        form = {"name": ANSWER, "strict": True, "schema": allowed}
        constrained = {"type": "json_schema", "json_schema": form}
        body["response_format"] = constrained if schema else {"type": "json_object"}
    if clip.logprobs is not None:
        body |= {"logprobs": True, "top_logprobs": MAX_LOGPROBS if choice else clip.logprobs}
    return body


def _turns(chat: ChatRequest, pictures: Sequence[bytes]) -> list[dict[str, Any]]:
    """Return the messages of a chat with its pictures in their places."""
    left = iter(pictures)
    messages: list[dict[str, Any]] = []
    for turn in chat.turns:
        content: list[dict[str, Any]] = []
        for part in turn.content:
            if part.type == "text":
                content.append(_text(part.text))
            else:
                content += [_picture(jpeg) for jpeg in islice(left, part.count)]
        plain = all(part["type"] == "text" for part in content) and turn.role != "user"
        # of other roles than the user, some servers take only a string
        text = "\n".join(part["text"] for part in content) if plain else content
        messages.append({"role": turn.role, "content": text})
    return messages


def _words_of(schema: dict[str, Any]) -> str:
    if not schema:
        return "Answer with JSON."
    return f"Answer with JSON of this schema: {json.dumps(schema, ensure_ascii=False)}"


def answer_schema(form: ResponseFormat) -> dict[str, Any] | None:
    """Return the JSON schema of an answer in this format; None for text."""
    match form.type:
        case "choice":
            return {
                "type": "object",
                "properties": {ANSWER: {"type": "string", "enum": form.choices}},
                "required": [ANSWER],
                "additionalProperties": False,
            }
        case "json_schema":
            return form.json_schema
        case _:
            return None


def scaled(jpeg: bytes, frame: FrameRef, grid: Grid, quality: int) -> bytes:
    """Return a stored frame as a JPEG with at most the pixels of its grid, in its own proportions.

    Raises StreamerError(FRAME_DAMAGED).
    """
    import cv2

    from streamer.frames.jpeg import from_jpeg, to_jpeg

    scale = sqrt(grid[0] * grid[1] * TILING.size**2 / (frame.width * frame.height))
    size = (max(1, int(frame.width * scale)), max(1, int(frame.height * scale)))
    try:
        if scale >= 1:
            from_jpeg(jpeg, frame.width, frame.height, (1, 1))  # only whether it can be read
            return jpeg
        image = from_jpeg(jpeg, frame.width, frame.height, size)
    except ValueError:
        raise StreamerError(
            ErrorCode.FRAME_DAMAGED, "A stored frame is damaged: ask again about other frames."
        ) from None
    small = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    return to_jpeg(cv2.cvtColor(small, cv2.COLOR_RGB2BGR), quality)  # type: ignore[arg-type]


def _text(text: str) -> dict[str, Any]:
    return {"type": "text", "text": text}


def _picture(jpeg: bytes) -> dict[str, Any]:
    packed = base64.b64encode(jpeg).decode()
    return {"type": "image_url", "image_url": {"url": f"data:image/jpeg;base64,{packed}"}}
