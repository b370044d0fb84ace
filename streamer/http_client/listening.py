"""Listen to events and to queries: read server-sent events, and go on where they broke."""

import json
import random
from collections.abc import Sequence
from typing import Any, Generic, Literal, TypeVar

import httpx
from pydantic import Field

from streamer.domain.error_info import ErrorInfo
from streamer.domain.query import Query, QueryStatus
from streamer.domain.record import Record
from streamer.domain.result import Result
from streamer.domain.timestamp import Timestamp
from streamer.errors import ErrorCode, StreamerError
from streamer.http_client.call import PassingError, address, error_of, lost_connection

_T = TypeVar("_T")

_MAX_PAUSE = 15.0
"""Seconds between two tries to connect again, at most."""

_FIRST_TRIES = 3
"""Tries for the first connection; one that was lost is made again without end."""

_HELLO, _RESYNC = "hello", "resync"


class EventMessage(Record):
    """Something that happened, as the API tells it.

    `type` is such as `result.created`, or `resync`: events are missing here, because a server was
    full or this program was too slow; read the state again.
    """

    id: str
    type: str
    time: Timestamp | None = None
    stream_id: str | None = None
    stream_name: str | None = None
    data: dict[str, Any]

    @property
    def result(self) -> Result | None:
        """The result that was created; None for an event of another type."""
        return Result.shown(self.data) if self.type == "result.created" else None


class QueryUpdate(Record):
    """The progress of a query, a piece (`delta`) of its answer, or at the end its `result`."""

    type: Literal["progress", "delta", "result"]
    text: str = Field(default="", description="a piece of the answer")
    status: QueryStatus | None = None
    position: int | None = Field(default=None, description="queries that are answered before it")
    windows: int | None = Field(default=None, description="windows in all, if it is about several")
    done: int | None = Field(default=None, description="windows that have an answer or none")
    unknown: int | None = Field(default=None, description="of these, windows that have none")
    query: Query | None = Field(default=None, description="the query with its result")


class Listener(Generic[_T]):
    """Reads server-sent events, and knows where to go on.

    The owner sends `request`, gives the response to `begin` and its lines to `take`; when the
    response ends it waits for `pause_after`, and begins again unless it has `ended`.
    """

    ended = False
    """Whether the last event has come."""

    def __init__(self) -> None:
        self._connected = False
        self._failures = 0
        self._fields: dict[str, str] = {}

    @property
    def request(self) -> dict[str, Any]:
        """Arguments of `httpx.Client.stream`, without a timeout."""
        raise NotImplementedError

    def begin(self, response: httpx.Response) -> None:
        """Check the response, whose body has been read if it is a refusal. Raises StreamerError."""
        if not response.is_success:
            raise error_of(response)
        if not response.headers.get("content-type", "").startswith("text/event-stream"):
            raise StreamerError(
                ErrorCode.API_UNAVAILABLE,
                f"{address(response.request.url)} sends no events: check that this is the address "
                "of NVILA Streamer's API.",
            )
        self._fields.clear()
        self._connected = True

    def take(self, line: str) -> _T | None:
        """Read one line of the response; return the event that it completes."""
        if line:
            name, _, value = line.partition(":")
            text = value.removeprefix(" ")
            if name == "data" and "data" in self._fields:
                text = f"{self._fields['data']}\n{text}"
            if name:  # else a comment
                self._fields[name] = text
            return None
        fields, self._fields = self._fields, {}
        if "data" not in fields:
            return None
        self._failures = 0
        return self._read(fields)

    def _read(self, fields: dict[str, str]) -> _T | None:
        """Return the event of these fields."""
        raise NotImplementedError

    def pause_after(self, error: Exception | None) -> float:
        """Return the seconds to wait before the next try; None: the response has ended.

        Raises StreamerError if another try cannot help.
        """
        if isinstance(error, httpx.HTTPError):
            error = PassingError.like(lost_connection(error))
        if error is not None and not isinstance(error, PassingError):
            raise error
        self._failures += 1
        if error is not None and not self._connected and self._failures >= _FIRST_TRIES:
            raise error
        asked = error.retry_after if error is not None else None
        pause = min(_MAX_PAUSE, 0.25 * 2.0 ** min(self._failures - 1, 8)) * random.uniform(0.5, 1.0)
        return pause if asked is None else min(asked, _MAX_PAUSE)


