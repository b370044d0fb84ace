"""How closely the frames of a clip are looked at: planned from their measures, before any JPEG is
opened."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from nvila_core.resolution.policy import Budget, Native, Plan, parse_policy
from streamer.domain import ClipRequest, PlannedFrame, RequestKind
from workers.context import WorkerContext

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True)
class Look:
    """A planned clip.

    Attributes:
        clip: what is asked.
        plan: the grid of every frame, and why.
        sizes: width and height that each frame must be opened at, at least; None: all of it.
        options: for `Engine.submit`, so that it comes to the same plan.
    """

    clip: ClipRequest
    plan: Plan
    sizes: list[tuple[int, int] | None]
    options: dict[str, Any]

    def parts(self, images: "list[np.ndarray[Any, Any]]") -> Any:
        """The frames' pictures as a part of a prompt. Without a policy one alone is an image."""
        from PIL import Image

        from nvila_core import Video

        if len(images) == 1 and "policy" not in self.options:
            return Image.fromarray(images[0])
        frames = self.clip.frames
        times, measures = [f.time for f in frames], [f.measures for f in frames]
        return Video(images, times, sampled=True, measures=measures)

    @property
    def record(self) -> list[PlannedFrame]:
        """The plan as results carry it."""
        return [PlannedFrame(grid=f.grid, reason=f.reason) for f in self.plan.frames]


def plan_look(context: WorkerContext, clip: ClipRequest, started: float) -> Look:
    """Plan a clip whose job `started` (epoch seconds) with the worker's policy and budget."""
    assert context.engine is not None
    model, settings = context.engine.model, context.settings
    measures = [frame.measures for frame in clip.frames]
    options: dict[str, Any] = {"num_video_frames": len(measures)}
    policy = parse_policy(settings.policy)
    planned = model.config.tiles_frames and not isinstance(policy, Native)
    if planned:
        options["policy"] = policy
        options["budget"] = Budget(settings.clip_tokens, load(context, clip, started))
    plan = model.plan(measures, options.get("policy"), options.get("budget"))
    side = model.config.processor.size
    sizes = [(side * columns, side * rows) for columns, rows in (f.grid for f in plan.frames)]
    whole = len(measures) == 1 and not planned  # tiled by a rule that looks at the picture's size
    return Look(clip, plan, [None] if whole else [*sizes], options)


def load(context: WorkerContext, clip: ClipRequest, started: float) -> float:
    """How far this worker is behind, 0 to 1: requests that wait in the engine for each that it can
    run at once or, for a live clip, its wait in the queue as a share of its window.

    A recording is in no hurry, so its clips are looked at as closely as on an idle machine.
    """
    assert context.engine is not None
    if clip.kind is RequestKind.FILE:
        return 0.0
    stats = context.engine.stats()
    waiting = stats["waiting"] / stats["max_num_seqs"]
    late = 0.0
    if clip.kind is RequestKind.WATCH:
        window = (clip.end - clip.start).total_seconds()
        late = (started - clip.created_at.timestamp()) / max(window, 1e-3)
    return min(1.0, max(0.0, waiting, late))
