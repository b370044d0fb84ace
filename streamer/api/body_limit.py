"""Refuse request bodies that are too large before they are read."""

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from streamer.api.errors import ErrorResponse
from streamer.errors import ErrorCode


class BodyLimit:
    """ASGI middleware that answers 413 to a body of more than `max_bytes`.

    One that announces its length is refused by that; of any other no more than that is read. Routes
    whose paths begin with one of `uploads` have a limit of their own.
    """

    def __init__(self, app: ASGIApp, max_bytes: int, uploads: tuple[str, ...] = ()) -> None:
        self._app = app
        self._max_bytes = max_bytes
        self._uploads = uploads

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Reject the request with 413, or pass it on with its body counted."""
        if scope["type"] != "http" or scope["path"].startswith(self._uploads or ("\0",)):
            await self._app(scope, receive, send)
            return
        announced = Headers(scope=scope).get("content-length", "")
        if announced.isdecimal() and int(announced[:20]) > self._max_bytes:
            rejection = ErrorResponse(
                413, ErrorCode.REQUEST_TOO_LARGE, self._reason(), {"Connection": "close"}
            )
            await rejection(scope, receive, send)
            return
        size = 0

        async def counted() -> Message:
            nonlocal size
            message = await receive()
            size += len(message.get("body", b""))
            if size > self._max_bytes:
                raise HTTPException(413, self._reason(), {"Connection": "close"})
            return message

        await self._app(scope, counted, send)

    def _reason(self) -> str:
        return (
            f"The body of the request has more than {self._max_bytes:,} bytes: send a smaller one, "
            "or raise the setting max_body_bytes."
        )
