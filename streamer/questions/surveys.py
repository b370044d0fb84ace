"""Questions about several windows: their submission, the answers so far, and their end.

A model worker runs the job of a survey (`workers.gpu.survey_job`): it asks the question of each
window and then for the summary. What it has found is here, so that another worker can go on.
"""

from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import cast

import redis

from streamer import redis_keys
from streamer.domain.ids import new_id
from streamer.domain.query import Query, QueryProgress
from streamer.domain.question import Question
from streamer.domain.result import Result
from streamer.domain.stream import Stream
from streamer.domain.summaries import SUMMARY_TOKENS, Summary
from streamer.domain.survey import SurveyedStream, SurveyRequest
from streamer.domain.timestamp import utc_now
from streamer.errors import ErrorCode, StreamerError, about
from streamer.limits import MAX_QUERY_WINDOWS
from streamer.questions.queries import Queries
from streamer.queues.jobs import Jobs
from streamer.queues.recorded_windows import RecordedWindows
from streamer.response_format import TextFormat
from streamer.settings import Settings
from streamer.sources.streams import StreamRegistry
from streamer.validation import validated

MAX_OPEN_SURVEYS = 64
"""Surveys that may be open at once: each is a thread of a model worker."""

_COUNT, _ANSWER, _UNKNOWN = "windows", "answer:", "unknown:"

_LEFT_OUT: dict[str, object] = {"plan": None, "frame_times": [], "alert": None, "prompt": ""}
"""Fields of results that the answers of windows do not need; the timeline has them."""


class SurveyAnswers:
    """The answers of the windows of one survey, as they come."""

    def __init__(self, redis: redis.Redis, query_id: str, ttl: float) -> None:
        self._redis = redis
        self._key = redis_keys.survey(query_id)
        self._ttl = max(1, int(ttl))

    def expect(self, windows: int) -> None:
        """Note how many windows there are."""
        with self._redis.pipeline() as pipeline:
            pipeline.hset(self._key, _COUNT, windows)
            pipeline.expire(self._key, self._ttl)
            pipeline.execute()

    def add(self, results: Iterable[Result]) -> None:
        """Note the results of windows; of two with one `request_id` the first stays."""
        with self._redis.pipeline() as pipeline:
            for result in results:
                slim = result.model_copy(update=_LEFT_OUT)
                field = f"{_UNKNOWN if result.error else _ANSWER}{result.request_id}"
                pipeline.hsetnx(self._key, field, slim.model_dump_json())
            pipeline.expire(self._key, self._ttl)
            pipeline.execute()

    def all(self) -> dict[str, Result]:
        """Return the results by the ids of their requests."""
        stored = cast("dict[bytes, bytes]", self._redis.hgetall(self._key))
        found: dict[str, Result] = {}
        for prefix in (_UNKNOWN, _ANSWER):  # an answer is better than none
            for name, raw in stored.items():
                if name.startswith(prefix.encode()):
                    request_id = name.decode().removeprefix(prefix)
                    found[request_id] = Result.shown(raw, request_id)
        return found

    def progress(self) -> QueryProgress:
        """Return how far the survey is."""
        with self._redis.pipeline() as pipeline:
            pipeline.hget(self._key, _COUNT)
            pipeline.hkeys(self._key)
            windows, names = cast("tuple[bytes | None, list[bytes]]", pipeline.execute())
        answered, unknown = (
            {
                name.removeprefix(prefix.encode())
                for name in names
                if name.startswith(prefix.encode())
            }
            for prefix in (_ANSWER, _UNKNOWN)
        )
        return QueryProgress(
            windows=int(windows) if windows is not None else None,
            done=len(answered | unknown),
            unknown=len(unknown - answered),
        )


