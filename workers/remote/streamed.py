"""Read an answer that a server streams: join its pieces, and publish them as they come."""

import json
from typing import Any

import redis
import structlog

from streamer.queues.deltas import Delta, Deltas
from workers.context import WorkerContext
from workers.remote.answer import THOUGHTS, read_tokens

_THINKS = "<think>"

_log = structlog.get_logger(__name__)


class StreamedReply:
    """The server-sent events of one reply, joined into the body of a reply at once.

    The thread that receives it feeds it while others read it.

    Attributes:
        error: the event that tells of a failure, as bytes; None without one.
        complete: whether the server has said that the answer ends there.
    """

    def __init__(self) -> None:
        self._rest = b""
        self._content: list[str] = []
        self._tokens: list[Any] = []
        self._refusal: list[str] = []
        self._reason: str | None = None
        self._usage: dict[str, Any] | None = None
        self.error: bytes | None = None
        self.complete = False

    def feed(self, piece: bytes) -> None:
        """Take bytes of the reply."""
        *lines, self._rest = (self._rest + piece).split(b"\n")
        for line in lines:
            self._take(line)

    def _take(self, line: bytes) -> None:
        name, _, value = line.partition(b":")
        value = value.strip()
        if value == b"[DONE]":
            self.complete = True
        elif name == b"error":  # llama.cpp, before it put errors into the data
            self.error = value
        elif name == b"data":
            self._event(value)

    def _event(self, value: bytes) -> None:
        try:
            event = json.loads(value)
            if event.get("error") or event.get("object") == "error":
                self.error = value
                return
            self._usage = event.get("usage") or self._usage
            for choice in event.get("choices") or ():
                self._add(choice)
        except (ValueError, AttributeError, TypeError):
            self.error = b'"a piece of the answer is not what OpenAI\'s API sends"'

    def _add(self, choice: dict[str, Any]) -> None:
        delta = choice.get("delta") or {}
        for field, pieces in (("content", self._content), ("refusal", self._refusal)):
            if piece := delta.get(field):
                pieces.append("".join(piece))
        self._tokens += (choice.get("logprobs") or {}).get("content") or ()
        if choice.get("finish_reason"):
            self._reason = choice["finish_reason"]
            self.complete = True

    @property
    def began(self) -> bool:
        """Whether a piece of the answer has come."""
        return bool(self._content or self._tokens)

    @property
    def status(self) -> int:
        """The status that the error has, or would have had before the first piece."""
        try:
            body = json.loads(self.error or b"{}")
            code = int((body.get("error") or body)["code"])
        except (ValueError, AttributeError, KeyError, TypeError):
            return 500
        return code if 400 <= code < 600 else 500

    def body(self) -> dict[str, Any]:
        """Return what has come until now, as the body of a reply at once."""
        message = {"role": "assistant", "content": "".join(self._content)}
        if self._refusal:
            message["refusal"] = "".join(self._refusal)
        choice = {
            "index": 0,
            "message": message,
            "logprobs": {"content": list(self._tokens)} if self._tokens else None,
            "finish_reason": self._reason,
        }
        return {"choices": [choice], "usage": self._usage}


class PieceWriter:
    """Publishes the pieces of one answer.

    What Redis refuses is published with the next piece; the result has the whole text.
    """

    def __init__(self, context: WorkerContext, request_id: str, *, with_tokens: bool) -> None:
        self._deltas = Deltas(context.connections.main)
        self._request_id = request_id
        self._with_tokens = with_tokens
        self._characters = self._tokens = 0

    def write(self, reply: dict[str, Any]) -> None:
        """Publish what a reply has beyond the last one, as far as it will stay."""
        self.end(settled(reply["choices"][0]["message"]["content"]), reply)

    def end(self, text: str, reply: dict[str, Any]) -> None:
        """Publish the rest of the whole text."""
        tokens = read_tokens(reply, self._tokens) if self._with_tokens else []
        delta = Delta(
            at=self._characters,
            text=text[self._characters :].replace("\0", "\ufffd"),
            first_token=self._tokens,
            tokens=tokens,
        )
        if not delta.text and not delta.tokens:
            return
        try:
            self._deltas.add(self._request_id, delta)
        except redis.exceptions.RedisError as error:
            _log.debug("delta_not_written", request=self._request_id, reason=str(error))
            return
        self._characters += len(delta.text)
        self._tokens += len(delta.tokens)


def settled(begun: str) -> str:
    """Return the beginning of an answer without thoughts and white space around it, as far as
    nothing that follows `begun` can change it."""
    head = begun.lstrip()
    if not head or _THINKS.startswith(head[: len(_THINKS)]):
        begun, found = THOUGHTS.subn("", begun)
        if not found:
            return ""
    return begun.strip()
