"""Turn the parts of a prompt (texts, images, videos) into token ids, pixels and media positions.

The rules are the original's; source: nvila specification, sections 3.1 and 5. Where the original
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
from nvila_core.prompt.conversation import (
    as_conversation,
    check_characters,
    without_media_tokens,
)
from nvila_core.prompt.tokenizer import IMAGE_TOKEN, VIDEO_TOKEN, ControlTokenEscaper, Tokenizer
from nvila_core.resolution.grids import SINGLE_TILE, Grid, choose_grid, tile_count
from nvila_core.resolution.policy import BY_ASPECT, MAX_TILES, ONE_OF_SEVERAL, GridChoice, Plan


@dataclass(frozen=True)
class Prompt:
    """A prepared prompt: the model's whole input, before any computation on the model.

    Attributes:
        text: the rendered conversation, with media tokens.
        token_ids: ids of `text`, with media tokens.
        pixels: uint8 [tiles, S, S, 3] in order of the media tokens. They take a quarter of the
            memory of `pixel_values`, which most tiles of a waiting prompt never need.
        processor: converts `pixels` to `pixel_values`.
        media: one entry for each media token, in order.
        num_tokens: LLM positions after splicing.
        plan: the grid of every image and video frame, in order, and the reason for it.
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
        """Number of tiles for the vision tower."""
        return len(self.pixels)

    @property
    def pixel_values(self) -> Tensor:
        """float32 [tiles, 3, S, S] in order of the media tokens; computed at every access."""
        return self.processor.normalise(self.pixels)

    @property
    def vision_tokens(self) -> int:
        """Number of LLM positions that hold image features."""
        return sum(media.vision_tokens for media in self.media)

    def must_fit(self, context: int) -> None:
        """Raise PromptTooLong if the prompt needs more than `context` positions."""
        if self.num_tokens > context:
            raise PromptTooLong(self.num_tokens, context)


@dataclass(frozen=True)
class VideoOptions:
    """How videos are sampled and written into the prompt; see `NVILA.prepare`."""

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
class TextPiece:
    """A piece of a message's text. `trusted` text was not written by the user: media tokens."""

    text: str
    trusted: bool = False


