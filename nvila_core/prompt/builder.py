"""From parts (texts, pictures, videos) to token ids, pixels and the plan that splices them
together.

The rules are the original's, one by one; source: nvila specification, sections 3.1 and 5. Where it
would crash or let user text become a control token, docs/model.md says what happens instead.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from nvila_core.config import MAX_FRAMES, EncoderConfig, ModelConfig, output_block
from nvila_core.errors import EmptyPrompt, PromptError, PromptTooLong
from nvila_core.media.item import Media, VideoAs
from nvila_core.media.preprocess import (
    Processor,
    dynamic_tiles,
    grid_tiles,
    pad_to_square,
    s2_tiles,
    to_rgb,
)
from nvila_core.media.video import Video
from nvila_core.prompt.conversation import as_conversation, without_media_tokens
from nvila_core.prompt.tokenizer import IMAGE, VIDEO, Shield, Tokenizer
from nvila_core.resolution.grids import SINGLE_TILE, Grid, choose_grid, tile_count
from nvila_core.resolution.policy import BY_ASPECT, MAX_TILES, ONE_OF_SEVERAL, FramePlan, Plan


@dataclass(frozen=True)
class Prompt:
    """A prepared prompt: everything that the model needs, and no model compute done yet.

    Attributes:
        text: the rendered conversation, media tokens in place.
        token_ids: its ids, media tokens in place.
        pixels: uint8 [tiles, S, S, 3] in order of the media tokens: a quarter of what the tower
            is given, which most tiles of a waiting prompt never become.
        processor: what makes the one of the other.
        media: one entry for each media token, in order.
        num_tokens: LLM positions after splicing.
        plan: the grid of every picture and frame, in order, and why.
    """

    text: str
    token_ids: list[int]
    pixels: NDArray[np.uint8]
    processor: Processor
    media: list[Media] = field(default_factory=list)
    num_tokens: int = 0
    plan: Plan = field(default_factory=Plan)

    @property
    def tiles(self) -> int:
        """Pictures for the vision tower."""
        return len(self.pixels)

    @property
    def pixel_values(self) -> Tensor:
        """float32 [tiles, 3, S, S] in order of the media tokens; made anew at every call."""
        return self.processor.normalise(self.pixels)

    @property
    def vision_tokens(self) -> int:
        """LLM positions that hold picture features."""
        return sum(media.vision_tokens for media in self.media)

    def must_fit(self, context: int) -> None:
        """Raise PromptTooLong where the prompt needs more than `context` positions."""
        if self.num_tokens > context:
            raise PromptTooLong(self.num_tokens, context)


@dataclass(frozen=True)
class Options:
    """How videos are looked at; see `NVILA.prepare`."""

    num_video_frames: int
    video_max_tiles: int
    video_as: VideoAs
    fps: float = 0.0

    def __post_init__(self) -> None:
        if not 1 <= self.num_video_frames <= MAX_FRAMES:
            raise PromptError(
                f"num_video_frames must be from 1 to {MAX_FRAMES}, not {self.num_video_frames}."
            )
        if not 1 <= self.video_max_tiles <= MAX_TILES:
            raise PromptError(
                f"video_max_tiles must be from 1 to {MAX_TILES}, not {self.video_max_tiles}."
            )
        if self.video_as not in ("image", "video"):
            raise PromptError(f"video_as must be 'image' or 'video', not {self.video_as!r}.")


@dataclass
class Piece:
    """A part after its media rule was chosen: text, or media whose tiles are made once all is known
    to fit.
    """

    text: str
    trusted: bool = False


class PromptBuilder:
    """Prepares one prompt as the published model does; holds the tiles to make and the media found
    so far.
    """

    def __init__(self, config: ModelConfig, tokenizer: Tokenizer, options: Options) -> None:
        self.config, self.tokenizer, self.options = config, tokenizer, options
        self.media: list[Media] = []
        self.makers: list[Callable[[], list[Image.Image]]] = []
        self.frames: list[FramePlan] = []
        self.count = 0
        self.single = False

    def build(self, parts: Any) -> Prompt:
        """See `NVILA.prepare`."""
        conversation = [(role, self.resolve(content)) for role, content in as_conversation(parts)]
        self.survey(
            [part for _, content in conversation for part in content if not isinstance(part, str)]
        )
        turns = [(role, self.pieces(content)) for role, content in conversation]
        shield = Shield(self.tokenizer, (piece.text for _, pieces in turns for piece in pieces))
        messages = [
            {
                "role": role,
                "content": "".join(p.text if p.trusted else shield(p.text) for p in pieces).strip(),
            }
            for role, pieces in turns
        ]
        if not any(m["content"] for m in messages if m["role"] == "user"):
            raise EmptyPrompt("The prompt is empty, so give a question, a picture or both.")
        rendered = self.tokenizer.render(messages)
        ids = self.tokenizer.encode_shielded(rendered, shield)
        self.check(ids)
        positions = len(ids) - len(self.media) + sum(media.positions for media in self.media)
        if positions > self.config.max_model_len:
            raise PromptTooLong(positions, self.config.max_model_len)
        tokens = sum(media.vision_tokens for media in self.media)
        plan = Plan(tuple(self.frames), self.count, tokens)
        text = shield.restore(rendered)
        return Prompt(text, ids, self.pixels(), self.config.processor, self.media, positions, plan)

    def resolve(self, content: Sequence[Any]) -> list[str | Image.Image | Video]:
        """Parts as text, RGB images and videos to keep as one token; frames that count as images
        become images.
        """
        resolved: list[str | Image.Image | Video] = []
        for part in content:
            if isinstance(part, str):
                resolved.append(part)
            elif isinstance(part, Video):
                frames = part.sample(self.options.num_video_frames, self.options.fps)
                resolved += frames if self.options.video_as == "image" else [Video(frames)]
            else:
                resolved.append(to_rgb(part))
        return resolved

    def survey(self, media: Sequence[Image.Image | Video]) -> None:
        """Look at all pictures and videos of the prompt before the first becomes text."""
        self.single = sum(isinstance(part, Image.Image) for part in media) == 1

    def pieces(self, content: Sequence[str | Image.Image | Video]) -> list[Piece]:
        """The message as text; neighbouring user texts are joined, so that no token can form
        between them.
        """
        pieces: list[Piece] = []
        for part in content:
            if isinstance(part, str):
                text = without_media_tokens(part)
                if pieces and not pieces[-1].trusted:
                    pieces[-1].text += text
                else:
                    pieces.append(Piece(text))
            elif isinstance(part, Video):
                pieces.append(Piece(self.add_video(part), trusted=True))
            else:
                pieces.append(Piece(self.add_image(part, self.single), trusted=True))
        return pieces

    def add_image(self, image: Image.Image, single: bool) -> str:
        """Plan one image; only a prompt's single image is tiled. Returns the text that stands for
        it.
        """
        config, size = self.config, self.config.processor.size
        if single and config.image_aspect_ratio == "dynamic":
            grid = choose_grid(*image.size, size, config.min_tiles, config.max_tiles)
            return self.add_tiles(image, FramePlan(grid, BY_ASPECT))
        if single and config.image_aspect_ratio == "dynamic_s2":
            scales = config.s2_scales
            fewest = (scales[-1] // scales[0]) ** 2
            columns, rows = choose_grid(*image.size, size, fewest, max(config.max_tiles, fewest))
            count = sum((s // scales[0]) ** 2 for s in scales[:-1]) + rows * columns
            self.makers.append(lambda: s2_tiles(image, size, scales, config.max_tiles)[0])
            block_rows, block_columns = output_block(config, (rows, columns))
            self.add(
                "image", count, config.tile_tokens * block_rows * block_columns, (rows, columns)
            )
            self.frames.append(FramePlan((columns, rows), BY_ASPECT))
            return IMAGE
        return self.add_whole(image, FramePlan(SINGLE_TILE, ONE_OF_SEVERAL))

    def add_whole(self, image: Image.Image, frame: FramePlan) -> str:
        """Plan one image that is not tiled; returns the text that stands for it."""
        self.frames.append(frame)
        self.makers.append(lambda: [self.whole(image)])
        self.add("image", 1, self.config.tile_tokens)
        return IMAGE

    def add_tiles(self, image: Image.Image, frame: FramePlan) -> str:
        """Plan one image in the tiles of a grid; returns the text that stands for it."""
        size, count = self.config.processor.size, tile_count(frame.grid)
        self.frames.append(frame)
        self.makers.append(lambda: grid_tiles(image, frame.grid, size))
        for _ in range(count):
            self.add("image", 1, self.config.tile_tokens)
        return f"{IMAGE}\n" * count

    def add_video(self, video: Video) -> str:
        """Plan one video that becomes one token; returns the text that stands for it."""
        config, size = self.config, self.config.processor.size
        frames: list[Image.Image] = video.frames
        most = self.options.video_max_tiles
        if config.image_aspect_ratio == "dynamic" and most > 1:
            fewest = min(config.min_tiles, most)
            grids = [choose_grid(*frame.size, size, fewest, most) for frame in frames]
            counts = {tile_count(grid) for grid in grids}
            if len(counts) > 1:
                raise PromptError(
                    "The frames of a tiled video must have one size, so resize them first."
                )
            self.makers.append(
                lambda: [t for f in frames for t in dynamic_tiles(f, size, fewest, most)]
            )
            self.frames += [FramePlan(grid, BY_ASPECT) for grid in grids]
            self.add("video", counts.pop() * len(frames))
        else:
            self.frames += [FramePlan(SINGLE_TILE, ONE_OF_SEVERAL) for _ in frames]
            self.makers.append(lambda: [self.whole(frame) for frame in frames])
            self.add("video", len(frames))
        return VIDEO

    def add(
        self, kind: VideoAs, tiles: int, tokens: int | None = None, block: Grid | None = None
    ) -> None:
        """Note one media token."""
        if kind == "image":
            assert tokens is not None
            extra = self.extra(self.config.image_encoder)
            self.media.append(Media(kind, self.count, tiles, block, tokens, tokens + extra))
        else:
            vision, positions = self.video_positions(tiles)
            self.media.append(Media(kind, self.count, tiles, block, vision, positions))
        self.count += tiles

    def extra(self, encoder: EncoderConfig) -> int:
        """Positions of the start and end tokens of one image or frame."""
        return sum(
            len(self.tokenizer.encode(t)) for t in (encoder.start_tokens, encoder.end_tokens) if t
        )

    def video_positions(self, tiles: int) -> tuple[int, int]:
        """Feature positions and all positions of a video of `tiles` tiles."""
        encoder, side = self.config.video_encoder, self.config.tile_side
        extra = self.extra(encoder)
        if not encoder.pool_sizes:
            vision = tiles * self.config.tile_tokens
            return vision, vision + tiles * extra
        separator = len(self.tokenizer.encode(encoder.sep_tokens)) if encoder.sep_tokens else 0
        vision = positions = 0
        for frames, rows, columns in encoder.pool_sizes:
            steps = -(-tiles // frames)
            tokens = steps * -(-side // rows) * -(-side // columns)
            vision += tokens
            positions += tokens + steps * extra + separator
        return vision, positions

    def whole(self, image: Image.Image) -> Image.Image:
        """An image that is not tiled, before the processor."""
        if self.config.image_aspect_ratio == "pad":
            return pad_to_square(image, self.config.processor.mean)
        if self.config.image_aspect_ratio == "resize":
            return image.resize((self.config.processor.size,) * 2)
        return image

    def pixels(self) -> NDArray[np.uint8]:
        """The tiles of all media."""
        processor = self.config.processor
        pixels = np.empty((self.count, processor.size, processor.size, 3), np.uint8)
        images = (image for make in self.makers for image in make())
        for tile, image in zip(pixels, images, strict=True):
            tile[:] = processor.resize(image)
        return pixels

    def check(self, ids: Sequence[int]) -> None:
        """The template must have kept every media token in its place."""
        kinds = {self.tokenizer.image_id: "image", self.tokenizer.video_id: "video"}
        if [kinds[i] for i in ids if i in kinds] != [media.kind for media in self.media]:
            raise PromptError(
                "The checkpoint's chat template dropped or moved a picture; use another template."
            )
