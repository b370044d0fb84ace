"""Submit jobs to the workers, through RQ, always as JSON."""

import contextlib
import json
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from math import isfinite
from typing import Any, cast

import redis
from rq import Queue, Retry, worker_registration
from rq.command import send_command, send_stop_execution_command
from rq.exceptions import DuplicateJobError, InvalidJobOperation, NoSuchJobError
from rq.job import Job, JobStatus
from rq.registry import StartedJobRegistry
from rq.results import Result as RQResult
from rq.serializers import JSONSerializer

from nvila_core.errors import shorten
from streamer import redis_keys
from streamer.domain.conversation import ChatRequest
from streamer.domain.error_info import ErrorInfo
from streamer.domain.kinds import RequestKind
from streamer.domain.query import QueryStatus
from streamer.domain.request import ClipRequest
from streamer.domain.result import Result
from streamer.domain.survey import SurveyRequest
from streamer.domain.timestamp import utc_now
from streamer.errors import ErrorCode, StreamerError, Superseded
from streamer.limits import (
    MAX_ANSWER_TOKENS,
    MAX_CLIP_FRAMES,
    MAX_DATA,
    MAX_PROMPT,
    MAX_QUERY_WINDOWS,
    check_length,
    check_prompt,
)
from streamer.queues.affinity import MAX_WAKE_TOKENS, WAKE, WAKE_TTL
from streamer.queues.job_fields import JobFields
from streamer.queues.lost_requests import LostRequests
from streamer.queues.models import CLIP_QUEUES, QUERIES, Models, clip_queue
from streamer.queues.pace import EXPECTED_WAIT
from streamer.queues.places import SPLIT, Places
from streamer.queues.recorded_windows import RecordedWindows
from streamer.queues.results import Results, final_status
from streamer.queues.results_queue import recorders
from streamer.redis_client.address import await_replica
from streamer.redis_client.memory_reserve import HAS_ROOM, require_room, words_of
from streamer.redis_client.record_version import RECORD_VERSION
from streamer.settings import Settings
from streamer.tracing import submitting

INGEST = "ingest"

WEBHOOKS = "webhooks"

# Fields that release 0.1.0 refuses. They are left out where they say nothing, so that its model
# workers answer requests of this release too.
_ADDED = (
    "model",
    "logprobs",
    "warning",
    "gaps",
    "stale",
    "alert",
    "part_of",
    "traceparent",
)

# What these fields are where they say nothing: to ask the record for them takes longer than the
# rest of storing a request.
_SILENT = {
    name: ClipRequest.model_fields[name].get_default(call_default_factory=True) for name in _ADDED
}

CLIP_JOB = "workers.clip.answer"
CHAT_JOB = "workers.chat.answer"
SURVEY_JOB = "workers.survey.answer"
INGEST_JOB = "workers.ingest.run_stream"
WEBHOOK_JOB = "workers.webhooks.deliver"

# How often the job of a dead worker is retried. A clip that kills its worker must not take down
# all of them; a stream runs for as long as it is attached.
_MAX_CLIP_RETRIES = 2
_MAX_WEBHOOK_RETRIES = 2
_MAX_INGEST_RETRIES = 1_000_000

_DONE_TTL = 0  # a clip job is deleted as soon as its result is published
_FAILED_TTL = 3600  # seconds; its result is published too
_WEBHOOK_TIMEOUT = 60
_IN_FLIGHT_TTL = 86_400
_ASKED_TTL = 3600
"""Seconds after the last window of a live watch for which its end is known."""

_MAX_RETRY_AFTER = 60.0
"""Seconds after which a refused query may be asked again, at most: by then others may have left."""

_MAX_RACES = 3
"""How often a clip looks for a place, while workers take those that it finds."""

