"""Submit, find, list and cancel one-off questions about a stream."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, cast

import redis
import structlog
from rq.job import Job, JobStatus

from streamer import redis_keys
from streamer.clock import Clock, SystemClock
from streamer.cursors import decode_cursor, encode_cursor
from streamer.domain.frame import FrameRef, Gap
from streamer.domain.ids import new_id
from streamer.domain.kinds import RequestKind
from streamer.domain.query import Query, QueryStatus
from streamer.domain.question import Question
from streamer.domain.request import ClipRequest
from streamer.domain.result import Result
from streamer.domain.stream import Stream, StreamState
from streamer.domain.timestamp import rfc3339, to_datetime
from streamer.errors import ErrorCode, StreamerError, about
from streamer.frames.coverage import NEWEST, find_gaps, max_silence, sampling_interval
from streamer.frames.history import FrameHistory
from streamer.queues.jobs import Jobs
from streamer.queues.lost_requests import LostRequests
from streamer.queues.results import Results, final_status
from streamer.response_format import TextFormat
from streamer.settings import Settings
from streamer.validation import validated

MAX_LISTED = 1000
"""Maximum number of queries kept for listing; each is kept by its id for `query_ttl`."""

_STATE_WORDS = {StreamState.RUNNING: "running, but sends no pictures"}

_log = structlog.get_logger(__name__)

# One command, as a list has up to a thousand queries.
# KEYS: queries. ARGV: limit, order and id after which the page begins, or ''
# Returns whether there are more, order and id of the last one; per query its record, its answer and
# without that the status of its job
_PAGE = f"""
local ids, last, more = {{}}, {{0, ''}}, 0
local places = redis.call('ZREVRANGE', KEYS[1], 0, -1, 'WITHSCORES')
for i = 1, #places, 2 do
  local id, order = places[i], math.floor(tonumber(places[i + 1]) * 1000000 + 0.5)
  local after = tonumber(ARGV[2])
  if not after or order < after or (order == after and id < ARGV[3]) then
    if #ids == tonumber(ARGV[1]) then
      more = 1
      break
    end
    table.insert(ids, id)
    last = {{string.format('%.0f', order), id}}
  end
