"""Every call of the API, once: both clients have these as methods, with these signatures."""

import time
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any, Literal, TypeVar
from urllib.parse import quote

from streamer.alert_rule import AlertRule
from streamer.api.schemas import (
    QueryList,
    Readiness,
    ResultPage,
    StreamList,
    WatchBody,
    WatchList,
)
from streamer.domain import Query, Record, Result, Sampling, Stream, Transport, Watch
from streamer.errors import ErrorCode, StreamerError
from streamer.http_client.call import Call, Flow, Paged
from streamer.http_client.listening import Listening
from streamer.response_format import ResponseFormat
from streamer.times import When

_Record = TypeVar("_Record", bound=Record)

WatchLike = str | Watch | WatchBody
"""A standing question as callers give it: its prompt, or a record."""

_OPENING = 60.0
"""Seconds that the server may need to open a source."""

_FIRST_FRAME = 15.0
"""Seconds for which the server may wait for the first frame of a stream."""

_SLICE = 30.0
"""Seconds for which one request waits for an answer; longer waits are several requests."""

_MAX_PAGE = 1000


class ServiceCalls:
    """Calls for streams, queries, results and the state of the service."""

    @staticmethod
    def attach(
        url: str,
        name: str | None = None,
        *,
        sampling: Sampling | None = None,
        watches: Sequence[WatchLike] | None = None,
        transport: Transport = "auto",
        history: float | None = None,
        probe: bool = True,
        live: bool | None = None,
    ) -> Call[Stream]:
        """Attach a URL, or a file of the server; without `watches` every window gets a caption.

        A watch is a prompt, or a record with more. `history` are the seconds that frames are kept.
        `live` says whether the end of the source is a lost connection; None: opening it tells.

        Raises StreamerError: a stream code if the probe fails (nothing is attached then),
        NAME_TAKEN, INVALID_REQUEST, STREAM_URL_FORBIDDEN.
        """
        body = {
            "url": url,
            "name": name,
            "sampling": sampling,
            "watches": _watches(watches),
            "transport": transport,
            "history": history,
            "probe": probe,
            "live": live,
        }
        return _post("/v1/streams", Stream, body, patience=_OPENING)

    @staticmethod
    def edit(
        ref: str,
        *,
        url: str | None = None,
        name: str | None = None,
        sampling: Sampling | None = None,
        watches: Sequence[WatchLike] | None = None,
        transport: Transport | None = None,
        history: float | None = None,
        paused: bool | None = None,
        probe: bool = True,
    ) -> Call[Stream]:
        """Change a stream by id or name while it runs; arguments that are None change nothing.

        `watches` replaces all watches; those that ask the same as before continue.

        Raises StreamerError: UNKNOWN_STREAM, NAME_TAKEN, INVALID_REQUEST, a stream code if the
        probe of a new URL fails (nothing is changed then).
        """
        body = {
            "url": url,
            "name": name,
            "sampling": sampling,
            "watches": _watches(watches),
            "transport": transport,
            "history": history,
            "paused": paused,
            "probe": probe,
        }
        path = f"/v1/streams/{_segment(ref)}"
        return Call("PATCH", path, Stream.read, body=_json(body), patience=_OPENING)

    @staticmethod
    def pause(ref: str) -> Call[Stream]:
        """Pause a stream: it stays attached, but is not read. Raises StreamerError."""
        return ServiceCalls.edit(ref, paused=True)

    @staticmethod
    def resume(ref: str) -> Call[Stream]:
        """Resume a paused stream. Raises StreamerError."""
        return ServiceCalls.edit(ref, paused=False)

    @staticmethod
    def detach(ref: str) -> Call[Stream]:
        """Detach a stream by id or name, and return its last state. Its results stay.

        Raises StreamerError(UNKNOWN_STREAM).
        """
        return Call("DELETE", f"/v1/streams/{_segment(ref)}", Stream.read)

    @staticmethod
    def streams() -> Call[list[Stream]]:
        """Return all attached streams with their states and counters, oldest first."""
        return Call("GET", "/v1/streams", lambda body: StreamList.read(body).streams)

    @staticmethod
    def stream(ref: str) -> Call[Stream]:
        """Return a stream by id or name. Raises StreamerError(UNKNOWN_STREAM)."""
        return Call("GET", f"/v1/streams/{_segment(ref)}", Stream.read)

    @staticmethod
    def submit(
        prompt: str,
        stream: str | None = None,
        *,
        since: When = None,
        until: When = None,
        max_frames: int | None = None,
        max_tokens: int | None = None,
        response_format: ResponseFormat | None = None,
        stale_ok: bool = False,
    ) -> Call[Query]:
        """Ask about a stream now or, with `since`, about a past range; do not wait for the answer.

        `stream` is an id or name; it may be None if only one stream is attached. Times are aware
        datetimes, RFC 3339, or relative such as `-10m`.

        Raises StreamerError: PROMPT_EMPTY, UNKNOWN_STREAM, NO_FRAMES, STREAM_STALE,
        INVALID_REQUEST, TOO_MANY_QUERIES.
        """
        body = {
            "prompt": prompt,
            "stream": stream,
            "since": _time("since", since),
            "until": _time("until", until),
            "max_frames": max_frames,
            "max_tokens": max_tokens,
            "response_format": response_format,
            "stale_ok": stale_ok,
        }
        return _post("/v1/queries", Query, body, patience=_FIRST_FRAME)

    @staticmethod
    def ask(
        prompt: str,
        stream: str | None = None,
        *,
        since: When = None,
        until: When = None,
        max_frames: int | None = None,
        max_tokens: int | None = None,
        response_format: ResponseFormat | None = None,
        stale_ok: bool = False,
        wait: float = 120.0,
    ) -> Flow[Result]:
        """Ask as `submit` does, wait up to `wait` seconds for the answer, and return it.

        Raises StreamerError: as `submit`; the error of the query if it failed; TIMEOUT if there is
        no answer in time, and the query goes on.
        """
        query = yield ServiceCalls.submit(
            prompt,
            stream,
            since=since,
            until=until,
            max_frames=max_frames,
            max_tokens=max_tokens,
            response_format=response_format,
            stale_ok=stale_ok,
        )
        query = yield from ServiceCalls.query(query.id, wait=wait)
        if query.result is None:
            raise StreamerError(
                ErrorCode.TIMEOUT,
                f"No answer within {wait:g} s: query {query.id} is {query.status}. Wait longer, or "
                "ask for it later by this id.",
            )
        result: Result = query.result
        if result.error is not None:
            raise StreamerError(result.error.code, result.error.message)
        return result

    @staticmethod
    def query(query_id: str, wait: float = 0.0) -> Flow[Query]:
        """Return a query after waiting up to `wait` seconds for its result.

        Raises StreamerError(UNKNOWN_QUERY).
        """
        path = f"/v1/queries/{_segment(query_id)}"
        deadline = time.monotonic() + wait
        while True:
            left = min(_SLICE, max(0.0, deadline - time.monotonic()))
            query = yield Call("GET", path, Query.read, {"wait": round(left, 3)}, patience=left)
            if query.result is not None or time.monotonic() >= deadline:
                found: Query = query
                return found

    @staticmethod
    def queries(limit: int = 100) -> Call[list[Query]]:
        """Return up to `limit` queries, newest first."""
        read = lambda body: QueryList.read(body).queries  # noqa: E731
        return Call("GET", "/v1/queries", read, {"limit": limit})

    @staticmethod
    def cancel(query_id: str) -> Call[Query]:
        """Cancel a query; one that has a result is returned unchanged.

        Raises StreamerError(UNKNOWN_QUERY).
        """
        return Call("DELETE", f"/v1/queries/{_segment(query_id)}", Query.read)

    @staticmethod
    def results(
        *,
        stream: str | None = None,
        kind: Literal["caption", "answer", "alert", "error"] | None = None,
        since: When = None,
        until: When = None,
        q: str | None = None,
        limit: int | None = None,
        page_size: int = 100,
    ) -> Paged[Result]:
        """Yield recorded results, newest first, up to `limit`; pages are fetched as needed.

        `stream` is the id or name of an attached or detached stream; `q` is a text to search for.

        Raises StreamerError: INVALID_REQUEST, UNKNOWN_STREAM, DATABASE_UNAVAILABLE.
        """
        filters = {
            "stream": stream,
            "kind": kind,
            "since": _time("since", since),
            "until": _time("until", until),
            "q": q,
        }

        def call(cursor: str | None, size: int) -> Call[tuple[list[Result], str | None]]:
            params = {**filters, "limit": size, "cursor": cursor}
            return Call("GET", "/v1/results", read, params)

        def read(body: bytes) -> tuple[list[Result], str | None]:
            page = ResultPage.read(body)
            return page.results, page.next_cursor

        return Paged(call, limit, max(1, min(page_size, _MAX_PAGE)))

    @staticmethod
    def events(
        *,
        streams: Sequence[str] | None = None,
        types: Sequence[str] | None = None,
        after: str | None = None,
    ) -> Listening:
        """Yield what happens from the first step of the iteration on, without end.

        `streams` are ids and names, `types` such as `result.created` or `incident.*`; None: all.
        `after` is the id of an event: begin with the one that came after it. A lost connection is
        made again, and no event is missing or comes twice, except where one of the type `resync`
        says that some are no longer kept.

        Raises StreamerError: INVALID_REQUEST, TOO_MANY_LISTENERS.
        """
        return Listening(streams, types, after)

    @staticmethod
    def health() -> Call[Readiness]:
        """Return the state of the installation: of each program and server that it needs."""
        return Call("GET", "/readyz", Readiness.read, also=frozenset({503}))


