"""Submit, find, list and cancel one-off questions about a stream."""

from datetime import datetime
from typing import cast

import redis

from streamer import redis_keys
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
)
from streamer.errors import ErrorCode, StreamerError
from streamer.frames.history import FrameHistory
from streamer.jobs import Jobs
from streamer.question import Question
from streamer.response_format import TextFormat
from streamer.results import Results
from streamer.settings import Settings
from streamer.validation import validated

MAX_LISTED = 1000
"""Maximum number of queries kept for listing; each is kept by its id for `query_ttl`."""

_FINAL = {QueryStatus.DONE, QueryStatus.FAILED, QueryStatus.CANCELLED}


class Queries:
    """The one-off questions of an installation."""

    def __init__(
        self,
        redis: redis.Redis,
        settings: Settings,
        history: FrameHistory,
        jobs: Jobs,
        results: Results,
    ) -> None:
        self._redis = redis
        self._settings = settings
        self._history = history
        self._jobs = jobs
        self._results = results

    def ask(self, question: Question, stream: Stream) -> Query:
        """Submit a question about `stream`.

        Without `since` it is about the newest frame, or the newest `max_frames`. With `since` it
        is about at most `max_frames` frames of the range: those that show most of what happened.

        Raises StreamerError: NO_FRAMES, INVALID_REQUEST, ARCHIVE_UNAVAILABLE, REDIS_FULL.
        """
        response_format = question.response_format or TextFormat()
        response_format.check()
        frames = self._frames(question, stream)
        max_tokens = question.max_tokens
        request = validated(
            ClipRequest,
            id=new_id("qry"),
            kind=RequestKind.QUERY,
            stream_id=stream.id,
            stream_name=stream.name,
            start=question.since or to_datetime(frames[0].time),
            end=question.until or to_datetime(frames[-1].time),
            prompt=question.prompt,
            frames=frames,
            max_tokens=self._settings.max_tokens if max_tokens is None else max_tokens,
            response_format=response_format,
        )
        return self._submit(request)

    def _frames(self, question: Question, stream: Stream) -> list[FrameRef]:
        """Choose the frames to look at. Raises StreamerError(NO_FRAMES) if there are none."""
        since, until, max_frames = question.since, question.until, question.max_frames
        if since is None or until is None:
            frames = self._history.frames.newest(stream.id, 1 if max_frames is None else max_frames)
            if not frames:
                raise StreamerError(ErrorCode.NO_FRAMES, _no_frames_now(stream))
        else:
            max_frames = self._settings.max_frames if max_frames is None else max_frames
            frames = self._history.select(stream, since.timestamp(), until.timestamp(), max_frames)
            if not frames:
                raise StreamerError(
                    ErrorCode.NO_FRAMES, self._no_frames_between(stream, since, until)
                )
        return frames

    def _submit(self, request: ClipRequest) -> Query:
        query = Query.of(request)
        ttl = int(self._settings.query_ttl)
        with self._redis.pipeline() as pipe:
            pipe.set(redis_keys.query(query.id), query.model_dump_json(), ex=ttl)
            pipe.zadd(redis_keys.QUERIES, {query.id: query.created_at.timestamp()})
            pipe.zremrangebyrank(redis_keys.QUERIES, 0, -MAX_LISTED - 1)
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
            result = self._results.get(query.id)  # it arrived meanwhile
        return query.model_copy(update={"status": status, "result": result})

    def _status(self, query_id: str) -> QueryStatus:
        try:
            return self._jobs.status(query_id)
        except StreamerError as error:
            if error.code is not ErrorCode.UNKNOWN_QUERY:
                raise
            return QueryStatus.FAILED  # Redis lost its job

    def newest(self, limit: int) -> list[Query]:
        """Return up to `limit` queries, newest first."""
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

    def _no_frames_between(self, stream: Stream, start: datetime, end: datetime) -> str:
        problem = f"'{stream.name}' has no frame between {rfc3339(start)} and {rfc3339(end)}"
        kept = self._history.frames.span(stream.id)
        if kept is None:
            return f"{problem}: no frames are kept."
        first, last = (rfc3339(to_datetime(when)) for when in kept)
        return f"{problem}: frames are kept from {first} to {last}."


def _no_frames_now(stream: Stream) -> str:
    problem = f"'{stream.name}' has no frames: it is {stream.state}"
    if stream.error is not None:
        return f"{problem} ({stream.error.message})"
    if stream.state in (StreamState.CONNECTING, StreamState.RUNNING):
        return f"{problem}. Try again in a few seconds."
    return f"{problem} and its frames have expired."