# KEYS: job, answer, open queries, job of the stream, queue, its registry of jobs that run,
# in-flight set of the request's owner (or the open queries again)
# ARGV: request id, bytes of it and its answer, maximum number (0: it is no query) and bytes of the
# open queries, TTL s, token of the stream's worker or '', seconds that a query may be expected to
# wait, stream whose frames it shows or '', how many requests of its owner may be in flight (0: any
# number), commands that store it
# Returns the outcome, and the seconds that queries are expected to wait, '' if not known.
_ACCEPT = (
    HAS_ROOM
    + EXPECTED_WAIT
    + WAKE
    + """
if ARGV[6] ~= '' and redis.call('HGET', KEYS[4], 'token') ~= ARGV[6] then
  return {'superseded', ''}
end
if redis.call('EXISTS', KEYS[1], KEYS[2]) > 0 then return {'known', ''} end
local most = tonumber(ARGV[9])
if most > 0 and redis.call('ZCARD', KEYS[7]) >= most then return {'crowded', ''} end
local max_queries = tonumber(ARGV[3])
if max_queries > 0 then
  local waiting, wait = expected_wait(KEYS[5])
  local shown = tostring(wait or '')
  local bytes = tonumber(redis.call('HGET', KEYS[3], 'total') or '0')
  if redis.call('HLEN', KEYS[3]) > max_queries then return {'too many', shown} end
  if bytes > 0 and bytes + tonumber(ARGV[2]) > tonumber(ARGV[4]) then
    return {'too large', shown}
  end
  -- Half as many as are being answered may always wait: about as long as an answer takes, where
  -- watches and recordings get half of the slots.
  if wait and wait > tonumber(ARGV[7]) and 2 * waiting > redis.call('ZCARD', KEYS[6]) then
    return {'too slow', shown}
  end
end
if not has_room(tonumber(ARGV[2])) then return {'full', ''} end
if max_queries > 0 then
  redis.call('HSET', KEYS[3], ARGV[1], ARGV[2])
  redis.call('HINCRBY', KEYS[3], 'total', ARGV[2])
  redis.call('EXPIRE', KEYS[3], ARGV[5])
end
local at = 10
while at <= #ARGV do
  local count = tonumber(ARGV[at])
  redis.call(unpack(ARGV, at + 1, at + count))
  at = at + count + 1
end
if ARGV[8] ~= '' then redis.call('HSET', KEYS[1], 'stream', ARGV[8]) end
wake_for(KEYS[5], ARGV[8])
return {'accepted', ''}
"""
)

_IN_FLIGHT = SPLIT + "return {#living, lost}"

# KEYS: in-flight. ARGV: prefix of jobs, prefix of the queues
_DROP_WAITING = (
    SPLIT
    + """
local dropped = 0
for _, id in ipairs(living) do
  local queue = redis.call('HGET', ARGV[1] .. id, 'origin')
  if queue and redis.call('LREM', ARGV[2] .. queue, 1, id) > 0 then
    redis.call('DEL', ARGV[1] .. id)
    redis.call('ZREM', KEYS[1], id)
    dropped = dropped + 1
  end
end
return {dropped, lost}
"""
)

# A job whose execution is not registered any more runs nowhere, whatever its status says.
# KEYS: queue, job, registries of started, failed and finished jobs, other keys of the job
# ARGV: job id, whether a waiting job is removed
_REMOVE = """
local status = redis.call('HGET', KEYS[2], 'status')
local execution = redis.call('HGET', KEYS[2], 'execution')
local waits = ARGV[2] == '1' and redis.call('LREM', KEYS[1], 0, ARGV[1]) > 0
if status == 'queued' and not waits then return 0 end
if status == 'started'
   and not (execution and not redis.call('ZSCORE', KEYS[3], ARGV[1] .. ':' .. execution)) then
  return 0
end
redis.call('ZREM', KEYS[4], ARGV[1])
redis.call('ZREM', KEYS[5], ARGV[1])
redis.call('DEL', KEYS[2], unpack(KEYS, 6))
return 1
"""


def owner_of(request: ClipRequest) -> str | None:
    """Return whose in-flight set holds a request: its watch or recording, or the query that it is
    a part of; None for a query."""
    if request.part_of is not None:
        return request.part_of
    if request.kind is RequestKind.QUERY:
        return None
    return request.watch_id if request.kind is RequestKind.WATCH else request.stream_id


def error_result(request: ClipRequest, code: ErrorCode, message: str) -> Result:
    """Build the result of a request that failed."""
    return Result.answering(request, error=ErrorInfo(code=code, message=message))


def read_request(job: Job) -> ClipRequest | None:
    """Return the request of a job of a model worker, as far as it can be read; None if it is
    another job."""
    with contextlib.suppress(Exception):  # no content of a job may break its reader
        if job.func_name in (CLIP_JOB, CHAT_JOB, SURVEY_JOB):
            return request_in_part(job.id, job.args[0])
    return None


