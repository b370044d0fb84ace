"""Ask the engine: one request, its deadline, and every way in which it can fail."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from nvila_core.resolution.policy import Plan
from streamer.domain.kinds import RequestKind
from streamer.domain.request import ClipRequest
from streamer.errors import ErrorCode, StreamerError
from workers.context import (
    BrokeDown,
    GiveBack,
    WorkerContext,
    cancel_check,
    last_attempt,
    stop_check,
)
from workers.gpu.delta_writer import DeltaWriter
from workers.time_limit import out_of_time, time_left

if TYPE_CHECKING:
    from nvila_core import Completion, Handle

_PRIORITY = {RequestKind.QUERY: 2, RequestKind.WATCH: 1, RequestKind.FILE: 0}
_CHECK_INTERVAL = 0.25  # seconds between two checks whether the answer is still wanted
_DELTA_INTERVAL = 0.05  # seconds between two pieces of an answer that a person may read meanwhile


def infer(context: WorkerContext, clip: ClipRequest, parts: list[Any], plan: Plan) -> "Completion":
    """Return the engine's answer to `parts`, whose frames are tiled as planned.

    Raises:
        StreamerError: this request failed, without harm to others.
        GiveBack: another worker should answer it, or no answer is wanted.
        BrokeDown: the engine broke down while it worked on this request among others.
    """
    from nvila_core import DeadlineExceeded, NotFinite, PromptError, PromptTooLong

    timeout = context.settings.job_timeout
    deadline = context.clock.monotonic() + time_left(context, clip)
    stop = stop_check()

    def check() -> None:
        if context.clock.monotonic() >= deadline:
            raise out_of_time(clip, timeout)
        if stop():
            raise GiveBack

    try:
        with context.isolation.enter(alone=last_attempt(), check=check):
            check()
            handle = _submit(context, clip, parts, plan, deadline)
            readers = clip.delta_id
            writer = DeltaWriter(context, readers) if readers is not None else None
            return _wait(context, handle, deadline, cancel_check(), writer)
    except DeadlineExceeded:
        raise out_of_time(clip, timeout) from None
    except PromptTooLong as error:
        raise StreamerError(ErrorCode.PROMPT_TOO_LONG, str(error)) from None
    except PromptError as error:
        raise StreamerError(ErrorCode.INVALID_REQUEST, str(error)) from None
    except NotFinite as error:
        raise StreamerError(ErrorCode.MODEL_FAILED, str(error)) from None
    except Exception as error:
        if out_of_memory(error):
            raise StreamerError(
                ErrorCode.OUT_OF_MEMORY,
                "This request needs more memory than the model's device has left: ask about fewer "
                "or smaller frames, or lower the worker's kv_cache_tokens or max_num_seqs.",
            ) from error
        raise


def out_of_memory(error: BaseException) -> bool:
    """Return whether an error means that the device or the machine ran out of memory."""
    import torch

    # On a CPU torch has no exception of its own for it.
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and "can't allocate memory" in str(error)
    )


def _submit(
    context: WorkerContext,
    clip: ClipRequest,
    parts: list[Any],
    plan: Plan,
    deadline: float,
) -> "Handle":
    from nvila_core import EngineStopped, QueueFull, SamplingParams

    assert context.engine is not None
    try:
        return context.engine.submit(
            parts,
            SamplingParams(**clip.sampling),
            priority=_PRIORITY[clip.kind],
            deadline=max(0.001, deadline - context.clock.monotonic()),
            plan=plan,
        )
    except EngineStopped as error:  # it broke down over other requests, before this one
        context.fail(error.reason)
        raise GiveBack from None
    except QueueFull:  # more slots than the engine lets wait
        raise GiveBack from None


def _wait(
    context: WorkerContext,
    handle: "Handle",
    deadline: float,
    cancelled: Callable[[], bool],
    writer: DeltaWriter | None,
) -> "Completion":
    from nvila_core import DeadlineExceeded, EngineStopped

    interval = _CHECK_INTERVAL if writer is None else _DELTA_INTERVAL
    while True:
        ended = handle.done
        try:
            completion = handle.result(timeout=interval)
        except TimeoutError:
            if ended:  # an error of the model's own
                raise
        except EngineStopped as error:
            context.fail(error.reason)
            raise BrokeDown from error
        else:
            if writer is not None:
                writer.write(handle)
            return completion
        if writer is not None:
            writer.write(handle)
        if handle.done:  # its outcome came just after the look for it
            continue
        if context.failure is not None:  # the engine hangs and will not answer
            raise BrokeDown
        if cancelled():
            handle.cancel()
            raise GiveBack
        if context.clock.monotonic() > deadline:  # the engine checks it between two steps only
            handle.cancel()
            raise DeadlineExceeded(context.settings.job_timeout)
