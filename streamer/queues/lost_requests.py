"""End requests that Redis has lost, because it evicted or deleted their jobs, with an error."""

from typing import Any, cast

import redis
import structlog
from rq.job import Job

from streamer import redis_keys
from streamer.domain.error_info import ErrorInfo
from streamer.domain.kinds import ResultKind
from streamer.domain.query import Query
from streamer.domain.result import Result
from streamer.domain.stream import Stream
from streamer.domain.timestamp import to_datetime
from streamer.errors import ErrorCode, StreamerError
from streamer.queues.recorded_windows import RecordedWindows
from streamer.queues.results import Results
from streamer.sources.streams import StreamRegistry

_log = structlog.get_logger(__name__)

_LOST = ErrorInfo(
    code=ErrorCode.JOB_LOST,
    message="Redis lost this request before it was answered, because its memory was full or its "
    "data was deleted: ask again, and set its maxmemory-policy to noeviction.",
)

_MAX_SWEPT = 1000
"""Maximum number of unanswered queries that a sweep looks at; the next one looks at others."""


class LostRequests:
    """Publishes the error result of each request that has neither a job nor a result.

    A request and its job are stored in one transaction, and a job outlives the publication of its
    result: so a request without both is lost.
    """

    def __init__(self, redis: redis.Redis, results: Results) -> None:
        self._redis = redis
        self._results = results
        self._windows = RecordedWindows(redis)
        self._settled: set[str] = set()

    def is_lost(self, request_id: str) -> bool:
        """Return whether the request, which was once accepted, has neither a job nor a result."""
        with self._redis.pipeline() as pipeline:
            pipeline.exists(Job.key_for(request_id))
            pipeline.exists(redis_keys.answer(request_id))
            return not any(pipeline.execute())

    def settle(self, query: Query) -> Result | None:
        """Return the result of a query; publish the error before, if the query is lost."""
        if self.is_lost(query.id):
            self._results.publish(_failed(query, _LOST), owner_id=None)
        return self._results.get(query.id)

    def refuse(self, request_id: str, error: ErrorInfo) -> bool:
        """Publish `error` for a request that no worker can read; return False if it has a result.

        Of a job that another program submitted, only its id may be known.
        """
        raw = cast(bytes | None, self._redis.get(redis_keys.query(request_id)))
        try:
            result = _failed(Query.read(raw or b""), error)
        except StreamerError:
            result = Result(
                request_id=request_id,
                kind=ResultKind.ERROR,
                stream_id=None,
                stream_name=None,
                prompt="",
                error=error,
            )
        return self._results.publish(result, owner_id=None)

    def publish(self, request_id: str) -> bool:
        """Publish the error of a request of which only the id is known.

        Return False if it has a job or a result, or if nothing is known of it any more.
        """
        if not self.is_lost(request_id):
            return False
        raw = cast(bytes | None, self._redis.get(redis_keys.query(request_id)))
        if raw is not None:
            try:
                self.settle(Query.read(raw))
            except StreamerError as error:
                _log.warning("query_unreadable", query=request_id, reason=error.message)
                return False
            return True
        for stream in StreamRegistry(self._redis).list():
            for owner_id in [watch.id for watch in stream.watches] if stream.live else [stream.id]:
                asked = self._redis.zscore(redis_keys.in_flight(owner_id), request_id)
                if asked is not None:
                    return self.publish_clip(request_id, stream, owner_id, asked)
        return False

    def publish_clip(self, request_id: str, stream: Stream, owner_id: str, asked: float) -> bool:
        """Publish the error of a clip that `owner_id`, a watch or a recording, asked about at
        `asked` (seconds since the Unix epoch)."""
        window = None if stream.live else self._windows.get(stream.id, request_id)
        if window is not None:
            return self._results.publish(
                window.failed(request_id, stream, _LOST), owner_id=owner_id
            )
        watches = [watch for watch in stream.watches if watch.id == owner_id] or stream.watches
        return self._results.publish(
            Result(
                request_id=request_id,
                kind=ResultKind.ERROR,
                stream_id=stream.id,
                stream_name=stream.name,
                watch_id=watches[0].id if len(watches) == 1 else None,
                prompt=watches[0].prompt if watches else "",
                start=to_datetime(asked),
                end=to_datetime(asked),
                error=_LOST,
            ),
            owner_id=owner_id,
        )

    def sweep(self) -> int:
        """Settle unanswered queries, whether or not a client waits; return how many were lost."""
        newest = self._ids(self._redis.zrange(redis_keys.QUERIES, 0, -1))
        counted = self._ids(self._redis.hrandfield(redis_keys.OPEN_QUERIES, _MAX_SWEPT))
        counted.discard("total")
        self._settled &= newest
        open_ids = sorted((newest - self._settled) | counted)
        if not open_ids:
            return 0
        with self._redis.pipeline() as pipeline:
            for query_id in open_ids:
                pipeline.exists(Job.key_for(query_id))
                pipeline.exists(redis_keys.answer(query_id))
            found = pipeline.execute()
        lost = 0
        for query_id, has_job, has_answer in zip(open_ids, found[::2], found[1::2], strict=True):
            if has_job and not has_answer:
                continue
            if not has_answer:
                lost += self.publish(query_id)
            self._settled.add(query_id)
            if query_id in counted:  # such as one that a worker of an earlier version answered
                self._results.count_out(query_id)
        return lost

    @staticmethod
    def _ids(answer: Any) -> set[str]:
        return {raw.decode() for raw in cast("list[bytes] | None", answer) or ()}


def _failed(query: Query, error: ErrorInfo) -> Result:
    return Result(
        request_id=query.id,
        kind=ResultKind.ERROR,
        stream_id=query.stream_id or None,
        stream_name=query.stream_name or None,
        prompt=query.prompt,
        start=query.start,
        end=query.end,
        error=error,
    )
