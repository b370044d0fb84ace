"""Prompts whose frames are tiled as a resolution policy plans, not by the published rule."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from PIL import Image

from nvila_core.config import ModelConfig
from nvila_core.errors import PromptError
from nvila_core.media.preprocess import cut_tiles, to_rgb
from nvila_core.media.video import Video
from nvila_core.prompt.builder import Options, PromptBuilder
from nvila_core.prompt.tokenizer import IMAGE, VIDEO, Tokenizer
from nvila_core.resolution.grids import SINGLE_TILE
from nvila_core.resolution.meter import Meter
from nvila_core.resolution.policy import FramePlan, Measures, Plan

Planner = Callable[[list[Measures]], Plan]
"""Plans the frames of a prompt from their measures."""


class PlannedBuilder(PromptBuilder):
    """Prepares one prompt after a plan for all of its frames and pictures together.

    A picture alone in its prompt, one frame of a video too, is written as published: for each tile
    and the thumbnail an image token and a line end. The tiles of a video's frames are written
    likewise, one frame after the other, but come before the video, which follows whole and in its
    published form, so that what moves is seen as it was in training; each frame is its own
    thumbnail there.
    """

    def __init__(
        self,
        config: ModelConfig,
        tokenizer: Tokenizer,
        options: Options,
        plan: Plan | Planner,
    ) -> None:
        super().__init__(config, tokenizer, options)
        self.plan = plan
        self.planned: Iterator[FramePlan] = iter(())

    def resolve(self, content: Sequence[Any]) -> list[str | Image.Image | Video]:
        """Parts as text, RGB images, and videos of the frames that are looked at."""
        resolved: list[str | Image.Image | Video] = []
        for part in content:
            if isinstance(part, Video):
                frames = part.sample(self.options.num_video_frames, self.options.fps)
                measures = part.sample_measures(self.options.num_video_frames)
                resolved.append(Video(frames, measures=measures))
            else:
                resolved.append(part if isinstance(part, str) else to_rgb(part))
        return resolved

    def survey(self, media: Sequence[Image.Image | Video]) -> None:
        """Take the plan or, without one, measure what has not been measured and plan."""
        count = sum(len(part) if isinstance(part, Video) else 1 for part in media)
        if isinstance(self.plan, Plan):
            plan = self.plan
        else:
            plan = self.plan([measures for part in media for measures in measures_of(part)])
        if len(plan.frames) != count:
            raise PromptError(
                f"The plan is for {len(plan.frames)} frames but the prompt has {count}: plan "
                "each picture and video frame of the prompt, in order."
            )
        self.planned = iter(plan.frames)
        self.single = count == 1

    def add_image(self, image: Image.Image, single: bool) -> str:
        """Put in one image as planned; returns the text that stands for it."""
        frame = next(self.planned)
        if single or frame.grid != SINGLE_TILE:
            return self.add_tiles(image, frame)
        return self.add_whole(image, frame)

    def add_video(self, video: Video) -> str:
        """Put in one video as planned; returns the text that stands for it."""
        planned = [next(self.planned) for _ in video.frames]
        if self.single and self.options.video_as == "image":
            return self.add_tiles(video.frames[0], planned[0])
        pairs = zip(video.frames, planned, strict=True)
        text = "".join(self.add_view(*pair) for pair in pairs if pair[1].grid != SINGLE_TILE)
        self.frames += planned
        self.makers.append(lambda: [self.whole(image) for image in video.frames])
        if self.options.video_as == "video":
            self.add("video", len(planned))
            return text + VIDEO
        for _ in planned:
            self.add("image", 1, self.config.tile_tokens)
        return text + IMAGE * len(planned)

    def add_view(self, image: Image.Image, frame: FramePlan) -> str:
        """Put in a frame's tiles, ahead of its video; returns the text that stands for them."""
        size, (columns, rows) = self.config.processor.size, frame.grid
        self.makers.append(lambda: cut_tiles(image, frame.grid, size))
        for _ in range(columns * rows):
            self.add("image", 1, self.config.tile_tokens)
        return f"{IMAGE}\n" * columns * rows


def measures_of(part: Image.Image | Video) -> list[Measures]:
    """The measures of a picture, or of the frames of a video."""
    frames = part.frames if isinstance(part, Video) else [part]
    if isinstance(part, Video) and part.measures is not None:
        return part.measures
    meter = Meter()
    return [meter.measure(np.asarray(frame)) for frame in frames]
