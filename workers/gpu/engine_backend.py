"""The backend that runs NVILA's engine in this process."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from nvila_core.resolution.policy import Budget, Measures, Native, Plan, parse_policy
from streamer.domain.conversation import ChatRequest, Detail
from streamer.domain.frame import FrameRef
from streamer.domain.request import ClipRequest
from streamer.errors import ErrorCode, StreamerError
from streamer.settings import Settings
from workers.backend import plan_by_details
from workers.context import current
from workers.gpu.inference import infer
from workers.gpu.opened_frames import OpenedFrames
from workers.process import restart

if TYPE_CHECKING:
    import numpy as np

    from nvila_core import Completion, Engine


class EngineBackend:
    """Answers clips with `engine`, which batches those of all slots; see `workers.backend`."""

    def __init__(self, engine: "Engine", settings: Settings) -> None:
        self._engine = engine
        self._settings = settings
        self.frames = OpenedFrames(settings.frame_cache_bytes)

    def plan(
        self, frames: Sequence[Measures], budget: Budget, details: Sequence[Detail] | None = None
    ) -> Plan:
        """See `Backend.plan`."""
        policy, model = parse_policy(self._settings.policy), self._engine.model
        return plan_by_details(
            frames,
            details if model.config.tiles_frames else None,
            model.config.tiling,
            lambda free: model.plan(free, policy, budget),
        )

    def waiting(self) -> float:
        """See `Backend.waiting`."""
        stats = self._engine.stats()
        return stats["waiting"] / stats["max_num_seqs"]

    def answer(self, clip: ClipRequest, jpegs: Sequence[bytes], plan: Plan) -> "Completion":
        """See `Backend.answer`."""
        images = self._open(clip.frames, jpegs, self._sizes(plan))
        if isinstance(clip, ChatRequest):
            parts = messages_of(clip, images)
        else:
            parts = parts_of(images, clip.prompt)
        return infer(current(), clip, parts, plan)

    def stats(self) -> Mapping[str, float | str]:
        """Return `Engine.stats()`, the shares that came from a cache, and the recent restarts."""
        stats = self._engine.stats()
        return {
            **stats,
            "prefix_hit_rate": stats["cached_tokens"] / max(1, stats["prompt_tokens"]),
            "tile_hit_rate": stats["cached_tiles"] / max(1, stats["tiles"]),
            "restarts": len(restart.recent_restarts()),
            "max_model_len": self._engine.max_model_len,
        }

    def _open(
        self,
        frames: Sequence[FrameRef],
        jpegs: Sequence[bytes],
        sizes: Sequence[tuple[int, int] | None],
    ) -> "list[np.ndarray[Any, Any]]":
        """Open the pictures of a clip, RGB uint8 [height, width, 3], no larger than planned.

        Raises StreamerError(FRAME_DAMAGED).
        """
        try:
            return [
                self.frames.open(frame, jpeg, size)
                for frame, jpeg, size in zip(frames, jpegs, sizes, strict=True)
            ]
        except ValueError:
            raise StreamerError(
                ErrorCode.FRAME_DAMAGED, "A stored frame is damaged: ask again about other frames."
            ) from None

    def _sizes(self, plan: Plan) -> list[tuple[int, int] | None]:
        """Return the minimum width and height in pixels at which each frame must be decoded; None:
        its full size."""
        config = self._engine.model.config
        published = isinstance(parse_policy(self._settings.policy), Native)
        published = published or not config.tiles_frames
        if published and len(plan.frames) == 1:  # tiled by a rule that looks at the picture's size
            return [None]
        side = config.processor.size
        return [(side * columns, side * rows) for columns, rows in (f.grid for f in plan.frames)]


def parts_of(images: "list[np.ndarray[Any, Any]]", prompt: str) -> list[Any]:
    """Build the parts of a model's prompt about RGB uint8 pictures [height, width, 3]: one frame
    alone is an image, several are a video."""
    from PIL import Image

    from nvila_core import Video

    media = Image.fromarray(images[0]) if len(images) == 1 else Video(images, sampled=True)
    return [media, prompt]


def messages_of(chat: ChatRequest, images: "list[np.ndarray[Any, Any]]") -> list[Any]:
    """Build the turns of a chat as the model takes them, with its RGB uint8 pictures [height,
    width, 3] in their places: one alone is an image, several of one part are a video."""
    from PIL import Image

    from nvila_core import Video

    messages: list[Any] = []
    start = 0
    for turn in chat.turns:
        content: list[Any] = []
        for part in turn.content:
            if part.type == "text":
                content.append(part.text)
                continue
            shown = images[start : start + part.count]
            start += part.count
            single = part.count == 1
            content.append(Image.fromarray(shown[0]) if single else Video(shown, sampled=True))
        messages.append({"role": turn.role, "content": content})
    return messages
