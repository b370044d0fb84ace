"""Submit, find, list and cancel one-off questions about a stream."""

from datetime import datetime
from typing import cast

import redis

from streamer import redis_keys
from streamer.answer_form import AnswerForm, check_form
from streamer.domain import (
    ClipRequest,
    FrameRef,
    Query,
    QueryStatus,
    RequestKind,
    Result,
    Stream,
    StreamState,
    new_id,
    rfc3339,
    to_datetime,
    utc_now,
)
from streamer.errors import ErrorCode, StreamerError
from streamer.frames.history import FrameHistory
from streamer.jobs import Jobs
from streamer.results import Results
from streamer.settings import Settings
from streamer.times import When, moment
from streamer.validation import validated

LISTED = 1000
"""Number of queries kept for listing; each is kept by its id for `query_ttl`."""

_FINAL = {QueryStatus.DONE, QueryStatus.FAILED, QueryStatus.CANCELLED}


class Queries:
    """The one-off questions of an installation."""

    def __init__(
        self,
        redis: redis.Redis,
        settings: Settings,
        past: FrameHistory,
        jobs: Jobs,
        results: Results,
    ) -> None:
        self._redis = redis
        self._settings = settings
        self._past = past
        self._jobs = jobs
        self._results = results

    def ask(
        self,
        prompt: str,
        stream: Stream,
        *,
        since: When = None,
        until: When = None,
        max_frames: int | None = None,
        max_tokens: int | None = None,
        form: AnswerForm | None = None,
    ) -> Query:
        """Submit a question.

        Without `since` it is about now: the newest frame (the newest `max_frames`). With it, about
        at most `max_frames` frames spread over the range, whose end is now by default: those that
        tell most of it.

        Raises StreamerError: NO_FRAMES, INVALID_REQUEST, ARCHIVE_UNAVAILABLE, REDIS_FULL.
        """
        form = form or AnswerForm()
        check_form(form)
        if since is None and until is None:
            frames = self._past.frames.newest(stream.id, 1 if max_frames is None else max_frames)
            if not frames:
                raise StreamerError(ErrorCode.NO_FRAMES, _why_no_frames(stream))
            start, end = to_datetime(frames[0].time), to_datetime(frames[-1].time)
        else:
            start, end = _range(since, until)
            frames = self._past.choose(
                stream,
                start.timestamp(),
                end.timestamp(),
                self._settings.max_frames if max_frames is None else max_frames,
            )
            if not frames:
                raise StreamerError(ErrorCode.NO_FRAMES, self._what_is_kept(stream, start, end))
        return self._submit(prompt, stream, start, end, frames, max_tokens, form)

    def _submit(
        self,
        prompt: str,
        stream: Stream,
        start: datetime,
        end: datetime,
        frames: list[FrameRef],
        max_tokens: int | None,
        form: AnswerForm,
    ) -> Query:
        request = validated(
            ClipRequest,
            id=new_id("qry"),
            kind=RequestKind.QUERY,
            stream_id=stream.id,
            stream_name=stream.name,
            start=start,
            end=end,
            prompt=prompt,
            frames=frames,
            max_tokens=self._settings.max_tokens if max_tokens is None else max_tokens,
            **form.form,
        )
        query = Query.of(request)
        ttl = int(self._settings.query_ttl)
        with self._redis.pipeline() as pipe:
            pipe.set(redis_keys.query(query.id), query.model_dump_json(), ex=ttl)
            pipe.zadd(redis_keys.QUERIES, {query.id: query.created_at.timestamp()})
            pipe.zremrangebyrank(redis_keys.QUERIES, 0, -LISTED - 1)
            pipe.expire(redis_keys.QUERIES, ttl)
            pipe.execute()
        self._jobs.submit(request)
        return query

    def get(self, query_id: str, wait: float = 0.0) -> Query:
        """Return a query after waiting up to `wait` seconds for its result.

        Raises StreamerError(UNKNOWN_QUERY).
        """
        raw = cast(bytes | None, self._redis.get(redis_keys.query(query_id)))
        if raw is None:
            raise StreamerError(
                ErrorCode.UNKNOWN_QUERY,
                f"There is no query '{query_id[:80]}': check its id "
                f"(queries are kept for {self._settings.query_ttl / 3600:g} h).",
            )
        return self._with_result(Query.model_validate_json(raw), self._results.wait(query_id, wait))

    def _with_result(self, query: Query, result: Result | None) -> Query:
        status = self._status(query.id)
        if status in _FINAL and result is None:
            result = self._results.get(query.id)  # it came while we looked
        return query.model_copy(update={"status": status, "result": result})

    def _status(self, query_id: str) -> QueryStatus:
        try:
            return self._jobs.status(query_id)
        except StreamerError as error:
            if error.code is not ErrorCode.UNKNOWN_QUERY:
                raise
            return QueryStatus.FAILED  # its job was lost with a server's memory

    def newest(self, limit: int) -> list[Query]:
        """The newest queries first."""
        ids = cast(list[bytes], self._redis.zrevrange(redis_keys.QUERIES, 0, limit - 1))
        if not ids:
            return []
        kept = self._redis.mget([redis_keys.query(query_id.decode()) for query_id in ids])
        queries = [
            Query.model_validate_json(raw)
            for raw in cast(list[bytes | None], kept)
            if raw is not None
        ]
        return [self._with_result(query, self._results.get(query.id)) for query in queries]

    def cancel(self, query_id: str) -> Query:
        """Cancel a query; one that has a result is returned unchanged.

        Raises StreamerError(UNKNOWN_QUERY).
        """
        query = self.get(query_id)
        if query.status in _FINAL:
            return query
        self._jobs.cancel(query_id)
        return self.get(query_id)

    def _what_is_kept(self, stream: Stream, start: datetime, end: datetime) -> str:
        problem = f"'{stream.name}' has no frame between {rfc3339(start)} and {rfc3339(end)}"
        kept = self._past.frames.span(stream.id)
        if kept is None:
            return f"{problem}: no frames are kept."
        first, last = (rfc3339(to_datetime(when)) for when in kept)
        return f"{problem}: frames are kept from {first} to {last}."


def _range(since: When, until: When) -> tuple[datetime, datetime]:
    now = utc_now()
    start, end = moment(since, now), moment(until, now) or now
    if start is None:
        raise StreamerError(
            ErrorCode.INVALID_REQUEST,
            "The range has an end but no start: give since (--since) too.",
        )
    if start >= end:
        raise StreamerError(
            ErrorCode.INVALID_REQUEST,
            f"The range is empty: it starts at {rfc3339(start)} and ends at {rfc3339(end)}.",
        )
    return start, end


def _why_no_frames(stream: Stream) -> str:
    problem = f"'{stream.name}' has no frames: it is {stream.state}"
    if stream.error is not None:
        return f"{problem} ({stream.error.message})"
    if stream.state in (StreamState.CONNECTING, StreamState.RUNNING):
        return f"{problem}. Try again in a few seconds."
    return f"{problem} and its frames have expired."