class Surveys:
    """The surveys of an installation."""

    def __init__(
        self,
        redis: redis.Redis,
        settings: Settings,
        registry: StreamRegistry,
        jobs: Jobs,
        queries: Queries,
        windows: RecordedWindows,
    ) -> None:
        self._redis = redis
        self._settings = settings
        self._registry = registry
        self._jobs = jobs
        self._queries = queries
        self._windows = windows

    def window_of(self, question: Question, length: float | None, streams: int = 1) -> float:
        """Return the seconds of each window of `streams` streams, each `length` seconds long; None:
        the length is not known.

        Raises StreamerError(INVALID_REQUEST) if the window of the question makes too many.
        """
        shortest = 0.0 if length is None else length * streams / MAX_QUERY_WINDOWS
        if question.window is None:
            return max(self._settings.window, shortest)
        if question.window < shortest * (1 - 1e-9):
            raise StreamerError(
                ErrorCode.INVALID_REQUEST,
                f"Windows of {question.window:g} s are more than {MAX_QUERY_WINDOWS}: ask for "
                f"longer ones, of {shortest:.1f} s or more (window, --every), or about less.",
                "window",
            )
        return question.window

    def require_room(self) -> None:
        """Raise StreamerError(TOO_MANY_QUERIES) if as many surveys are open as may be."""
        still_open = release_ended(self._redis, self._jobs, self._registry, self._windows)
        if still_open >= MAX_OPEN_SURVEYS:
            raise StreamerError(
                ErrorCode.TOO_MANY_QUERIES,
                f"{MAX_OPEN_SURVEYS} questions about several windows are open, and no more may be: "
                "ask again when one has been answered.",
            )

    def ask(
        self,
        question: Question,
        streams: Sequence[Stream],
        query_id: str | None = None,
        *,
        recording: bool = False,
    ) -> Query:
        """Submit a question about several windows of `streams`; of a `recording`, which was
        attached for it, its watch asks.

        Raises StreamerError: INVALID_REQUEST, TOO_MANY_QUERIES, UNKNOWN_MODEL.
        """
        self._jobs.served.require(question.model)
        response_format = question.response_format or TextFormat()
        with about("response_format"):
            response_format.check()
        now = utc_now()
        since, until = question.since, question.until
        window = question.window
        if recording:
            window = streams[0].watches[0].window
        elif since is not None and until is not None:
            length = (until - since).total_seconds()
            window = self.window_of(question, length, len(streams))
        only = streams[0] if len(streams) == 1 else None
        max_tokens = question.max_tokens
        request = validated(
            SurveyRequest,
            id=query_id or new_id("qry"),
            stream_id=only.id if only is not None else "",
            stream_name=only.name if only is not None else _names(streams),
            start=since or (streams[0].created_at if recording else now),
            end=until or now,
            prompt=question.prompt,
            max_tokens=self._settings.max_tokens if max_tokens is None else max_tokens,
            model=question.model or (only.model if only is not None else None),
            response_format=response_format,
            streams=[
                SurveyedStream(id=s.id, name=s.name, model=question.model or s.model)
                for s in streams
            ],
            recording=recording,
            now=not recording and since is None,
            window=window,
            max_frames=question.max_frames,
            stale_ok=question.stale_ok,
        )
        asked = question.model_dump(
            include={"since", "until", "max_frames", "stale_ok", "file", "window"}
        )
        several = question.streams is not None
        asked["streams"] = [stream.id for stream in streams] if several else None
        asked["stream"] = None if several or recording else streams[0].id
        asked["url"] = streams[0].url if question.url is not None else None
        return self._submit(request, asked)

    def summarise(
        self, summary: Summary, prompt: str, model: str | None, query_id: str | None
    ) -> Query:
        """Submit the blocks of a range to be summed up, as a query whose result has their texts.

        Raises StreamerError: TOO_MANY_QUERIES, UNKNOWN_MODEL.
        """
        self._jobs.served.require(model)
        request = validated(
            SurveyRequest,
            id=query_id or new_id("qry"),
            stream_name=summary.stream,
            start=summary.since,
            end=summary.until,
            prompt=prompt,
            max_tokens=SUMMARY_TOKENS,
            model=model,
            blocks=summary.blocks,
            counts=summary.model_dump(include={"results", "errors", "left_out"}),
        )
        asked = {"since": summary.since, "until": summary.until, "stream": summary.stream}
        return self._submit(request, asked)

    def _submit(self, request: SurveyRequest, asked: dict[str, object]) -> Query:
        self.require_room()
        query = self._queries.submit(request, **asked)
        # After its query, as a survey without one has ended.
        self._redis.zadd(redis_keys.OPEN_SURVEYS, {request.id: request.created_at.timestamp()})
        self._redis.expire(redis_keys.OPEN_SURVEYS, max(1, int(self._settings.query_ttl)))
        return query

    def progress(self, query: Query) -> QueryProgress | None:
        """Return how far a query about several windows is; None for another one."""
        if all(each is None for each in (query.streams, query.file, query.url, query.window)):
            return None
        progress = SurveyAnswers(self._redis, query.id, self._settings.query_ttl).progress()
        return None if progress.windows is None and not progress.done else progress

    def release(self, query: Query) -> None:
        """Stop what a query that has ended has asked for, if it was about several windows."""
        release(self._jobs, self._registry, self._windows, query.id, _recording_of(query))


def release(
    jobs: Jobs,
    registry: StreamRegistry,
    windows: RecordedWindows,
    query_id: str,
    recording_id: str | None,
) -> None:
    """Stop the requests of a survey, and detach the recording that was attached for it."""
    jobs.abandon(query_id)
    if recording_id is not None:
        release_recording(jobs, registry, windows, recording_id)


def release_recording(
    jobs: Jobs, registry: StreamRegistry, windows: RecordedWindows, recording_id: str
) -> None:
    """Detach the recording that was attached for a survey.

    Its frames stay for as long as those of any recording, for those who look at the answers.
    """
    with suppress(StreamerError):  # it is detached
        registry.delete(recording_id)
    jobs.stop_ingest(recording_id)
    jobs.abandon(recording_id)
    windows.forget(recording_id)


def release_ended(
    redis: redis.Redis, jobs: Jobs, registry: StreamRegistry, windows: RecordedWindows
) -> int:
    """Release the surveys that have ended, and return how many are open.

    A survey releases itself at its end; one whose job Redis lost, or that failed for good, cannot.
    """
    known = cast("list[bytes]", redis.zrange(redis_keys.OPEN_SURVEYS, 0, -1))
    ids = [query_id.decode() for query_id in known]
    with redis.pipeline(transaction=False) as pipeline:
        for query_id in ids:
            pipeline.exists(redis_keys.answer(query_id))
            pipeline.get(redis_keys.query(query_id))
        found = pipeline.execute()
    ended = 0
    for query_id, answered, record in zip(ids, found[::2], found[1::2], strict=True):
        if answered or record is None:
            recording_id = None
            with suppress(StreamerError):  # there is no record, or it cannot be read
                recording_id = _recording_of(Query.read(record or b""))
            release(jobs, registry, windows, query_id, recording_id)
            redis.zrem(redis_keys.OPEN_SURVEYS, query_id)
            ended += 1
    return len(ids) - ended


def _recording_of(query: Query) -> str | None:
    """Return the id of the recording that was attached for a query; None without one."""
    return query.stream_id if query.file is not None or query.url is not None else None


def _names(streams: Sequence[Stream]) -> str:
    return ", ".join(stream.name for stream in streams)
