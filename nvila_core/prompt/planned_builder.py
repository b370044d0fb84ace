"""Build prompts whose frames are tiled by a plan instead of the published rule."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from PIL import Image

from nvila_core.config import ModelConfig
from nvila_core.errors import PromptError
from nvila_core.media.preprocess import cut_tiles, to_rgb
from nvila_core.media.video import Video
from nvila_core.prompt.builder import PromptBuilder, VideoOptions
from nvila_core.prompt.tokenizer import IMAGE_TOKEN, VIDEO_TOKEN, Tokenizer
from nvila_core.resolution.grids import SINGLE_TILE
from nvila_core.resolution.meter import Meter
from nvila_core.resolution.policy import GridChoice, Measures, Plan

Planner = Callable[[list[Measures]], Plan]
"""Plans the frames of a prompt from their measures."""


class PlannedBuilder(PromptBuilder):
    """Builds one prompt by a plan for all of its images and video frames together.

    The single image of a prompt, or the single frame of a video, is written as published: an image
    token and a line end for each tile and for the thumbnail. The tiles of several frames are
    written the same way, frame by frame, but without thumbnails and before the video. The whole
    video follows in its published form, in which every frame is its own thumbnail, so that the
    model sees motion as it did in training.
    """

    def __init__(
        self,
        config: ModelConfig,
        tokenizer: Tokenizer,
        options: VideoOptions,
        plan: Plan | Planner,
    ) -> None:
        super().__init__(config, tokenizer, options)
        self.plan = plan
        self.planned: Iterator[GridChoice] = iter(())

    def resolve_parts(self, content: Sequence[Any]) -> list[str | Image.Image | Video]:
        """Convert parts to texts, RGB images, and videos of the sampled frames."""
        resolved: list[str | Image.Image | Video] = []
        for part in content:
            if isinstance(part, Video):
                frames = part.sample(self.options.num_video_frames, self.options.fps)
                measures = part.sample_measures(self.options.num_video_frames)
                resolved.append(Video(frames, measures=measures))
            else:
                resolved.append(part if isinstance(part, str) else to_rgb(part))
        return resolved

    def plan_media(self, media: Sequence[Image.Image | Video]) -> None:
        """Take the plan, or make it after measuring the frames that have no measures.

        Raises:
            PromptError: the plan is not for as many frames as the prompt has.
        """
        count = sum(len(part) if isinstance(part, Video) else 1 for part in media)
        if isinstance(self.plan, Plan):
            plan = self.plan
        else:
            plan = self.plan([measures for part in media for measures in measures_of(part)])
        if len(plan.frames) != count:
            raise PromptError(
                f"The plan is for {len(plan.frames)} frames but the prompt has {count}: plan "
                "each image and video frame of the prompt, in order."
            )
        self.planned = iter(plan.frames)
        self.only_image = count == 1

    def add_image(self, image: Image.Image, single: bool) -> str:
        """Add one image as planned and return its text."""
        frame = next(self.planned)
        if single or frame.grid != SINGLE_TILE:
            return self.add_tiles(image, frame)
        return self.add_untiled(image, frame)

    def add_video(self, video: Video) -> str:
        """Add one video as planned and return its text."""
        planned = [next(self.planned) for _ in video.frames]
        if self.only_image and self.options.video_as == "image":
            return self.add_tiles(video.frames[0], planned[0])
        pairs = zip(video.frames, planned, strict=True)
        text = "".join(self.add_frame_tiles(*pair) for pair in pairs if pair[1].grid != SINGLE_TILE)
        self.frames += planned
        self.tile_makers.append(lambda: [self.untiled(image) for image in video.frames])
        if self.options.video_as == "video":
            self.add_media_token("video", len(planned))
            return text + VIDEO_TOKEN
        for _ in planned:
            self.add_media_token("image", 1, self.config.tile_tokens)
        return text + IMAGE_TOKEN * len(planned)

    def add_frame_tiles(self, image: Image.Image, frame: GridChoice) -> str:
        """Add the tiles of a frame, ahead of its video, and return their text."""
        size, (columns, rows) = self.config.processor.size, frame.grid
        self.tile_makers.append(lambda: cut_tiles(image, frame.grid, size))
        for _ in range(columns * rows):
            self.add_media_token("image", 1, self.config.tile_tokens)
        return f"{IMAGE_TOKEN}\n" * columns * rows


def measures_of(part: Image.Image | Video) -> list[Measures]:
    """Return the measures of an image, or of each frame of a video."""
    frames = part.frames if isinstance(part, Video) else [part]
    if isinstance(part, Video) and part.measures is not None:
        return part.measures
    meter = Meter()
    return [meter.measure(np.asarray(frame)) for frame in frames]
