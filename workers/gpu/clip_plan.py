"""Plan how many tiles each frame of a clip gets, from its measures, before any JPEG is decoded."""

from nvila_core.resolution.policy import Budget, Plan
from streamer.conversation import ChatRequest
from streamer.domain import ClipRequest, RequestKind
from workers.context import WorkerContext


def plan_clip(context: WorkerContext, clip: ClipRequest, started: float) -> Plan:
    """Plan a clip whose job `started` (epoch seconds) with the worker's policy and budget."""
    budget = Budget(context.settings.clip_tokens, worker_load(context, clip, started))
    details = clip.details if isinstance(clip, ChatRequest) else None
    return context.model.plan([frame.measures for frame in clip.frames], budget, details)


def worker_load(context: WorkerContext, clip: ClipRequest, started: float) -> float:
    """Measure how far this worker is behind, from 0 to 1.

    The larger of two shares: requests that wait for the model for each that it runs at once and,
    for a live clip, its wait in the queue as a share of its window. A recording can wait, so its
    clips are planned as on an idle worker.
    """
    if clip.kind is RequestKind.FILE:
        return 0.0
    late = 0.0
    if clip.kind is RequestKind.WATCH:
        window = (clip.end - clip.start).total_seconds()
        late = (started - clip.created_at.timestamp()) / max(window, 1e-3)
    return min(1.0, max(0.0, context.model.waiting(), late))
