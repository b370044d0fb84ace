"""Answer one question about the frames of one window: the clip job."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import redis
import structlog
from rq.job import Job

from streamer import tracing
from streamer.domain.error_info import ErrorInfo
from streamer.domain.frame import FrameResolution
from streamer.domain.kinds import RequestKind, ResultKind
from streamer.domain.request import ClipRequest
from streamer.domain.result import Result
from streamer.domain.timestamp import to_datetime
from streamer.domain.yes_or_no import YES, in_one_spelling
from streamer.errors import ErrorCode, StreamerError
from streamer.limits import MAX_JOB_BYTES
from streamer.logging_setup import log_about
from streamer.queues.jobs import (
    check_request,
    error_result,
    owner_of,
    read_request,
    request_in_part,
    within_limits,
)
from streamer.redis_client.errors import trouble_of, will_pass
from streamer.redis_client.record_version import require_readable
from workers.context import (
    Abandon,
    BrokeDown,
    GiveBack,
    WorkerContext,
    current,
    first_attempt,
    place,
    stop_check,
)
from workers.gpu.clip_plan import plan_clip
from workers.time_limit import time_left

if TYPE_CHECKING:
    from nvila_core import Completion

_T = TypeVar("_T")
_Request = TypeVar("_Request", bound=ClipRequest)

_ATTEMPTS = 5
"""How often a command is tried that Redis calls wrong, before another worker tries it."""

_MAX_SHOWN = 120
"""Characters of an unfinished answer in its error message; its result has all of them."""

_TOO_LARGE = (
    f"The job has more than {MAX_JOB_BYTES:,} bytes: ask with a shorter prompt, fewer choices or a "
    "smaller schema."
)

_NO_PROBABILITIES = (
    "The model's server returned no log-probabilities, so the choice has no probability."
)

_FORMS = {"choice": "choice", "json_schema": "JSON"}

_log = structlog.get_logger(__name__)


def answer_clip(request: dict[str, Any]) -> None:
    """Answer one ClipRequest, given as JSON; see :func:`answer_request`."""
    answer_request(ClipRequest, request, _answer)


def answer_request(
    kind: type[_Request],
    stored: dict[str, Any],
    answer: Callable[[WorkerContext, _Request, float], Result],
) -> None:
    """Answer one request, given as JSON, and publish its one terminal result.

    Every failure of the request becomes an error result; only a worker that cannot continue leaves
    it unanswered, for another worker.

    Args:
        kind: the record of the request.
        stored: its fields.
        answer: returns the result, from the context of this worker, the request and the time when
            its job started (epoch seconds).
    """
    context = current()
    readable: _Request | StreamerError
    try:
        clip: ClipRequest
        clip = readable = kind.read(stored)
    except StreamerError as error:
        clip, readable = request_in_part(str(stored.get("id")), stored), error
    # By a worker that died before it could finish the job.
    if not first_attempt() and insist(lambda: context.results.answered(clip.id)):
        return
    started = context.clock.time()
    with log_about(stream=clip.stream_name), tracing.answering(clip, started):
        _publish(context, *_result_of(context, clip, readable, answer, started))


def _result_of(
    context: WorkerContext,
    clip: ClipRequest,
    readable: _Request | StreamerError,
    answer: Callable[[WorkerContext, _Request, float], Result],
    started: float,
) -> tuple[ClipRequest, Result]:
    """Return the request, as its result may repeat it, and its result."""
    try:
        if isinstance(readable, StreamerError):
            raise readable
        require_readable(readable.version)
        result = answer(context, readable, started)
    except (GiveBack, BrokeDown):
        raise
    except StreamerError as error:
        clip = within_limits(clip)  # the result repeats it
        result = error_result(clip, error.code, error.message)
        result.queue_ms = _queue_ms(clip, started)
    except Exception as error:
        _log.exception("clip_failed", request=clip.id)
        result = error_result(
            clip,
            ErrorCode.MODEL_FAILED,
            f"The model failed on this request ({type(error).__name__}): see the worker's log.",
        )
        result.queue_ms = _queue_ms(clip, started)
    return clip, result


def publish_failure(job: Job, code: ErrorCode, message: str) -> None:
    """Publish an error as the result of a clip job that failed for good."""
    clip = read_request(job)
    if clip is None:
        too_large = getattr(job, "too_large", False)
        _refuse(job.id, _TOO_LARGE if too_large else "The job holds no request that can be read.")
        return
    context, result = current(), error_result(clip, code, message)
    _complete(context, clip, result)
    _note(clip, result, context.results.publish(result, owner_id=owner_of(clip)))


def _refuse(request_id: str, reason: str) -> None:
    """Publish the error result of a request that cannot be read."""
    _log.error("job_refused", job=request_id, reason=reason)
    error = ErrorInfo(code=ErrorCode.INVALID_REQUEST, message=reason)
    current().lost_requests.refuse(request_id, error)


def publish_lost(request_id: str) -> None:
    """Give a request whose job has no record any more its error result."""
    if current().lost_requests.publish(request_id):
        _log.error("request_lost", request=request_id)


def _answer(context: WorkerContext, clip: ClipRequest, started: float) -> Result:
    check_request(clip)
    if not clip.frames:
        raise StreamerError(
            ErrorCode.NO_FRAMES,
            "There are no frames in this range: ask about a time when the stream was running.",
        )
    result, complete = ask_model(context, clip, started)
    return result if complete else _unfinished(clip, result)


def ask_model(context: WorkerContext, clip: ClipRequest, started: float) -> tuple[Result, bool]:
    """Return the model's answer to a request as its result, and whether it has its whole form.

    Raises StreamerError, GiveBack, BrokeDown: see `workers.backend`.
    """
    with tracing.step("load"):
        jpegs = _load(context, clip)
    plan = plan_clip(context, clip, started)
    with tracing.step("model"):
        completion = context.model.answer(clip, jpegs, plan)
    if clip.asks_yes_or_no:
        completion = in_one_spelling(completion)
    usage, timings = completion.usage, completion.timings
    complete = clip.response_format.complete(completion.text, completion.finish_reason)
    result = Result.answering(
        clip,
        text=completion.text.replace("\0", "\ufffd"),  # no database stores NUL
        data=_data(clip, completion) if complete else clip.data,
        warning=_warning(clip, completion) if complete else clip.warning,
        finish_reason=completion.finish_reason,
        tiles=usage.tiles,
        plan=[
            FrameResolution.of_storable({"grid": f.grid, "reason": f.reason}) for f in plan.frames
        ],
        vision_tokens=usage.vision_tokens,
        prompt_tokens=usage.prompt_tokens,
        cached_tokens=usage.cached_tokens,
        completion_tokens=usage.completion_tokens,
        queue_ms=_queue_ms(clip, started) + timings.queue_ms,
        encode_ms=timings.encode_ms,
        generate_ms=timings.generate_ms,
    )
    return result, complete


def _load(context: WorkerContext, clip: ClipRequest) -> list[bytes]:
    """Load the frames of a clip. Wait for their server for as long as the job may take."""
    outage, stop, clock = context.connections.frames_outage, stop_check(), context.clock
    deadline = clock.monotonic() + time_left(context, clip)
    for pause in outage.pauses():
        try:
            frames = context.frames.load(clip.frames)
        except redis.exceptions.RedisError as error:
            trouble = trouble_of(error)
            outage.failed("frames", error)
            if not trouble.passes or clock.monotonic() + pause > deadline:
                raise StreamerError(
                    ErrorCode.REDIS_UNAVAILABLE,
                    f"The frames could not be read. {trouble.message} Check also "
                    "STREAMER_FRAMES_REDIS_URL of the worker.",
                ) from None
        else:
            outage.worked("frames")
            return frames
        if stop():
            raise GiveBack
        clock.sleep(min(pause, 1.0))
    raise AssertionError("pauses never end")


def insist(call: Callable[[], _T]) -> _T:
    """Repeat `call` while Redis refuses it, so that a computed answer is not wasted. Return its
    value.

    Raises GiveBack when the worker stops or the job is no longer wanted: it is run again,
    elsewhere. Raises Abandon for an error that does not pass: another worker tries it, a few times.
    """
    stop, clock = stop_check(), current().clock
    outage = current().connections.outage

    def wait(seconds: float) -> bool:
        if stop():
            return True
        clock.sleep(min(seconds, 1.0))
        return False

    for pause, _ in zip(outage.pauses(), range(_ATTEMPTS), strict=False):
        try:
            return outage.insist("answers", call, wait)
        except redis.exceptions.RedisError as error:
            if will_pass(error) or wait(pause):
                raise GiveBack from None
            _log.warning("redis_refuses", reason=str(error)[:_MAX_SHOWN])
    raise Abandon


def _data(clip: ClipRequest, completion: "Completion") -> dict[str, Any] | None:
    """Return the request's own data, the answer's value in the response format, and how probable
    each choice is; of an alert only how probable yes is."""
    if clip.alert is not None:
        shares = completion.choice_probabilities or {completion.text: 1.0}
        probability = shares.get(YES, 0.0)
        return {**(clip.data or {}), "yes": probability >= 0.5, "probability": probability}
    data = {**(clip.data or {}), **clip.response_format.parse(completion.text)}
    if completion.choice_probabilities is not None:
        data["probabilities"] = completion.choice_probabilities
    return data or None


def _warning(clip: ClipRequest, completion: "Completion") -> str | None:
    """Return the request's own warning, and whether probabilities are missing that it asked for."""
    asked = clip.logprobs is not None and clip.response_format.type == "choice"
    if not asked or completion.choice_probabilities is not None:
        return clip.warning
    return " ".join(filter(None, (clip.warning, _NO_PROBABILITIES)))