def request_in_part(request_id: str, stored: dict[str, Any]) -> ClipRequest:
    """Return a stored request as far as it can be read: enough to give it a result."""
    now = utc_now()
    return ClipRequest.read_in_part(
        stored,
        id=request_id,
        kind=RequestKind.QUERY if stored.get("watch_id") is None else RequestKind.WATCH,
        stream_id="",
        stream_name="",
        start=now,
        end=now,
        prompt="",
        frames=[],
    )


def check_request(request: ClipRequest) -> None:
    """Check the size of a request, before a worker spends anything on it.

    Raises StreamerError: PROMPT_EMPTY, PROMPT_TOO_LONG, INVALID_REQUEST.
    """
    check_prompt(request.prompt)
    if len(request.frames) > MAX_CLIP_FRAMES:
        raise StreamerError(
            ErrorCode.INVALID_REQUEST,
            f"The request is about {len(request.frames)} frames, more than {MAX_CLIP_FRAMES}: ask "
            "about fewer (max_frames).",
        )
    if request.max_tokens > MAX_ANSWER_TOKENS:
        raise StreamerError(
            ErrorCode.INVALID_REQUEST,
            f"The request asks for {request.max_tokens} tokens, more than {MAX_ANSWER_TOKENS}: "
            "lower max_tokens.",
        )
    check_length("data of the request", json.dumps(request.data), MAX_DATA)
    if request.response_format.type == "choice":
        request.response_format.check()


def within_limits(request: ClipRequest) -> ClipRequest:
    """Return a request cut to the limits, as its error result may repeat it."""
    cut: dict[str, Any] = {}
    if len(request.prompt) > MAX_PROMPT:
        cut["prompt"] = shorten(request.prompt)
    if len(request.frames) > MAX_CLIP_FRAMES:
        cut["frames"] = request.frames[:MAX_CLIP_FRAMES]
    if len(json.dumps(request.data)) > MAX_DATA:
        cut["data"] = None
    return request.model_copy(update=cut) if cut else request