class WatchCalls:
    """Calls for the watches of one stream."""

    @staticmethod
    def add(
        ref: str,
        prompt: str,
        *,
        window: float | None = None,
        max_frames: int | None = None,
        max_tokens: int | None = None,
        response_format: ResponseFormat | None = None,
        alert: AlertRule | None = None,
    ) -> Call[Watch]:
        """Add a watch to a stream; what is left out is set by the server's settings.

        With `alert`, its answers are yes or no, and open incidents by this rule.

        Raises StreamerError: UNKNOWN_STREAM, PROMPT_EMPTY, INVALID_REQUEST.
        """
        body = {
            "prompt": prompt,
            "window": window,
            "max_frames": max_frames,
            "max_tokens": max_tokens,
            "response_format": response_format,
            "alert": alert,
        }
        return _post(f"/v1/streams/{_segment(ref)}/watches", Watch, body)

    @staticmethod
    def list(ref: str) -> Call[list[Watch]]:
        """Return the watches of a stream, oldest first. Raises StreamerError(UNKNOWN_STREAM)."""
        path = f"/v1/streams/{_segment(ref)}/watches"
        return Call("GET", path, lambda body: WatchList.read(body).watches)

    @staticmethod
    def get(ref: str, watch_id: str) -> Call[Watch]:
        """Return a watch. Raises StreamerError(UNKNOWN_STREAM | UNKNOWN_WATCH)."""
        return Call("GET", f"/v1/streams/{_segment(ref)}/watches/{_segment(watch_id)}", Watch.read)

    @staticmethod
    def edit(
        ref: str,
        watch_id: str,
        *,
        prompt: str | None = None,
        window: float | None = None,
        max_frames: int | None = None,
        max_tokens: int | None = None,
        response_format: ResponseFormat | None = None,
        alert: AlertRule | None = None,
    ) -> Call[Watch]:
        """Change a watch, which keeps its id; arguments that are None change nothing.

        Of an alert's rule change the fields that `alert` sets.

        Raises StreamerError: UNKNOWN_STREAM, UNKNOWN_WATCH, PROMPT_EMPTY, INVALID_REQUEST.
        """
        body = {
            "prompt": prompt,
            "window": window,
            "max_frames": max_frames,
            "max_tokens": max_tokens,
            "response_format": response_format,
            "alert": alert and alert.model_dump(mode="json", exclude_unset=True),
        }
        path = f"/v1/streams/{_segment(ref)}/watches/{_segment(watch_id)}"
        return Call("PATCH", path, Watch.read, body=_json(body))

    @staticmethod
    def remove(ref: str, watch_id: str) -> Call[Watch]:
        """Remove a watch and return it. Its results stay.

        Raises StreamerError(UNKNOWN_STREAM | UNKNOWN_WATCH).
        """
        path = f"/v1/streams/{_segment(ref)}/watches/{_segment(watch_id)}"
        return Call("DELETE", path, Watch.read)


