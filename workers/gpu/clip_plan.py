"""Plan how many tiles each frame of a clip gets, from its measures, before any JPEG is decoded."""

from nvila_core.resolution.policy import Budget, Plan
from streamer.domain.conversation import ChatRequest
from streamer.domain.kinds import RequestKind
from streamer.domain.request import ClipRequest
from workers.context import WorkerContext, wait_behind


def plan_clip(context: WorkerContext, clip: ClipRequest, started: float) -> Plan:
    """Plan a clip whose job `started` (epoch seconds) with the worker's policy and budget."""
    budget = Budget(context.settings.clip_tokens, worker_load(context, clip, started))
    details = clip.details if isinstance(clip, ChatRequest) else None
    return context.model.plan([frame.measures for frame in clip.frames], budget, details)


def worker_load(context: WorkerContext, clip: ClipRequest, started: float) -> float:
    """Measure how far this worker is behind, from 0 to 1.

    The larger of two shares: requests that wait for the model for each that it runs at once, and
    how long requests wait in the queue of this one, as a share of what they may: a live clip as
    long as its window, because then the next one comes, and a query `max_query_wait`. A recording
    can wait, so its clips are planned as on an idle worker.
    """
    if clip.kind is RequestKind.FILE:
        return 0.0
    wait = wait_behind()
    if clip.kind is RequestKind.WATCH:
        # Its own wait is no measure alone: it may have taken over the place of an older clip.
        wait = max(wait, started - clip.created_at.timestamp())
        may = (clip.end - clip.start).total_seconds()
    else:
        may = context.settings.max_query_wait
    return min(1.0, max(0.0, context.model.waiting(), wait / max(may, 1e-3)))