class PromptBuilder:
    """Builds one prompt as the published model does.

    Tiles are cut only after the whole prompt is known to fit; until then, `tile_makers` hold the
    functions that cut them.
    """

    def __init__(self, config: ModelConfig, tokenizer: Tokenizer, options: VideoOptions) -> None:
        self.config, self.tokenizer, self.options = config, tokenizer, options
        self.media: list[Media] = []
        self.tile_makers: list[Callable[[], list[Image.Image]]] = []
        self.frames: list[GridChoice] = []
        self.num_tiles = 0
        self.only_image = False

    def build(self, parts: Any) -> Prompt:
        """See `NVILA.prepare`."""
        turns = as_conversation(parts)
        check_characters(turns, self.config.max_model_len)
        conversation = [(role, self.resolve_parts(content)) for role, content in turns]
        self.plan_media(
            [part for _, content in conversation for part in content if not isinstance(part, str)]
        )
        contents = [(role, self.to_pieces(content)) for role, content in conversation]
        escaper = ControlTokenEscaper(
            self.tokenizer, (piece.text for _, pieces in contents for piece in pieces)
        )
        messages = [
            {
                "role": role,
                "content": "".join(
                    p.text if p.trusted else escaper.escape(p.text) for p in pieces
                ).strip(),
            }
            for role, pieces in contents
        ]
        if not any(m["content"] for m in messages if m["role"] == "user"):
            raise EmptyPrompt("The prompt is empty: give a question, an image, or both.")
        rendered = self.tokenizer.render(messages)
        ids = self.tokenizer.encode_escaped(rendered, escaper)
        self.check_media_tokens(ids)
        positions = len(ids) - len(self.media) + sum(media.positions for media in self.media)
        if positions > self.config.max_model_len:
            raise PromptTooLong(positions, self.config.max_model_len)
        tokens = sum(media.vision_tokens for media in self.media)
        plan = Plan(tuple(self.frames), self.num_tiles, tokens)
        text = escaper.unescape(rendered)
        return Prompt(
            text, ids, self.make_pixels(), self.config.processor, self.media, positions, plan
        )

    def resolve_parts(self, content: Sequence[Any]) -> list[str | Image.Image | Video]:
        """Convert parts to texts, RGB images, and videos that become one token.

        The frames of other videos become images.
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

    def plan_media(self, media: Sequence[Image.Image | Video]) -> None:
        """Inspect all images and videos of the prompt, before the first one is added."""
        self.only_image = sum(isinstance(part, Image.Image) for part in media) == 1

    def to_pieces(self, content: Sequence[str | Image.Image | Video]) -> list[TextPiece]:
        """Convert a message to text, adding its media.

        Neighbouring user texts are joined first, so that they cannot form a control token together.
        """
        pieces: list[TextPiece] = []
        for part in content:
            if isinstance(part, str):
                text = without_media_tokens(part)
                if pieces and not pieces[-1].trusted:
                    pieces[-1].text += text
                else:
                    pieces.append(TextPiece(text))
            elif isinstance(part, Video):
                pieces.append(TextPiece(self.add_video(part), trusted=True))
            else:
                pieces.append(TextPiece(self.add_image(part, self.only_image), trusted=True))
        return pieces

    def add_image(self, image: Image.Image, single: bool) -> str:
        """Add one image and return its text; only the single image of a prompt is tiled."""
        config, size = self.config, self.config.processor.size
        if single and config.image_aspect_ratio == "dynamic":
            grid = choose_grid(*image.size, size, config.min_tiles, config.max_tiles)
            return self.add_tiles(image, GridChoice(grid, BY_ASPECT))
        if single and config.image_aspect_ratio == "dynamic_s2":
            scales = config.s2_scales
            min_tiles = (scales[-1] // scales[0]) ** 2
            max_tiles = max(config.max_tiles, min_tiles)
            columns, rows = choose_grid(*image.size, size, min_tiles, max_tiles)
            count = sum((s // scales[0]) ** 2 for s in scales[:-1]) + rows * columns
            self.tile_makers.append(lambda: s2_tiles(image, size, scales, config.max_tiles)[0])
            block_rows, block_columns = output_block(config, (rows, columns))
            self.add_media_token(
                "image", count, config.tile_tokens * block_rows * block_columns, (rows, columns)
            )
            self.frames.append(GridChoice((columns, rows), BY_ASPECT))
            return IMAGE_TOKEN
        return self.add_untiled(image, GridChoice(SINGLE_TILE, ONE_OF_SEVERAL))

    def add_untiled(self, image: Image.Image, frame: GridChoice) -> str:
        """Add one image as a single tile and return its text."""
        self.frames.append(frame)
        self.tile_makers.append(lambda: [self.untiled(image)])
        self.add_media_token("image", 1, self.config.tile_tokens)
        return IMAGE_TOKEN

    def add_tiles(self, image: Image.Image, frame: GridChoice) -> str:
        """Add one image in the tiles of a grid and return its text."""
        size, count = self.config.processor.size, tile_count(frame.grid)
        self.frames.append(frame)
        self.tile_makers.append(lambda: grid_tiles(image, frame.grid, size))
        for _ in range(count):
            self.add_media_token("image", 1, self.config.tile_tokens)
        return f"{IMAGE_TOKEN}\n" * count

    def add_video(self, video: Video) -> str:
        """Add one video that becomes one token and return its text."""
        config, size = self.config, self.config.processor.size
        frames: list[Image.Image] = video.frames
        max_tiles = self.options.video_max_tiles
        if config.image_aspect_ratio == "dynamic" and max_tiles > 1:
            min_tiles = min(config.min_tiles, max_tiles)
            grids = [choose_grid(*frame.size, size, min_tiles, max_tiles) for frame in frames]
            counts = {tile_count(grid) for grid in grids}
            if len(counts) > 1:
                raise PromptError(
                    "The frames of a tiled video must all have the same size: resize them first."
                )
            self.tile_makers.append(
                lambda: [t for f in frames for t in dynamic_tiles(f, size, min_tiles, max_tiles)]
            )
            self.frames += [GridChoice(grid, BY_ASPECT) for grid in grids]
            self.add_media_token("video", counts.pop() * len(frames))
        else:
            self.frames += [GridChoice(SINGLE_TILE, ONE_OF_SEVERAL) for _ in frames]
            self.tile_makers.append(lambda: [self.untiled(frame) for frame in frames])
            self.add_media_token("video", len(frames))
        return VIDEO_TOKEN

    def add_media_token(
        self, kind: VideoAs, tiles: int, tokens: int | None = None, block: Grid | None = None
    ) -> None:
        """Record one media token.

        Args:
            kind: which token it is.
            tiles: number of its tiles.
            tokens: positions that hold features; required for an image.
            block: (rows, columns) of the last scale for dynamic S2.
        """
        if kind == "image":
            assert tokens is not None
            extra = self.boundary_positions(self.config.image_encoder)
            self.media.append(Media(kind, self.num_tiles, tiles, block, tokens, tokens + extra))
        else:
            vision, positions = self.video_positions(tiles)
            self.media.append(Media(kind, self.num_tiles, tiles, block, vision, positions))
        self.num_tiles += tiles

    def boundary_positions(self, encoder: EncoderConfig) -> int:
        """Return the positions of the start and end tokens of one image or frame."""
        return sum(
            len(self.tokenizer.encode(t)) for t in (encoder.start_tokens, encoder.end_tokens) if t
        )

    def video_positions(self, tiles: int) -> tuple[int, int]:
        """Return the feature positions and the total positions of a video of `tiles` tiles."""
        encoder, side = self.config.video_encoder, self.config.tile_side
        extra = self.boundary_positions(encoder)
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

    def untiled(self, image: Image.Image) -> Image.Image:
        """Return the image to resize to a single tile."""
        if self.config.image_aspect_ratio == "pad":
            return pad_to_square(image, self.config.processor.mean)
        if self.config.image_aspect_ratio == "resize":
            return image.resize((self.config.processor.size,) * 2)
        return image

    def make_pixels(self) -> NDArray[np.uint8]:
        """Cut the tiles of all media: uint8 [tiles, S, S, 3]."""
        processor = self.config.processor
        pixels = np.empty((self.num_tiles, processor.size, processor.size, 3), np.uint8)
        images = (image for make in self.tile_makers for image in make())
        for tile, image in zip(pixels, images, strict=True):
            tile[:] = processor.resize(image)
        return pixels

    def check_media_tokens(self, ids: Sequence[int]) -> None:
        """Check that the chat template kept every media token in its place."""
        kinds = {self.tokenizer.image_id: "image", self.tokenizer.video_id: "video"}
        if [kinds[i] for i in ids if i in kinds] != [media.kind for media in self.media]:
            raise PromptError(
                "The checkpoint's chat template dropped or moved an image: use another template."
            )
