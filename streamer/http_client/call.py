"""Describe calls of the API without sending them: the request, and what its response means."""

import inspect
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, field
from functools import wraps
from typing import Any, Generic, Protocol, TypeVar
from uuid import uuid4

import httpx

from streamer.errors import ErrorCode, StreamerError

_T = TypeVar("_T")

_PASSES = {429, 503}
"""Statuses of refusals that may be gone at the next try."""

_CODES = {
    401: ErrorCode.UNAUTHORIZED,
    403: ErrorCode.UNAUTHORIZED,
    404: ErrorCode.NOT_FOUND,
    413: ErrorCode.REQUEST_TOO_LARGE,
}
"""Codes of refusals that come from something in front of the API, such as a proxy."""


class PassingError(StreamerError):
    """A failure after which the same request may be sent again.

    Its `retry_after` is what the server asked to wait; None if it did not say.
    """

    @classmethod
    def like(cls, error: StreamerError, retry_after: float | None = None) -> "PassingError":
        """Return `error` as one that passes."""
        made = cls(error.code, error.message, error.param, error.request_id)
        made.retry_after = retry_after
        return made


@dataclass(frozen=True)
class Call(Generic[_T]):
    """One request, and how its response is read.

    Attributes:
        read: makes the answer of the response's body.
        params: the query string; values that are None are left out.
        body: what is sent as JSON; None for no body.
        content: what is sent as it is; None for no such body.
        headers: headers of the request.
        patience: seconds that the server may need beyond the client's timeout.
        also: statuses that carry an answer although they are no success.
        key: idempotency key of a POST, by which a server knows a request that is sent again.
    """

    method: str
    path: str
    read: Callable[[bytes], _T]
    params: Mapping[str, Any] = field(default_factory=dict)
    body: Mapping[str, Any] | None = None
    content: bytes | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    patience: float = 0.0
    also: frozenset[int] = frozenset()
    key: str = field(default_factory=lambda: uuid4().hex)

    @property
    def request(self) -> dict[str, Any]:
        """Arguments of `httpx.Client.request`, without a timeout."""
        return {
            "method": self.method,
            "url": self.path,
            "params": {name: value for name, value in self.params.items() if value is not None},
            "json": self.body,
            "content": self.content,
            "headers": {
                **({"Idempotency-Key": self.key} if self.method == "POST" else {}),
                **self.headers,
            },
        }

    def answer(self, response: httpx.Response) -> _T:
        """Return what the response says. Raises StreamerError; PassingError for 429 and 503."""
        if not response.is_success and response.status_code not in self.also:
            raise error_of(response)
        try:
            return self.read(response.content)
        except (StreamerError, ValueError) as error:
            raise StreamerError(
                ErrorCode.API_UNAVAILABLE,
                f"What {address(response.request.url)} answered cannot be read: check that this is "
                f"the address of NVILA Streamer's API, and that it is not newer than this program.",
                request_id=response.headers.get("x-request-id"),
            ) from error

    def lost(self, error: httpx.HTTPError) -> StreamerError:
        """Return what the loss of the connection means: a PassingError if it may be sent again.

        A DELETE whose reply was lost may have been carried out: it is not sent twice.
        """
        unsent = isinstance(error, httpx.ConnectError | httpx.ConnectTimeout | httpx.PoolTimeout)
        meaning = lost_connection(error)
        return PassingError.like(meaning) if unsent or self.method != "DELETE" else meaning


Flow = Generator[Call[Any], Any, _T]
"""Several calls that make one answer: yields each call, is sent its answer, returns the whole."""


class ListPage(Protocol):
    """A part of a list; `next_cursor` is None at its end."""

    @property
    def next_cursor(self) -> str | None:
        """The place after this page."""


_Page = TypeVar("_Page", bound=ListPage)


class Paged(Generic[_T]):
    """A list that the API gives in pages.

    Args:
        page: makes the call for a page, given its `limit` and `cursor`, None at first.
        items: the items of a page.
        most: items in all; None for no limit.
        page_size: items of one page.
    """

    def __init__(
        self,
        page: Callable[..., Call[_Page]],
        items: Callable[[_Page], list[_T]],
        most: int | None,
        page_size: int,
    ) -> None:
        self._page = page
        self._items: Callable[[Any], list[_T]] = items
        self._left = most
        self._page_size = page_size
        self._cursor: str | None = None
        self._ended = False

    def next_call(self) -> Call[Any] | None:
        """Return the call for the next page, None after the last one."""
        size = self._page_size if self._left is None else min(self._left, self._page_size)
        if self._ended or size <= 0:
            return None
        return self._page(limit=size, cursor=self._cursor)

    def take(self, page: ListPage) -> list[_T]:
        """Return the items of the page that has come, and note where the next one begins."""
        items, self._cursor = self._items(page), page.next_cursor
        self._ended = self._cursor is None
        if self._left is not None:
            self._left -= len(items)
        return items


def as_method(method: Callable[..., Any], make: Callable[..., Any]) -> None:
    """Give `method` the name, documentation and parameters of `make`, after its own first one."""
    wraps(make)(method)
    own = inspect.Parameter("self", inspect.Parameter.POSITIONAL_ONLY)
    signature = inspect.signature(make)
    method.__signature__ = signature.replace(  # type: ignore[attr-defined]
        parameters=[own, *signature.parameters.values()]
    )


def address(url: httpx.URL) -> str:
    """Return the scheme, host and port of a URL, without path, user or password."""
    return f"{url.scheme}://{url.netloc.decode('ascii')}"


def lost_connection(error: httpx.HTTPError) -> StreamerError:
    """Return the meaning of a connection that failed: TIMEOUT or API_UNAVAILABLE."""
    where = address(error.request.url)
    if isinstance(error, httpx.ReadTimeout | httpx.WriteTimeout):
        return StreamerError(
            ErrorCode.TIMEOUT,
            f"The API at {where} did not answer in time: try again, or give a longer timeout.",
        )
    return StreamerError(
        ErrorCode.API_UNAVAILABLE,
        f"The API at {where} cannot be reached ({type(error).__name__}): check the address, and "
        "that `streamer up` or `streamer serve` runs there.",
    )


def error_of(response: httpx.Response) -> StreamerError:
    """Return the error that a response reports; PassingError if it may be gone at the next try.

    The body of the response has been read.
    """
    error = _reported(response)
    if response.status_code in _PASSES and response.headers.get("x-should-retry") != "false":
        return PassingError.like(error, _seconds(response.headers.get("retry-after")))
    return error


def _reported(response: httpx.Response) -> StreamerError:
    request_id = response.headers.get("x-request-id")
    try:
        detail = response.json()["error"]
        code, message = ErrorCode(detail["code"]), str(detail["message"])
        param, request_id = detail.get("param"), detail.get("request_id") or request_id
    except (ValueError, KeyError, TypeError, AttributeError):
        status = response.status_code
        where = address(response.request.url)
        to = f" (see {response.headers['location']})" if response.has_redirect_location else ""
        return StreamerError(
            _CODES.get(status, ErrorCode.API_UNAVAILABLE),
            f"{where} answered {status} {response.reason_phrase}{to}, not as NVILA Streamer's API "
            "does: check the address, and any proxy in front of it.",
            request_id=request_id,
        )
    return StreamerError(code, message, param, request_id)


def _seconds(text: str | None) -> float | None:
    try:
        return max(0.0, float(text)) if text is not None else None
    except ValueError:  # a date
        return None
