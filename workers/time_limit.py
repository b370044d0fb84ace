"""How long the answer to a clip may take."""

from streamer.domain.kinds import RequestKind
from streamer.domain.request import ClipRequest
from streamer.errors import ErrorCode, StreamerError
from workers.context import WorkerContext


def time_left(context: WorkerContext, clip: ClipRequest) -> float:
    """Return the seconds in which a clip must be answered. A live clip has used some of them in the
    queue, where others may wait without limit."""
    timeout = context.settings.job_timeout
    if clip.kind is not RequestKind.WATCH:
        return timeout
    return timeout - max(0.0, context.clock.time() - clip.created_at.timestamp())


def out_of_time(clip: ClipRequest, seconds: float) -> StreamerError:
    """Return the error of a clip that was not answered within `seconds`."""
    if clip.kind is RequestKind.WATCH:
        advice = "ask this stream less often or about fewer frames, or add a worker"
    else:
        advice = "ask about fewer frames or for fewer tokens, or raise job_timeout"
    return StreamerError(ErrorCode.TIMEOUT, f"No answer within {seconds:g} s: {advice}.")
