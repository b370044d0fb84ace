"""Write the request for the answer to a clip: its pictures, its question, its format."""

import base64
import json
from collections.abc import Sequence
from math import sqrt
from typing import Any

from nvila_core.resolution.grids import Grid
from nvila_core.resolution.policy import TilingConfig
from streamer.domain import ClipRequest, FrameRef
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
    """Return the body of `POST /chat/completions` that asks about JPEGs in order of time."""
    content: list[dict[str, Any]] = [_text(_CLIP)] if len(pictures) > 1 else []
    content += [_picture(jpeg) for jpeg in pictures]
    schema = answer_schema(clip.response_format)
    if schema is None:
        content.append(_text(clip.prompt))
    else:
        written = json.dumps(schema, ensure_ascii=False)
        content.append(_text(f"{clip.prompt}\n\nAnswer with JSON of this schema: {written}"))
    choice = clip.response_format.type == "choice"
    body: dict[str, Any] = {
        "model": model,
        "messages": [{"role": "user", "content": content}],
        "max_tokens": clip.max_tokens + (_FORM_TOKENS if choice else 0),
        "temperature": 0,
    }
    if schema is not None:
        form = {"name": ANSWER, "strict": True, "schema": schema}
        body["response_format"] = {"type": "json_schema", "json_schema": form}
    if choice and clip.logprobs is not None:
        body |= {"logprobs": True, "top_logprobs": MAX_LOGPROBS}
    return body


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