def _unfinished(clip: ClipRequest, result: Result) -> Result:
    """Return the result of an answer that was cut, as an error."""
    started = " ".join((result.text or "").split())
    begun = f" It began: {started[:_MAX_SHOWN]}" if started else ""
    error = ErrorInfo(
        code=ErrorCode.FORM_UNFINISHED,
        message=f"The answer was cut after {result.completion_tokens} tokens, before its "
        f"{_FORMS[clip.response_format.type]} was complete: raise max_tokens, or request a shorter "
        f"form.{begun}",
    )
    return result.model_copy(update={"kind": ResultKind.ERROR, "error": error})


def _queue_ms(clip: ClipRequest, started: float) -> float:
    return max(0.0, 1000 * (started - clip.created_at.timestamp()))


def _publish(context: WorkerContext, clip: ClipRequest, result: Result) -> None:
    """Publish a result, as soon as Redis accepts it, and end the job in the same step. Raises
    GiveBack when the worker stops before."""
    _complete(context, clip, result)
    owner, lasting, ending = owner_of(clip), clip.part_of is not None, place().ending()

    def publish() -> bool:
        if ending is None:
            return context.results.publish(result, owner_id=owner, lasting=lasting)
        done = context.results.publish_and_end(result, ending, owner_id=owner, lasting=lasting)
        place().note_end(done.ended)
        return done.first

    with tracing.step("publish"):
        published = insist(publish)
    _note(clip, result, published)


def _complete(context: WorkerContext, clip: ClipRequest, result: Result) -> None:
    """Complete a result with what all results have."""
    result.model = context.model_name
    result.decode_ms = sum(frame.decode_ms for frame in clip.frames)
    result.created_at = to_datetime(context.clock.time())
    live = clip.kind is RequestKind.WATCH and clip.frames
    since = clip.frames[-1].time if live else clip.created_at.timestamp()
    result.total_ms = max(0.0, 1000 * (result.created_at.timestamp() - since))
    tracing.note_result(result)


def _note(clip: ClipRequest, result: Result, published: bool) -> None:
    if published:
        _log.info(
            "answered",
            request=clip.id,
            stream=clip.stream_name,
            kind=result.kind,
            error=result.error.code if result.error else None,
            total_ms=round(result.total_ms),
        )
