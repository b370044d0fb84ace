"""Answer one question about the frames of one window: the clip job."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import redis
import structlog
from rq.job import Job

from streamer.domain import ClipRequest, ErrorInfo, FrameRef, RequestKind, Result, to_datetime
from streamer.errors import ErrorCode, StreamerError
from streamer.jobs import error_result, owner_of, read_request
from workers.context import BrokeDown, GiveBack, WorkerContext, current
from workers.gpu.clip_plan import parts_of, plan_clip
from workers.gpu.inference import infer

if TYPE_CHECKING:
    import numpy as np

    from nvila_core import Completion

_MAX_SHOWN = 120
"""Characters of an unfinished answer in its error message; its result has all of them."""

_FORMS = {"choice": "choice", "json_schema": "JSON"}

_log = structlog.get_logger(__name__)


def answer_clip(request: dict[str, Any]) -> None:
    """Answer one ClipRequest, given as JSON, and publish its one terminal result.

    Every failure of the request becomes an error result; only a worker that cannot continue leaves
    it unanswered, for another worker.
    """
    context = current()
    clip = ClipRequest.model_validate(request)
    if context.results.answered(clip.id):  # by a worker that died before it could finish the job
        return
    started = context.clock.time()
    try:
        result = _answer(context, clip, started)
    except (GiveBack, BrokeDown):
        raise
    except StreamerError as error:
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
    _publish(context, clip, result)


def publish_failure(job: Job, code: ErrorCode, message: str) -> None:
    """Publish an error as the result of a clip job that failed for good."""
    clip = read_request(job)
    if clip is None:
        _log.error("job_without_request", job=job.id)
        return
    _publish(current(), clip, error_result(clip, code, message))


def _answer(context: WorkerContext, clip: ClipRequest, started: float) -> Result:
    if not clip.prompt.strip():
        raise StreamerError(ErrorCode.PROMPT_EMPTY, "The prompt is empty: ask a question.")
    if not clip.frames:
        raise StreamerError(
            ErrorCode.NO_FRAMES,
            "There are no frames in this range: ask about a time when the stream was running.",
        )
    try:
        jpegs = context.frames.load(clip.frames)
    except redis.exceptions.RedisError:
        raise StreamerError(
            ErrorCode.REDIS_UNAVAILABLE,
            "The Redis server that holds the frames does not answer: check STREAMER_REDIS_URL "
            "and STREAMER_FRAMES_REDIS_URL of the worker.",
        ) from None
    plan = plan_clip(context, clip, started)
    images = _decode(clip.frames, jpegs, plan.sizes)
    completion = infer(context, clip, parts_of(images, clip.prompt), plan.tiles)
    usage, timings = completion.usage, completion.timings
    complete = clip.response_format.complete(completion.text, completion.finish_reason)
    return Result.answering(
        clip,
        text=completion.text.replace("\0", "\ufffd"),  # no database stores NUL
        data=_data(clip, completion) if complete else clip.data,
        error=None if complete else _unfinished(clip, completion),
        finish_reason=completion.finish_reason,
        tiles=usage.tiles,
        plan=plan.record,
        vision_tokens=usage.vision_tokens,
        prompt_tokens=usage.prompt_tokens,
        cached_tokens=usage.cached_tokens,
        completion_tokens=usage.completion_tokens,
        queue_ms=_queue_ms(clip, started) + timings.queue_ms,
        encode_ms=timings.encode_ms,
        generate_ms=timings.generate_ms,
    )


def _data(clip: ClipRequest, completion: "Completion") -> dict[str, Any] | None:
    """Return the request's own data and the answer's value in the response format."""
    return {**(clip.data or {}), **clip.response_format.parse(completion.text)} or None


def _unfinished(clip: ClipRequest, completion: "Completion") -> ErrorInfo:
    started = " ".join(completion.text.split())
    begun = f" It began: {started[:_MAX_SHOWN]}" if started else ""
    return ErrorInfo(
        code=ErrorCode.FORM_UNFINISHED,
        message=f"The answer was cut after {completion.usage.completion_tokens} tokens, before "
        f"its {_FORMS[clip.response_format.type]} was complete: raise max_tokens, or request a "
        f"shorter form.{begun}",
    )


def _decode(
    frames: Sequence[FrameRef], jpegs: Sequence[bytes], sizes: Sequence[tuple[int, int] | None]
) -> "list[np.ndarray[Any, Any]]":
    """Decode the pictures of a clip, RGB uint8 [height, width, 3], no larger than planned."""
    from streamer.frames.jpeg import from_jpeg

    try:
        return [
            from_jpeg(jpeg, frame.width, frame.height, size)
            for frame, jpeg, size in zip(frames, jpegs, sizes, strict=True)
        ]
    except ValueError:
        raise StreamerError(
            ErrorCode.FRAME_DAMAGED, "A stored frame is damaged: ask again about other frames."
        ) from None


def _queue_ms(clip: ClipRequest, started: float) -> float:
    return max(0.0, 1000 * (started - clip.created_at.timestamp()))


def _publish(context: WorkerContext, clip: ClipRequest, result: Result) -> None:
    """Complete a result with what all results have, and publish it."""
    result.model = context.model_name
    result.decode_ms = sum(frame.decode_ms for frame in clip.frames)
    result.created_at = to_datetime(context.clock.time())
    live = clip.kind is RequestKind.WATCH and clip.frames
    since = clip.frames[-1].time if live else clip.created_at.timestamp()
    result.total_ms = max(0.0, 1000 * (result.created_at.timestamp() - since))
    if context.results.publish(result, owner_id=owner_of(clip)):
        _log.info(
            "answered",
            request=clip.id,
            stream=clip.stream_name,
            kind=result.kind,
            error=result.error.code if result.error else None,
            total_ms=round(result.total_ms),
        )