class Jobs:
    """Submits, counts, drops and cancels jobs."""

    def __init__(self, redis: redis.Redis, settings: Settings) -> None:
        self._redis = redis
        self._settings = settings
        self._results = Results(redis, settings)
        self._lost = LostRequests(redis, self._results)
        self._windows = RecordedWindows(redis)
        self.served = Models(redis)
        """The models that workers serve."""
        # to make one takes as long as to store a job; bounded, because a request may name any model
        self._queue = lru_cache(maxsize=64)(
            lambda name: Queue(name, connection=redis, serializer=JSONSerializer)
        )
        self._fields = JobFields(
            timeout=max(1, round(settings.job_timeout)),
            result_ttl=_DONE_TTL,
            failure_ttl=_FAILED_TTL,
        )
        self._webhooks = self._queue(WEBHOOKS)
        self._accept_script = redis.register_script(_ACCEPT)
        self._count = redis.register_script(_IN_FLIGHT)
        self._drop = redis.register_script(_DROP_WAITING)
        self._remove_script = redis.register_script(_REMOVE)

    def submit(
        self,
        request: ClipRequest,
        record: Callable[[redis.client.Pipeline], None] = lambda _: None,
        token: int | None = None,
    ) -> None:
        """Submit a request. It gets exactly one result, unless :meth:`drop_waiting` drops it.

        A request that was submitted before is not submitted again. `record` adds commands to the
        transaction that stores the job. Behind Sentinel the call returns once a replica has the job
        too.

        Raises redis.exceptions.OutOfMemoryError when Redis has no room for new work;
        StreamerError(TOO_MANY_QUERIES).
        With the `token` of the worker that runs the stream, raises Superseded if another one does
        by now.
        """
        with submitting(request) as traced:
            self._submit(traced, record, token)

    def _submit(
        self,
        request: ClipRequest,
        record: Callable[[redis.client.Pipeline], None],
        token: int | None,
        most: int = 0,
    ) -> bool:
        """Submit a request, unless `most` requests of its owner are in flight; 0: any number may
        be. Return whether it was."""
        queue = self._queue(clip_queue(request.kind, request.model))
        owner = owner_of(request)
        with self._redis.pipeline() as pipeline:
            # By their words: to build each command by its method takes longer than to send it.
            add: Callable[..., object] = pipeline.execute_command
            add("SADD", Queue.redis_queues_keys, queue.key)
            add("HSET", Job.key_for(request.id), *self._fields_of(request, queue))
            add("RPUSH", queue.key, request.id)
            if owner is not None:
                key = redis_keys.in_flight(owner)
                add("ZADD", key, request.created_at.timestamp(), request.id)
                add("EXPIRE", key, _IN_FLIGHT_TTL)
            if request.kind is RequestKind.FILE and request.part_of is None:
                self._windows.note(request, pipeline)
            _note_asked(request, pipeline)
            record(pipeline)
            words = words_of(pipeline.command_stack)
            if not self._accept(request, queue, words, token, most):
                return False
        await_replica(self._redis)
        return True

    def submit_newest(self, request: ClipRequest, most: int, token: int | None = None) -> int:
        """Submit a clip of a live watch of which at most `most` are to be in flight.

        If so many are, the oldest one that no worker has taken is dropped: the others move up to
        its place in the queue, and the new clip takes the last of theirs. Returns the number of
        dropped clips: they get no result, so the caller counts them.

        Raises redis.exceptions.OutOfMemoryError when Redis has no room for new work. With the
        `token` of the worker that runs the stream, raises Superseded if another one does by now.
        """
        queue = self._queue(clip_queue(request.kind, request.model))
        owner = owner_of(request)
        assert owner is not None
        places = Places(self._redis, queue, owner, request.stream_id or "", token)
        dropped = 0
        with submitting(request) as traced:
            if self._submit(traced, lambda _: None, token, most):
                return 0
            for _ in range(_MAX_RACES):
                waiting = places.look(most)
                self._end_lost(owner, waiting.lost)
                dropped += waiting.dropped
                if not waiting.ids:
                    break
                if self._move_up(places, waiting.ids, traced, queue, owner):
                    return dropped + 1
            self._submit(traced, lambda _: None, token)
        return dropped

    def _move_up(
        self, places: Places, ids: list[str], request: ClipRequest, queue: Queue, owner: str
    ) -> bool:
        """Give each of the waiting jobs `ids` the content of the next one, and the last one
        `request`. Return False if one of them does not wait any more."""
        later = Job.fetch_many(ids[1:], self._redis, serializer=JSONSerializer)
        contents = [read_request(job) if job is not None else None for job in later]
        with self._redis.pipeline() as pipeline:
            pipeline.multi()
            for place, content in zip(ids, [*contents, request], strict=True):
                if content is None:  # it was answered or cancelled meanwhile
                    return False
                moved = content.model_copy(update={"id": place})
                fields = self._fields_of(moved, queue)
                pipeline.execute_command("HSET", Job.key_for(place), *fields)
                score = moved.created_at.timestamp()
                pipeline.zadd(redis_keys.in_flight(owner), {place: score})
            pipeline.expire(redis_keys.in_flight(owner), _IN_FLIGHT_TTL)
            _note_asked(request, pipeline)
            replaced = places.replace(ids, request.id, words_of(pipeline.command_stack))
        if replaced:
            await_replica(self._redis)
        return replaced

    def _fields_of(self, request: ClipRequest, queue: Queue) -> list[Any]:
        """Return the fields of the job of a request; see :meth:`JobFields.of`."""
        return self._fields.of(
            queue, request.id, _function_of(request), _stored(request), _max_retries(request)
        )

    def _accept(
        self,
        request: ClipRequest,
        queue: Queue,
        commands: list[Any],
        token: int | None,
        most: int,
    ) -> bool:
        """Run the commands that store a request in its queue, if there is room for it. Return
        False if `most` requests of its owner are in flight."""
        settings, owner = self._settings, owner_of(request)
        query = request.kind is RequestKind.QUERY and request.part_of is None
        answer = self._accept_script(
            keys=[
                Job.key_for(request.id),
                redis_keys.answer(request.id),
                redis_keys.OPEN_QUERIES,
                Job.key_for(redis_keys.stream_job(request.stream_id or "")),
                queue.key,
                StartedJobRegistry.key_template.format(queue.name),
                redis_keys.OPEN_QUERIES if owner is None else redis_keys.in_flight(owner),
            ],
            args=[
                request.id,
                _bytes_of(commands) + _bytes_of_answer(request),
                settings.max_queries if query else 0,
                settings.max_query_bytes,
                _IN_FLIGHT_TTL,
                "" if token is None else token,
                settings.max_query_wait,
                "" if isinstance(request, SurveyRequest) else request.stream_id or "",
                most,
                *commands,
            ],
        )
        outcome, wait = cast("list[bytes]", answer)
        if outcome == b"superseded":
            raise Superseded
        if outcome == b"full":
            raise redis.exceptions.OutOfMemoryError("no room for new work")
        if outcome.startswith(b"too "):
            raise self._too_many(outcome.decode(), float(wait) if wait else None)
        return outcome != b"crowded"

    def _too_many(self, outcome: str, wait: float | None) -> StreamerError:
        """Return the error of a query that is refused; `wait` is how many seconds it would have
        waited, if that is known."""
        settings = self._settings
        if outcome == "too slow" and wait is not None:
            problem = (
                f"A question would wait about {wait:.0f} s for a model worker, longer than "
                f"{settings.max_query_wait:g} s (max_query_wait)"
            )
        elif outcome == "too many":
            problem = f"No more than {settings.max_queries} questions (max_queries) may wait"
        else:
            mebibytes = settings.max_query_bytes >> 20
            problem = f"No more than {mebibytes} MiB of questions (max_query_bytes) may wait"
        error = StreamerError(
            ErrorCode.TOO_MANY_QUERIES,
            f"{problem}: ask again when some are answered, or add a model worker.",
        )
        if wait is not None:
            error.retry_after = min(wait, _MAX_RETRY_AFTER)
        return error

    def require_room(self) -> None:
        """Raise redis.exceptions.OutOfMemoryError when Redis has no room for new work."""
        require_room(self._redis)

    def drop_waiting(self, owner_id: str) -> int:
        """Drop the clips of a watch or recording that no worker has taken; return their number.

        They get no result.
        """
        number, lost = cast(
            "tuple[int, list[bytes]]",
            self._drop(
                keys=[redis_keys.in_flight(owner_id)],
                args=[Job.redis_job_namespace_prefix, Queue.redis_queue_namespace_prefix],
            ),
        )
        self._end_lost(owner_id, lost)
        return number

    def abandon(self, owner_id: str) -> None:
        """Remove the waiting requests of `owner_id` and stop those that run: they get no result."""
        self.drop_waiting(owner_id)
        key = redis_keys.in_flight(owner_id)
        for request_id in cast("list[bytes]", self._redis.zrange(key, 0, -1)):
            job = self._fetch(request_id.decode())
            if job is not None:
                self._stop(job)
        self._redis.delete(key)

    def unanswered(self, owner_ids: Sequence[str]) -> list[int]:
        """Return the number of unanswered clips of each of some watches or recordings, in one round
        trip; those whose jobs Redis has lost count until :meth:`in_flight` finds them."""
        with self._redis.pipeline(transaction=False) as pipeline:
            for owner_id in owner_ids:
                pipeline.zcard(redis_keys.in_flight(owner_id))
            return pipeline.execute()

    def asked_until(self, watch_ids: Sequence[str]) -> dict[str, float]:
        """Return when the newest window ends that each of some live watches was asked about, epoch
        seconds, for those of which that is known."""
        keys = [redis_keys.asked_until(watch_id) for watch_id in watch_ids]
        ends = cast("list[bytes | None]", self._redis.mget(keys)) if keys else []
        pairs = zip(watch_ids, ends, strict=True)
        return {watch_id: float(end) for watch_id, end in pairs if end is not None}

    def in_flight(self, owner_id: str) -> int:
        """Return the number of unanswered clips of a watch or recording."""
        number, lost = cast(
            "tuple[int, list[bytes]]",
            self._count(
                keys=[redis_keys.in_flight(owner_id)], args=[Job.redis_job_namespace_prefix]
            ),
        )
        self._end_lost(owner_id, lost)
        return number

    def _end_lost(self, owner_id: str, lost: Iterable[bytes]) -> None:
        """Give the requests whose jobs Redis lost their error results."""
        for request_id in lost:
            if not self._lost.publish(request_id.decode()):  # its stream is detached
                self._redis.zrem(redis_keys.in_flight(owner_id), request_id)

    def status(self, request_id: str) -> QueryStatus:
        """Return the status of a request. Raises StreamerError(UNKNOWN_QUERY)."""
        result = self._results.get(request_id)
        if result is not None:
            return final_status(result)
        job = self._fetch(request_id)
        if job is None and self._results.answered(request_id):
            result = self._results.get(request_id)  # it has come meanwhile, or made room again
            return final_status(result) if result is not None else QueryStatus.DONE
        if job is None:
            raise StreamerError(
                ErrorCode.UNKNOWN_QUERY,
                f"The query '{request_id}' does not exist or has expired: ask again.",
            )
        started = job.get_status(refresh=False) == JobStatus.STARTED
        return QueryStatus.RUNNING if started else QueryStatus.QUEUED

    def position(self, query_id: str) -> int | None:
        """Return how many queries are taken before this one; None if it does not wait."""
        origin = cast(bytes | None, self._redis.hget(Job.key_for(query_id), "origin"))
        queue = origin.decode() if origin is not None else QUERIES
        return cast(int | None, self._redis.lpos(self._queue(queue).key, query_id))

    def exists(self, request_id: str) -> bool:
        """Return whether the request has a job, which may have ended."""
        return bool(self._redis.exists(Job.key_for(request_id)))

    def existing(self, request_ids: Sequence[str]) -> list[bool]:
        """Return which of some requests have a job, as :meth:`exists` does, in one round trip."""
        with self._redis.pipeline(transaction=False) as pipeline:
            for request_id in request_ids:
                pipeline.exists(Job.key_for(request_id))
            return [bool(found) for found in pipeline.execute()]

    def cancel(self, request_id: str) -> QueryStatus:
        """Cancel a request: its result is the error CANCELLED, unless it already has a result.

        Returns its status. Raises StreamerError(UNKNOWN_QUERY).
        """
        job = self._fetch(request_id)
        request = read_request(job) if job is not None else None
        if job is not None and request is not None:
            self._results.publish(
                error_result(request, ErrorCode.CANCELLED, "The request was cancelled."),
                owner_id=owner_of(request),
            )
            self._stop(job)
        return self.status(request_id)

    def start_ingest(self, stream_id: str) -> None:
        """Let a worker run the stream until it is detached, through crashes of workers.

        Does nothing if the stream is queued or running.
        """
        job_id = redis_keys.stream_job(stream_id)
        for _ in range(2):
            try:
                self._queue(INGEST).enqueue_call(
                    INGEST_JOB,
                    args=(stream_id,),
                    timeout=-1,
                    result_ttl=0,
                    failure_ttl=_FAILED_TTL,
                    description=f"stream {stream_id}",
                    job_id=job_id,
                    retry=Retry(max=_MAX_INGEST_RETRIES, enqueue_at_front=True),
                    unique=True,
                )
                break
            except DuplicateJobError:
                job = self._fetch(job_id)
                if job is not None and not self._remove(job, waiting=False):
                    return
        with self._redis.pipeline() as pipeline:
            _push_wake(pipeline, INGEST)
            pipeline.execute()

    def deliver(self, delivery_ids: Sequence[str]) -> None:
        """Let a worker make an attempt to deliver each of some messages to webhooks."""
        for delivery_id in delivery_ids:
            with contextlib.suppress(DuplicateJobError):  # the attempt before it has not ended
                self._webhooks.enqueue_call(
                    WEBHOOK_JOB,
                    args=(delivery_id,),
                    timeout=_WEBHOOK_TIMEOUT,
                    result_ttl=0,
                    failure_ttl=_WEBHOOK_TIMEOUT,
                    description=f"webhook {delivery_id}",
                    job_id=f"webhook-{delivery_id}",
                    retry=Retry(max=_MAX_WEBHOOK_RETRIES, enqueue_at_front=True),
                    unique=True,
                )
        if delivery_ids:
            with self._redis.pipeline() as pipeline:
                for _ in delivery_ids:
                    _push_wake(pipeline, WEBHOOKS)
                pipeline.execute()

    def restart_lost(self, stream_ids: Sequence[str]) -> list[str]:
        """Start those streams that no job runs or will run; return their ids."""
        ids = [redis_keys.stream_job(stream_id) for stream_id in stream_ids]
        with self._redis.pipeline(transaction=False) as pipeline:
            for job_id in ids:
                pipeline.hmget(Job.key_for(job_id), "status", "execution")
            found = cast("list[tuple[bytes | None, bytes | None]]", pipeline.execute())
            for job_id, (_, execution) in zip(ids, found, strict=True):
                member = f"{job_id}:{(execution or b'').decode()}"
                pipeline.zscore(self._queue(INGEST).started_job_registry.key, member)
            ends = cast("list[float | None]", pipeline.execute())
        lost = [
            stream_id
            for stream_id, (status, execution), end in zip(stream_ids, found, ends, strict=True)
            if status not in (b"queued", b"started")
            or (status == b"started" and execution is not None and end is None)
        ]
        for stream_id in lost:
            self.start_ingest(stream_id)
        return lost

    def stop_ingest(self, stream_id: str) -> None:
        """Remove the stream from the queue, or ask the worker that runs it to stop."""
        job = self._fetch(redis_keys.stream_job(stream_id))
        if job is not None:
            self._stop(job)

    def waits_for_slot(self, stream_id: str) -> bool:
        """Return whether no ingest worker has begun to run the stream."""
        job = self._fetch(redis_keys.stream_job(stream_id))
        return job is not None and job.get_status(refresh=False) == JobStatus.QUEUED

    def ingest_slots(self) -> tuple[int, int]:
        """Return the number of slots of all running ingest workers, and how many of them are taken.

        Streams that are paused, or wait until they are tried again, take none.
        """
        keys = worker_registration.get_keys(self._queue(INGEST))
        names = [key.rpartition(":")[2] for key in keys]
        with self._redis.pipeline(transaction=False) as pipeline:
            for name in names:
                pipeline.hmget(redis_keys.worker(name), "slots", "slots_busy")
            found = cast("list[list[bytes | None]]", pipeline.execute())

        def total(numbers: Iterable[bytes | None]) -> int:
            return sum(round(float(number)) for number in numbers if number and _number(number))

        return total(each[0] for each in found), total(each[1] for each in found)

    def workers(self) -> dict[str, int]:
        """Return the number of running workers: `ingest`, and `clips` (gpu workers)."""
        counts = {}
        for label, name in (("ingest", INGEST), ("clips", QUERIES)):
            keys = worker_registration.get_keys(self._queue(name))
            counts[label] = self._redis.exists(*keys) if keys else 0
        return counts

    def model_loading(self) -> bool:
        """Return whether a model worker is loading its model."""
        return bool(self._redis.exists(redis_keys.LOADING))

    def worker_stats(self) -> dict[str, dict[str, float]]:
        """Return the statistics that each running worker reports, by the name of the worker;
        recorders are workers here."""
        names = sorted(
            key.rpartition(":")[2]
            for name in (INGEST, QUERIES)
            for key in worker_registration.get_keys(self._queue(name))
        )
        names += sorted(recorders(self._redis))
        with self._redis.pipeline(transaction=False) as pipeline:
            for name in names:
                pipeline.hgetall(redis_keys.worker(name))
            reported = cast("list[dict[bytes, bytes]]", pipeline.execute())
        return {
            name: {key.decode(): float(value) for key, value in numbers.items() if _number(value)}
            for name, numbers in zip(names, reported, strict=True)
            if numbers
        }

    def models(self) -> dict[str, int | None]:
        """Return the models of the running workers, and how many tokens of prompt and answer
        together the least of their workers takes; None if none of them knows."""
        models: dict[str, int | None] = {}
        for worker in self.served.workers():
            if worker.model is not None:
                lengths = (models.get(worker.model), worker.max_model_len)
                models[worker.model] = min((n for n in lengths if n is not None), default=None)
        return models

    def depths(self) -> dict[str, int]:
        """Return the number of waiting jobs of each queue."""
        named = [f"{queue}:{model}" for model in self.served.known() for queue in CLIP_QUEUES]
        names = [*CLIP_QUEUES, *named, INGEST]
        with self._redis.pipeline(transaction=False) as pipeline:
            for name in names:
                pipeline.llen(self._queue(name).key)
            return dict(zip(names, pipeline.execute(), strict=True))

    def _fetch(self, job_id: str) -> Job | None:
        try:
            return Job.fetch(job_id, connection=self._redis, serializer=JSONSerializer)
        except (NoSuchJobError, ValueError, TypeError):  # ValueError: not a valid job id
            return None

    def _stop(self, job: Job) -> None:
        """Remove a waiting job, or ask the worker of a running one to stop it."""
        if self._remove(job, waiting=True):
            return
        worker, execution = cast(
            "list[bytes | None]", self._redis.hmget(job.key, ["worker_name", "execution"])
        )
        if worker and execution:
            send_command(
                self._redis,
                worker.decode(),
                "stop-execution",
                job_id=job.id,
                execution_id=execution.decode(),
            )
            return
        with contextlib.suppress(ValueError, InvalidJobOperation):  # it has ended
            for running in job.get_executions():  # of a worker of an older release
                send_stop_execution_command(self._redis, job.id, running.id)

    def _remove(self, job: Job, *, waiting: bool) -> bool:
        """Delete a job that has ended or, with `waiting`, waits, and all that is known of it.
        Return whether it is gone; a job that runs, or is being taken, is not touched.

        RQ's own `delete` raises an error when an execution of the job has expired.
        """
        gone = self._remove_script(
            keys=[
                Queue.redis_queue_namespace_prefix + job.origin,
                job.key,
                job.started_job_registry.key,
                job.failed_job_registry.key,
                job.finished_job_registry.key,
                job.dependents_key,
                job.dependencies_key,
                job.execution_registry.key,
                RQResult.get_key(job.id),  # type: ignore[no-untyped-call]
            ],
            args=[job.id, int(waiting)],
        )
        return bool(gone)


