"""Plan how many tiles each frame of a clip gets, from its measures, before any JPEG is decoded."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from nvila_core.resolution.policy import Budget, Native, Plan, parse_policy
from streamer.domain import ClipRequest, FrameResolution, RequestKind
from workers.context import WorkerContext

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True)
class ClipPlan:
    """The plan of a clip, computed once, for decoding, for the engine and for the result.

    Attributes:
        tiles: the grid of every frame, and why; for `Engine.submit`.
        sizes: minimum width and height in pixels at which each frame must be decoded; None: its
            full size.
    """

    tiles: Plan
    sizes: list[tuple[int, int] | None]

    @property
    def record(self) -> list[FrameResolution]:
        """The plan as results carry it."""
        return [FrameResolution(grid=f.grid, reason=f.reason) for f in self.tiles.frames]


def plan_clip(context: WorkerContext, clip: ClipRequest, started: float) -> ClipPlan:
    """Plan a clip whose job `started` (epoch seconds) with the worker's policy and budget."""
    assert context.engine is not None
    model, settings = context.engine.model, context.settings
    policy = parse_policy(settings.policy)
    budget = Budget(settings.clip_tokens, worker_load(context, clip, started))
    plan = model.plan([frame.measures for frame in clip.frames], policy, budget)
    published = isinstance(policy, Native) or not model.config.tiles_frames
    if published and len(clip.frames) == 1:  # tiled by a rule that looks at the picture's size
        return ClipPlan(plan, [None])
    side = model.config.processor.size
    return ClipPlan(
        plan, [(side * columns, side * rows) for columns, rows in (f.grid for f in plan.frames)]
    )


def parts_of(images: "list[np.ndarray[Any, Any]]", prompt: str) -> list[Any]:
    """Build the parts of a model's prompt about RGB uint8 pictures [height, width, 3]: one frame
    alone is an image, several are a video."""
    from PIL import Image

    from nvila_core import Video

    media = Image.fromarray(images[0]) if len(images) == 1 else Video(images, sampled=True)
    return [media, prompt]


def worker_load(context: WorkerContext, clip: ClipRequest, started: float) -> float:
    """Measure how far this worker is behind, from 0 to 1.

    The larger of two shares: requests that wait in the engine for each that it runs at once and,
    for a live clip, its wait in the queue as a share of its window. A recording can wait, so its
    clips are planned as on an idle worker.
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
