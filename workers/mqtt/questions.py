"""Questions that come over MQTT, and where their answers go."""

import json
from dataclasses import dataclass
from typing import Any, Self

from streamer.domain.query import Query
from streamer.domain.question import Question
from streamer.errors import ErrorCode, StreamerError
from streamer.validation import validated

MAX_PAYLOAD = 65_536
"""Bytes of a question."""

_MAX_ID = 256
"""Characters of the id that a caller gives its question."""


@dataclass(frozen=True)
class Asked:
    """A question: a text, or a JSON object with the fields of a Question.

    Attributes:
        stream: name of the stream that it is about.
        fields: the fields of the question.
        id: the caller's own id, which the answer repeats.
        reply_to: topic of the answer; None: the stream's.
    """

    stream: str
    fields: dict[str, Any]
    id: Any = None
    reply_to: str | None = None

    @classmethod
    def read(cls, stream: str, payload: bytes) -> Self:
        """Read a message. Raises StreamerError(INVALID_REQUEST)."""
        if len(payload) > MAX_PAYLOAD:
            raise _invalid(f"The question has more than {MAX_PAYLOAD} bytes: shorten it.")
        try:
            text = payload.decode().strip()
        except UnicodeDecodeError:
            raise _invalid("The question is not UTF-8: send it as UTF-8.") from None
        if not text.startswith("{"):
            return cls(stream, {"prompt": text})
        try:
            fields = json.loads(text)
        except (ValueError, RecursionError):
            raise _invalid(
                'The question is not JSON: send a text, or an object such as {"prompt": "..."}.'
            ) from None
        own_id, reply_to = fields.pop("id", None), fields.pop("reply_to", None)
        if not (own_id is None or isinstance(own_id, str | int)) or len(str(own_id)) > _MAX_ID:
            raise _invalid(f"'id' must be a text or a number of at most {_MAX_ID} characters.")
        if reply_to is not None and not isinstance(reply_to, str):
            raise _invalid("'reply_to' must be the topic of the answer.")
        return cls(stream, fields, own_id, reply_to)

    def question(self) -> Question:
        """Return the record of the question. Raises StreamerError(INVALID_REQUEST)."""
        return validated(Question, **{**self.fields, "stream": self.stream})


def answer_to(
    asked: Asked | None, stream: str, query: Query | None = None, error: StreamerError | None = None
) -> bytes:
    """Return the message that answers a question, or says why there is no answer."""
    result = query.result if query is not None else None
    reason = {"code": error.code, "message": error.message} if error is not None else None
    if reason is None and result is not None and result.error is not None:
        reason = result.error.model_dump(mode="json")
    body: dict[str, Any] = {
        "id": asked.id if asked is not None else None,
        "query_id": query.id if query is not None else None,
        "stream": stream,
        "prompt": query.prompt if query is not None else None,
        "text": result.text if result is not None else None,
        "error": reason,
    }
    if result is not None:
        shown = result.model_dump(mode="json", include={"data", "start", "end", "model"})
        body |= shown
    return json.dumps(body).encode()


def _invalid(message: str) -> StreamerError:
    return StreamerError(ErrorCode.INVALID_REQUEST, message)