def _stored(request: ClipRequest) -> dict[str, Any]:
    """Return the fields of a request as a job has them, with the version of the oldest release that
    can answer it: 1, which is not written, if it uses nothing that came later."""
    silent = {name for name, value in _SILENT.items() if getattr(request, name) == value}
    fields = request.model_dump(mode="json", exclude={"version", *silent})
    plain = type(request) is ClipRequest and len(silent) == len(_ADDED)
    return fields if plain else fields | {"version": RECORD_VERSION}


def _function_of(request: ClipRequest) -> str:
    if isinstance(request, SurveyRequest):
        return SURVEY_JOB
    return CHAT_JOB if isinstance(request, ChatRequest) else CLIP_JOB


def _max_retries(request: ClipRequest) -> int:
    # A survey loads no frames: no worker dies of it, and one may outlast many workers.
    return _MAX_INGEST_RETRIES if isinstance(request, SurveyRequest) else _MAX_CLIP_RETRIES


def _number(value: bytes | None) -> bool:
    """Whether a worker reported a number; one of a newer release may report other things."""
    try:
        return isfinite(float(value or b""))
    except ValueError:
        return False


def _bytes_of(commands: list[Any]) -> int:
    return sum(len(word) for word in commands if isinstance(word, (str, bytes)))


def _bytes_of_answer(request: ClipRequest) -> int:
    """Estimate how much of Redis the answer will need, in its two copies, and count the pictures,
    or the answers of windows, that are kept until then."""
    pictures = request.picture_bytes if isinstance(request, ChatRequest) else 0
    if isinstance(request, SurveyRequest):
        pictures = (len(request.windows) or MAX_QUERY_WINDOWS) * (2048 + 4 * request.max_tokens)
    answer = 2048 + len(request.prompt) + 4 * request.max_tokens + 200 * len(request.frames)
    return 2 * answer + pictures


def _note_asked(request: ClipRequest, pipeline: redis.client.Pipeline) -> None:
    """Note the end of a window of a live watch in the transaction that stores its request, so that
    a failover keeps both or neither."""
    if request.kind is RequestKind.WATCH and request.watch_id is not None:
        end = f"{request.end.timestamp():.6f}"
        key = redis_keys.asked_until(request.watch_id)
        pipeline.execute_command("SET", key, end, "EX", _ASKED_TTL)


def _push_wake(pipeline: redis.client.Pipeline, queue: str) -> None:
    key = redis_keys.wake(queue)
    pipeline.lpush(key, 1)
    pipeline.ltrim(key, 0, MAX_WAKE_TOKENS - 1)
    pipeline.expire(key, WAKE_TTL)
