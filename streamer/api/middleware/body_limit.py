"""Refuse request bodies that are too large before they are read."""

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from streamer.api.errors import ErrorResponse
from streamer.errors import ErrorCode

CHAT_PATH = "/v1/chat/completions"


class BodyLimit:
    """ASGI middleware that answers 413 to a body of more than `max_bytes`.

    One that announces its length is refused by that; of any other no more than that is read. Chats,
    which carry pictures, have a limit of their own, and so have routes whose paths begin with one
    of `uploads`.
    """

    def __init__(
        self, app: ASGIApp, max_bytes: int, max_chat_bytes: int, uploads: tuple[str, ...] = ()
    ) -> None:
        self._app = app
        self._max_bytes = max_bytes
        self._max_chat_bytes = max_chat_bytes
        self._uploads = uploads

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Reject the request with 413, or pass it on with its body counted."""
        if scope["type"] != "http" or scope["path"].startswith(self._uploads or ("\0",)):
            await self._app(scope, receive, send)
            return
        most, setting = self._max_bytes, "max_body_bytes"
        if scope["path"] == CHAT_PATH:
            most, setting = self._max_chat_bytes, "max_chat_bytes"
        announced = Headers(scope=scope).get("content-length", "")
        if announced.isdecimal() and int(announced[:20]) > most:
            reason = _reason(most, setting)
            rejection = ErrorResponse(
                413, ErrorCode.REQUEST_TOO_LARGE, reason, {"Connection": "close"}
            )
            await rejection(scope, receive, send)
            return
        size = 0

        async def counted() -> Message:
            nonlocal size
            message = await receive()
            size += len(message.get("body", b""))
            if size > most:
                raise HTTPException(413, _reason(most, setting), {"Connection": "close"})
            return message

        await self._app(scope, counted, send)


def _reason(most: int, setting: str) -> str:
    return (
        f"The body of the request has more than {most:,} bytes: send a smaller one, or raise the "
        f"setting {setting}."
    )