def _post(
    path: str, record: type[_Record], body: Mapping[str, Any], patience: float = 0.0
) -> Call[_Record]:
    return Call("POST", path, record.read, body=_json(body), patience=patience)


def _json(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of a body that are given, records as JSON."""
    return {name: _plain(value) for name, value in fields.items() if value is not None}


def _plain(value: Any) -> Any:
    dump: Callable[..., Any] | None = getattr(value, "model_dump", None)
    return value if dump is None else dump(mode="json", exclude_none=True)


def _watches(watches: Sequence[WatchLike] | None) -> list[dict[str, Any]] | None:
    if watches is None:
        return None
    bodies = ({"prompt": w} if isinstance(w, str) else _plain(w) for w in watches)
    return [{name: value for name, value in body.items() if name != "id"} for body in bodies]


def _time(name: str, when: When) -> str | None:
    if not isinstance(when, datetime):
        return when
    if when.tzinfo is None:
        raise StreamerError(
            ErrorCode.INVALID_REQUEST,
            f"'{when.isoformat()}' has no time zone: use datetime.now(UTC), or .astimezone().",
            name,
        )
    return when.isoformat()


def _segment(ref: str) -> str:
    """Return an id or name as a part of a path."""
    if not ref:
        raise StreamerError(ErrorCode.INVALID_REQUEST, "The id is empty: give an id or a name.")
    return quote(ref, safe="")
