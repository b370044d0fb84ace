"""The clip job: look at the frames of one window and answer one question about them."""

import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import redis
import structlog
from rq.job import Job

from streamer.domain import ClipRequest, FrameRef, RequestKind, Result, utc_now
from streamer.errors import ErrorCode, StreamerError
from streamer.jobs import error_result, owner_of, read_request
from workers.context import Abandon, GiveBack, WorkerContext, cancel_check, current

if TYPE_CHECKING:
    import numpy as np

    from nvila_core import Completion

_log = structlog.get_logger(__name__)

_PRIORITY = {RequestKind.QUERY: 2, RequestKind.WATCH: 1, RequestKind.FILE: 0}
_LOOK_UP = 0.25  # seconds between two looks at whether the answer is still wanted


def answer(request: dict[str, Any]) -> None:
    """Answer one ClipRequest (as JSON) and publish its one terminal result.

    Whatever is wrong with the request becomes an error result; only a worker that cannot go on
    leaves it unanswered, for another worker.
    """
    context = current()
    clip = ClipRequest.model_validate(request)
    if context.results.answered(clip.id):  # by a worker that died before it could say so
        return
    started = time.time()
    try:
        result = _answer(context, clip, started)
    except (GiveBack, Abandon):
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
    """Give the request of a clip job that failed for good its error result."""
    clip = read_request(job)
    if clip is None:
        _log.error("job_without_request", job=job.id)
        return
    _publish(current(), clip, error_result(clip, code, message))


def _answer(context: WorkerContext, clip: ClipRequest, started: float) -> Result:
    if not clip.prompt.strip():
        raise StreamerError(ErrorCode.PROMPT_EMPTY, "The prompt is empty: ask something.")
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
    images = _decode(context, clip.frames, jpegs)
    completion = _generate(context, clip, images, cancel_check())
    usage, timings = completion.usage, completion.timings
    return Result(
        request_id=clip.id,
        kind="answer" if clip.kind is RequestKind.QUERY else "caption",
        stream_id=clip.stream_id,
        stream_name=clip.stream_name,
        watch_id=clip.watch_id,
        start=clip.start,
        end=clip.end,
        prompt=clip.prompt,
        text=completion.text,
        data=clip.data,
        finish_reason=completion.finish_reason,
        frames=len(clip.frames),
        tiles=usage.tiles,
        vision_tokens=usage.vision_tokens,
        prompt_tokens=usage.prompt_tokens,
        cached_tokens=usage.cached_tokens,
        completion_tokens=usage.completion_tokens,
        queue_ms=_queue_ms(clip, started) + timings.queue_ms,
        encode_ms=timings.encode_ms,
        generate_ms=timings.generate_ms,
    )


def _decode(
    context: WorkerContext, frames: Sequence[FrameRef], jpegs: Sequence[bytes]
) -> "list[np.ndarray[Any, Any]]":
    """Pictures of a clip, RGB uint8 [height, width, 3]; of several frames, which the model sees
    as one tile each, only as large as a tile needs them."""
    from streamer.media.pictures import from_jpeg

    assert context.engine is not None
    tile = context.engine.model.config.processor.size
    enough = tile if len(frames) > 1 else None
    try:
        return [
            from_jpeg(jpeg, frame.width, frame.height, enough)
            for frame, jpeg in zip(frames, jpegs, strict=True)
        ]
    except ValueError:
        raise StreamerError(
            ErrorCode.INTERNAL, "A stored frame is damaged: ask again about other frames."
        ) from None


def _generate(
    context: WorkerContext,
    clip: ClipRequest,
    images: "list[np.ndarray[Any, Any]]",
    cancelled: Callable[[], bool],
) -> "Completion":
    """Ask the engine. One frame is an image, tiled as the model likes; several are a video."""
    from PIL import Image

    from nvila_core import EngineStopped, PromptError, PromptTooLong, SamplingParams, Video

    assert context.engine is not None
    picture = (
        Image.fromarray(images[0])
        if len(images) == 1
        else Video(images, [frame.time for frame in clip.frames], sampled=True)
    )
    deadline = time.monotonic() + context.settings.job_timeout
    try:
        handle = context.engine.submit(
            [picture, clip.prompt],
            SamplingParams(max_tokens=clip.max_tokens),
            priority=_PRIORITY[clip.kind],
            num_video_frames=len(images),
        )
        while True:
            try:
                return handle.result(timeout=_LOOK_UP)
            except TimeoutError:
                if handle.done:
                    raise
            if cancelled():
                handle.cancel()
                raise GiveBack
            if time.monotonic() > deadline:
                handle.cancel()
                raise StreamerError(
                    ErrorCode.TIMEOUT,
                    f"No answer within {context.settings.job_timeout:.0f} s: ask about fewer "
                    "frames, for fewer tokens, or raise job_timeout.",
                )
    except PromptTooLong as error:
        raise StreamerError(ErrorCode.PROMPT_TOO_LONG, str(error)) from None
    except PromptError as error:
        raise StreamerError(ErrorCode.INVALID_REQUEST, str(error)) from None
    except EngineStopped as error:
        # The engine is dead, and with it this worker. Retries bound what a deadly clip can do.
        context.fail("The model's engine stopped: see the worker's log.")
        raise Abandon from error


def _queue_ms(clip: ClipRequest, started: float) -> float:
    return max(0.0, 1000 * (started - clip.created_at.timestamp()))


def _publish(context: WorkerContext, clip: ClipRequest, result: Result) -> None:
    """Add what all results have, and publish."""
    result.model = context.model_name
    result.decode_ms = sum(frame.decode_ms for frame in clip.frames)
    result.created_at = utc_now()
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