end
local found = {{more, last[1], last[2]}}
if #ids == 0 then return found end
local keys = {{}}
for _, id in ipairs(ids) do table.insert(keys, '{redis_keys.query("")}' .. id) end
for _, id in ipairs(ids) do table.insert(keys, '{redis_keys.answer("")}' .. id) end
local values = redis.call('MGET', unpack(keys))
for i, id in ipairs(ids) do
  local record, answer = values[i], values[#ids + i]
  local status = not answer and redis.call('HGET', '{Job.key_for("")}' .. id, 'status')
  table.insert(found, {{record, answer, status}})
end
return found
"""

_FINAL = {QueryStatus.DONE, QueryStatus.FAILED, QueryStatus.CANCELLED}


class NotYet(StreamerError):  # noqa: N818 - a frame is late, nothing has failed yet
    """A frame of the present is missing, but may come within seconds: the stream is opening."""


@dataclass(frozen=True)
class Seen:
    """The frames that a question is about, and what is to be known about them."""

    frames: list[FrameRef]
    gaps: list[Gap] = field(default_factory=list)
    stale: bool = False


class Queries:
    """The one-off questions of an installation."""

    def __init__(
        self,
        redis: redis.Redis,
        settings: Settings,
        history: FrameHistory,
        jobs: Jobs,
        results: Results,
        clock: Clock | None = None,
    ) -> None:
        self._redis = redis
        self._settings = settings
        self._history = history
        self._jobs = jobs
        self._results = results
        self._clock = clock or SystemClock()
        self._lost = LostRequests(redis, results)
        self._page = redis.register_script(_PAGE)

    def ask(self, question: Question, stream: Stream, query_id: str | None = None) -> Query:
        """Submit a question about `stream`. It gets a new id, unless there is a `query_id`.

        Without `since` it is about the newest frame, or the newest `max_frames`, which must be
        recent. With `since` it is about at most `max_frames` frames of the range: those that show
        most of what happened.

        Raises StreamerError: NO_FRAMES and STREAM_STALE, as the subclass NotYet if a frame may come
        soon; INVALID_REQUEST, ARCHIVE_UNAVAILABLE, TOO_MANY_QUERIES, UNKNOWN_MODEL. Raises
        redis.exceptions.OutOfMemoryError when Redis has no room for it.
        """
        model = question.model or stream.model
        self._jobs.served.require(model)
        response_format = question.response_format or TextFormat()
        with about("response_format"):
            response_format.check()
        seen = self.admit(question, stream)
        frames = seen.frames
        max_tokens = question.max_tokens
        request = validated(
            ClipRequest,
            id=query_id or new_id("qry"),
            kind=RequestKind.QUERY,
            stream_id=stream.id,
            stream_name=stream.name,
            start=question.since or to_datetime(frames[0].time),
            end=question.until or to_datetime(frames[-1].time),
            prompt=question.prompt,
            frames=frames,
            max_tokens=self._settings.max_tokens if max_tokens is None else max_tokens,
            model=model,
            response_format=response_format,
            data=None if stream.live else _place(frames),
            gaps=seen.gaps,
            stale=seen.stale,
        )
        asked = question.model_dump(include={"since", "until", "max_frames", "stale_ok"})
        return self.submit(request, **asked)

    def admit(self, question: Question, stream: Stream) -> Seen:
        """Choose the frames of a new question, as :meth:`see` does.

        A full server deletes frames, and refuses new questions: then that is the reason, not the
        missing frames. Raises redis.exceptions.OutOfMemoryError.
        """
        try:
            return self.see(question, stream)
        except StreamerError as error:
            if error.code in (ErrorCode.NO_FRAMES, ErrorCode.STREAM_STALE):
                self._jobs.require_room()
            raise

    def see(self, question: Question, stream: Stream) -> Seen:
        """Choose the frames of `stream` that a question is about; see :meth:`ask`."""
        if question.since is None or question.until is None:
            return self._newest(question, stream)
        return self._between(question, stream, question.since, question.until)

    def _newest(self, question: Question, stream: Stream) -> Seen:
        """Choose the frames of the present. Raises StreamerError(NO_FRAMES | STREAM_STALE)."""
        newest = self._history.frames.newest(stream.id, max(question.max_frames or 1, NEWEST))
        frames = newest[-(question.max_frames or 1) :]
        if not frames:
            raise _missing(stream, ErrorCode.NO_FRAMES, _no_frames_now(stream))
        if not stream.live:  # what a recording shows does not become old
            return Seen(frames)
        silence = max_silence(sampling_interval(stream.sampling, newest))
        limit = self._settings.stale_after or silence
        now = self._clock.time()
        stale = now - frames[-1].time > limit
        if stale and not question.stale_ok:
            raise _missing(
                stream,
                ErrorCode.STREAM_STALE,
                _too_old(stream, to_datetime(frames[-1].time), now - frames[-1].time, limit),
            )
        first, last = frames[0].time, frames[-1].time
        gaps = find_gaps(((f.time, f.time) for f in frames), first, last, lambda _: silence)
        return Seen(frames, gaps, stale)

    def _between(
        self, question: Question, stream: Stream, since: datetime, until: datetime
    ) -> Seen:
        """Choose the frames of a range. Raises StreamerError(NO_FRAMES) if there are none."""
        count = self._settings.max_frames if question.max_frames is None else question.max_frames
        found = self._history.select(stream, since.timestamp(), until.timestamp(), count)
        if not found.frames:
            raise StreamerError(ErrorCode.NO_FRAMES, self._no_frames_between(stream, since, until))
        return Seen(found.frames, found.gaps)

    def submit(self, request: ClipRequest, **asked: Any) -> Query:
        """Submit a request as a query, which is listed and can be fetched by its id.

        `asked` are the fields of the question that the request does not have.

        Raises StreamerError(TOO_MANY_QUERIES); redis.exceptions.OutOfMemoryError when Redis has no
        room for it.
        """
        query = Query.of(request, **asked)
        ttl = int(self._settings.query_ttl)

        def record(pipe: "redis.client.Pipeline") -> None:
            pipe.set(redis_keys.query(query.id), query.model_dump_json(), ex=ttl)
            pipe.zadd(redis_keys.QUERIES, {query.id: query.created_at.timestamp()})
            pipe.zremrangebyrank(redis_keys.QUERIES, 0, -MAX_LISTED - 1)
            pipe.expire(redis_keys.QUERIES, ttl)

        self._jobs.submit(request, record=record)
        return query

    def exists(self, query_id: str) -> bool:
        """Return whether a query is known."""
        return bool(self._redis.exists(redis_keys.query(query_id)))

    def get(self, query_id: str, wait: float = 0.0) -> Query:
        """Return a query after waiting up to `wait` seconds for its result.

        Raises StreamerError(UNKNOWN_QUERY | RECORD_UNREADABLE).
        """
        raw = cast(bytes | None, self._redis.get(redis_keys.query(query_id)))
        if raw is None:
            raise StreamerError(
                ErrorCode.UNKNOWN_QUERY,
                f"There is no query '{query_id[:80]}': check its id "
                f"(queries are kept for {self._settings.query_ttl / 3600:g} h, shorter when Redis "
                "is full; `streamer results` has their answers).",
            )
        query = Query.read(raw)
        result = self._results.wait(query_id, wait, check=lambda: self._lost.settle(query))
        return self._with_result(query, result)

    def _with_result(self, query: Query, result: Result | None) -> Query:
        status = self._status(query.id) if result is None else final_status(result)
        if status is None or (status in _FINAL and result is None):
            result = self._lost.settle(query)  # it arrived meanwhile, or Redis lost its job
            status = final_status(result) if result is not None else QueryStatus.FAILED
        return query.model_copy(update={"status": status, "result": result})

    def _status(self, query_id: str) -> QueryStatus | None:
        try:
            return self._jobs.status(query_id)
        except StreamerError as error:
            if error.code is not ErrorCode.UNKNOWN_QUERY:
                raise
            return None  # Redis lost its job

    def newest(self, limit: int) -> list[Query]:
        """Return up to `limit` queries, newest first; those that cannot be read are logged."""
        return self.page(limit)[0]

    def page(self, limit: int, cursor: str | None = None) -> tuple[list[Query], str | None]:
        """Return up to `limit` queries after `cursor`, newest first, and the cursor of the rest.

        Those that cannot be read are logged. Raises StreamerError(INVALID_REQUEST) for an invalid
        cursor.
        """
        after = decode_cursor(cursor) if cursor is not None else ("", "")
        page = self._page(keys=[redis_keys.QUERIES], args=[limit, *after])
        rest, order, last_id, *found = cast(list[Any], page)
        queries = []
        for raw, answer, job in found:
            try:
                query = Query.read(raw) if raw is not None else None
            except StreamerError as error:
                _log.warning("query_unreadable", reason=error.message)
                continue
            if query is None:
                continue
            if answer is None and job is not None:
                started = job == JobStatus.STARTED.value.encode()
                status = QueryStatus.RUNNING if started else QueryStatus.QUEUED
                queries.append(query.model_copy(update={"status": status}))
            else:
                result = Result.shown(answer, query.id) if answer else None
                queries.append(self._with_result(query, result))
        return queries, encode_cursor(int(order), last_id.decode()) if rest else None

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


def _missing(stream: Stream, code: ErrorCode, message: str) -> StreamerError:
    opening = stream.state in (StreamState.CONNECTING, StreamState.RUNNING) and stream.error is None
    return (NotYet if opening else StreamerError)(code, message)


def _place(frames: Sequence[FrameRef]) -> dict[str, float]:
    """Return where in a recording its frames are, as entries of a result's `data`."""
    return {"media_start": round(frames[0].pts, 3), "media_end": round(frames[-1].pts, 3)}


def _state(stream: Stream) -> str:
    """Describe the state of a stream without recent frames, with the reason if there is one."""
    words = f"{_STATE_WORDS.get(stream.state, stream.state.value)} since {rfc3339(stream.since)}"
    return f"{words} ({stream.error.message.rstrip('.')})" if stream.error is not None else words


def _too_old(stream: Stream, seen: datetime, age: float, limit: float) -> str:
    return (
        f"The newest picture of '{stream.name}' is {age:.0f} s old ({rfc3339(seen)}), and only one "
        f"of the last {limit:g} s shows what is there now: the stream is {_state(stream)}. Ask "
        "about the past (since, --since), or accept the old picture (stale_ok, --stale-ok)."
    )


def _no_frames_now(stream: Stream) -> str:
    problem = f"'{stream.name}' has no frames: it is {stream.state}"
    if stream.error is not None:
        return f"{problem} ({stream.error.message})"
    if stream.state in (StreamState.CONNECTING, StreamState.RUNNING):
        return f"{problem}. Try again in a few seconds."
    return f"{problem} and its frames have expired."
