"""Routes of `/v1/session`: sign a browser in with a key, tell what it may do, sign it out."""

from typing import cast

from fastapi import APIRouter, Request, Response

from streamer.api.middleware.auth import SESSION_COOKIE, SESSION_PATH, session_token
from streamer.api.middleware.keyring import Keyring
from streamer.api.schemas import Session, SessionBody
from streamer.api_keys import SESSION_SECONDS
from streamer.domain.scope import Scope
from streamer.errors import ErrorCode, StreamerError

router = APIRouter(prefix=SESSION_PATH, tags=["session"])


@router.post("")
async def sign_in(body: SessionBody, request: Request, response: Response) -> Session:
    """Begin a session with a key: the cookie of the response stands for the key from then on."""
    keyring = cast(Keyring, request.app.state.keyring)
    key = await keyring.find(body.key)
    if key is None:
        raise StreamerError(ErrorCode.UNAUTHORIZED, "The API key is wrong: check it.", "key")
    response.set_cookie(
        SESSION_COOKIE,
        await keyring.open_session(key),
        max_age=SESSION_SECONDS,
        path="/",
        httponly=True,
        samesite="strict",
        secure=request.url.scheme == "https",
    )
    return Session(key=key.name, scopes=[Scope(scope) for scope in key.scopes])


@router.get("")
async def get_session(request: Request) -> Session:
    """Return the name of the caller's key, null if none is needed, and what it may do."""
    scopes = [Scope.READ, Scope.OPERATE] if request.state.may_operate else [Scope.READ]
    return Session(key=request.state.key, scopes=scopes)


@router.delete("", status_code=204)
async def sign_out(request: Request) -> Response:
    """End the session and delete its cookie."""
    token = session_token(request.headers)
    if token is not None:
        await cast(Keyring, request.app.state.keyring).close_session(token)
    response = Response(status_code=204)
    response.delete_cookie(SESSION_COOKIE, path="/", httponly=True, samesite="strict")
    return response