class Listening(Listener[EventMessage]):
    """Listens to events: what it wants, and how far it has come."""

    def __init__(
        self, streams: Sequence[str] | None, types: Sequence[str] | None, after: str | None
    ) -> None:
        super().__init__()
        self._params = {
            name: ",".join([words] if isinstance(words, str) else words)
            for name, words in (("streams", streams), ("types", types))
            if words is not None
        }
        self._position = after

    @property
    def request(self) -> dict[str, Any]:
        """Arguments of `httpx.Client.stream`, without a timeout."""
        after = {} if self._position is None else {"after": self._position}
        return {
            "method": "GET",
            "url": "/v1/events",
            "params": self._params | after,
            "headers": {"Accept": "text/event-stream"},
        }

    def _read(self, fields: dict[str, str]) -> EventMessage | None:
        self._position = fields.get("id", self._position)
        return _message(fields)


class Greeting(Record):
    """The first event of a connection.

    Attributes:
        now: the time of the service.
        oldest: the id of the oldest event that is kept; None if there is none.
        position: the id of the newest event, to go on from.
    """

    now: Timestamp
    oldest: str | None = None
    position: str


class FirstEvent(Listener[Greeting]):
    """Listens to the first event alone."""

    @property
    def request(self) -> dict[str, Any]:
        """Arguments of `httpx.Client.stream`, without a timeout."""
        return {"method": "GET", "url": "/v1/events", "headers": {"Accept": "text/event-stream"}}

    def _read(self, fields: dict[str, str]) -> Greeting:
        self.ended = True
        try:
            return Greeting.read({**json.loads(fields["data"]), "position": fields["id"]})
        except (ValueError, KeyError, TypeError, StreamerError) as error:
            raise StreamerError(
                ErrorCode.RECORD_UNREADABLE,
                "The first event cannot be read: if the API is newer than this program, upgrade "
                "this program.",
            ) from error


class Following(Listener[QueryUpdate]):
    """Follows the query at `path` to its result. A server begins again with each connection."""

    def __init__(self, path: str) -> None:
        super().__init__()
        self._path = path
        self._characters = 0

    @property
    def request(self) -> dict[str, Any]:
        """Arguments of `httpx.Client.stream`, without a timeout."""
        return {"method": "GET", "url": self._path, "headers": {"Accept": "text/event-stream"}}

    def _read(self, fields: dict[str, str]) -> QueryUpdate | None:
        kind = fields.get("event", "")
        try:
            data = json.loads(fields["data"])
            if kind == "progress":
                return QueryUpdate.read({**data, "type": kind})
            if kind == "delta":
                return self._piece(int(data["at"]), str(data["text"]))
            if kind == "result":
                self.ended = True
                query = Query.read(data)
                return QueryUpdate(type="result", status=query.status, query=query)
            problem = ErrorInfo.read(data) if kind == "error" else None
        except (ValueError, KeyError, TypeError, StreamerError) as error:
            raise StreamerError(
                ErrorCode.RECORD_UNREADABLE,
                "An event of the query cannot be read: if the API is newer than this program, "
                "upgrade this program.",
            ) from error
        if problem is not None:
            raise StreamerError(problem.code, problem.message)
        return None

    def _piece(self, at: int, text: str) -> QueryUpdate | None:
        new = text[max(0, self._characters - at) :]
        self._characters = max(self._characters, at + len(text))
        return QueryUpdate(type="delta", text=new) if new else None


def _message(fields: dict[str, str]) -> EventMessage | None:
    kind, position = fields.get("event", ""), fields.get("id", "")
    if kind == _HELLO:
        return None
    try:
        data = json.loads(fields["data"])
        if kind == _RESYNC:
            return EventMessage(id=position, type=kind, data=data)
        return EventMessage.read(data)
    except (ValueError, StreamerError) as error:
        raise StreamerError(
            ErrorCode.RECORD_UNREADABLE,
            f"The event {position} cannot be read: if the API is newer than this program, upgrade "
            "this program.",
        ) from error
