"""NVILA and NVILA-Lite: prepare a prompt, embed it, and generate from it."""

import time
import warnings
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nvila_core.checkpoint.hub import find_checkpoint
from nvila_core.checkpoint.loader import Checkpoint
from nvila_core.config import ModelConfig
from nvila_core.errors import NotFinite, PromptError
from nvila_core.generation.completion import Completion
from nvila_core.generation.sampling import SamplingParams
from nvila_core.generation.sequence import Sequence
from nvila_core.media.item import Media, VideoAs
from nvila_core.models.attention import SequenceCache
from nvila_core.models.device import choose_device, choose_dtype
from nvila_core.models.kernels import try_kernels
from nvila_core.models.language_model import LanguageModel
from nvila_core.models.media_encoders import from_tiles, project, tile_features, video_positions
from nvila_core.models.projector import Projector
from nvila_core.models.quantize import choose_precision
from nvila_core.models.vision_tower import VisionTower
from nvila_core.prompt.builder import Prompt, PromptBuilder, VideoOptions
from nvila_core.prompt.planned_builder import PlannedBuilder
from nvila_core.prompt.tokenizer import Tokenizer
from nvila_core.resolution.policy import Budget, Measures, Native, Plan, Policy, parse_policy


class NVILA:
    """A loaded model.

    Preparing prompts is thread-safe; only one thread at a time may run the model.

    Example:
        The checkpoint that the package ships, about a grey picture; any other is loaded with
        `NVILA.from_pretrained("Efficient-Large-Model/NVILA-Lite-2B", device="auto", dtype="auto")`.

        >>> from PIL import Image
        >>> from nvila_core import NVILA, SamplingParams
        >>> from nvila_core.demo import CHECKPOINT
        >>> model = NVILA.from_pretrained(CHECKPOINT)
        >>> photo = Image.new("RGB", (112, 112), "grey")
        >>> answer = model.generate([photo, "What is this?"], SamplingParams(max_tokens=4))
        >>> answer.usage.tiles, answer.usage.completion_tokens <= 4
        (1, True)
    """

    def __init__(
        self,
        config: ModelConfig,
        tokenizer: Tokenizer,
        vision: VisionTower,
        projector: Projector,
        language: LanguageModel,
        name: str = "nvila",
    ) -> None:
        self.config, self.tokenizer, self.name = config, tokenizer, name
        self.vision, self.projector, self.language = vision, projector, language
        tokenizer.num_embeddings = language.num_embeddings

    @classmethod
    def from_pretrained(
        cls,
        path_or_hub_id: str | Path,
        device: str | torch.device = "cpu",
        dtype: str | torch.dtype = "float32",
        revision: str | None = None,
        quantize: str | None = None,
    ) -> "NVILA":
        """Load a checkpoint in any published layout.

        Args:
            path_or_hub_id: a folder, or a repository of the Hugging Face hub, which is downloaded
                if it is not cached.
            device: "cpu", "cuda", "cuda:1", or "auto": a GPU where there is one.
            dtype: "float32", "float16", "bfloat16", or "auto": bfloat16, except on a CPU without
                instructions for it, where it is float32.
            revision: branch, tag or commit on the hub.
            quantize: weights in fewer bits, see `quantization`: "int8"; "int4" for the
                language model with an int8 vision tower; on a GPU that multiplies FP8 also "fp8",
                or "fp8-vision" for the vision tower and projector only. Needs less memory, and
                answers may differ. None keeps full precision.

        Raises:
            CheckpointError: a file or field is missing, malformed or contradictory.
            NVILAError: the device, dtype or quantization is not available.
        """
        device = choose_device(device)
        dtype = choose_dtype(dtype, device)
        precision = choose_precision(quantize, device, dtype)
        checkpoint = Checkpoint.open(find_checkpoint(path_or_hub_id, revision))
        try_kernels(device)
        vision, projector, language = checkpoint.load(dtype, device, precision)
        name = Path(path_or_hub_id).name or "nvila"
        return cls(checkpoint.config, checkpoint.tokenizer, vision, projector, language, name)

    @property
    def device(self) -> torch.device:
        """The device that holds the model."""
        return self.language.device

    @property
    def dtype(self) -> torch.dtype:
        """The dtype in which the model computes."""
        return self.language.dtype

    @property
    def max_model_len(self) -> int:
        """Maximum number of positions of prompt and answer together."""
        return self.config.max_model_len

    @property
    def context(self) -> int:
        """Deprecated name of `max_model_len`."""
        warnings.warn(
            "NVILA.context is now NVILA.max_model_len; the old name will be removed in the next "
            "release.",
            DeprecationWarning,
            stacklevel=2,
        )
        return self.max_model_len

    def prepare(
        self,
        parts: Any,
        num_video_frames: int | None = None,
        video_max_tiles: int | None = None,
        video_as: VideoAs | None = None,
        policy: str | Policy | None = None,
        budget: Budget | None = None,
        plan: Plan | None = None,
    ) -> Prompt:
        """Turn parts into token ids and pixels, on the CPU and without the model.

        Args:
            parts: a list of str, PIL images, uint8 arrays [height, width, 3] and `Video`; or a
                conversation, a list of {"role": "system" | "user" | "assistant", "content": parts}.
            num_video_frames: frames sampled from each video; default: all those of `plan`, else the
                checkpoint's (8).
            video_max_tiles: maximum number of tiles of a frame, with `video_as="video"`; default:
                the checkpoint's (1).
            video_as: "image" writes an `<image>` token for each frame, "video" one `<vila/video>`.
                Default: "image" for a Basic video encoder, "video" for one that pools (TSP).
            policy: resolution policy, which chooses the tiles of each frame: "adaptive", "fixed:4",
                or a `Policy`. Default: "native", the published rule, which also applies to
                checkpoints that cannot tile frames one by one.
            budget: what a policy may spend on all pictures of the prompt together.
            plan: a grid for each picture and video frame of the prompt, in order, as `NVILA.plan`
                computes it; replaces `policy` and `budget`. Checkpoints that cannot tile frames one
                by one keep the published rule.

        Raises:
            PromptTooLong: the prompt needs more positions than the context holds.
            PromptError: the prompt is empty, has an unknown role or a part of another type, or the
                plan has another number of frames.
        """
        config = self.config
        if plan is not None and (policy is not None or budget is not None):
            raise PromptError("A plan replaces policy and budget: give either it or them.")
        if num_video_frames is None:
            planned = len(plan.frames) if plan is not None else 0
            num_video_frames = planned or config.num_video_frames
        options = VideoOptions(
            num_video_frames,
            config.video_max_tiles if video_max_tiles is None else video_max_tiles,
            video_as or ("video" if config.video_encoder.pool_sizes else "image"),
            config.fps,
        )
        chosen = self._policy(policy)
        if not config.tiles_frames or (plan is None and isinstance(chosen, Native)):
            return PromptBuilder(config, self.tokenizer, options).build(parts)

        def planner(clip: list[Measures]) -> Plan:
            return chosen.plan(clip, config.tiling, budget or Budget())

        return PlannedBuilder(config, self.tokenizer, options, plan or planner).build(parts)

    def plan(
        self,
        clip: list[Measures],
        policy: str | Policy | None = None,
        budget: Budget | None = None,
    ) -> Plan:
        """Plan the tiles of a video from the measures of its frames, before opening the frames.

        No frame then needs to be decoded at a larger size than its grid needs. `prepare` takes the
        plan.
        """
        return self._policy(policy).plan(clip, self.config.tiling, budget or Budget())

    def _policy(self, policy: str | Policy | None) -> Policy:
        chosen = parse_policy(policy or "native")
        return chosen if self.config.tiles_frames else Native()

    def encode(self, prompt: Prompt) -> list[Tensor]:
        """Run tower and projector: [positions, D] for each media token of the prompt."""
        return self.media_positions(self.vision(prompt.pixel_values), prompt.media)

    @torch.inference_mode()
    def media_positions(self, features: Tensor, media: list[Media]) -> list[Tensor]:
        """Return [positions, D] for each media token, from the tower's features [tiles, N, C]."""
        projected = project(self.projector, features, media, self.config)
        return [self._positions(p, item) for p, item in zip(projected, media, strict=True)]

    def _positions(self, projected: Tensor, item: Media) -> Tensor:
        config = self.config
        encoder = config.image_encoder if item.kind == "image" else config.video_encoder
        return video_positions(projected, encoder, self._separators)

    @cached_property
    def _separators(self) -> dict[str, Tensor]:
        """Embeddings [tokens, D] of the texts around frames."""
        encoders = (self.config.image_encoder, self.config.video_encoder)
        texts = {t for e in encoders for t in (e.start_tokens, e.end_tokens, e.sep_tokens) if t}
        return {text: self.language.embed(self.tokenizer.encode(text)) for text in texts}

    @torch.inference_mode()
    def encode_tiles(self, pixels: Tensor) -> Tensor:
        """Encode tiles float32 [tiles, 3, S, S] independently of the media that they are part of.

        The result for a tile can be cached and reused; see `media_from_tiles`.
        """
        return tile_features(self.projector, self.vision(pixels), self.config)

    @torch.inference_mode()
    def media_from_tiles(self, tiles: Tensor, item: Media) -> Tensor:
        """Return [positions, D] of one media token from the `encode_tiles` of its tiles."""
        return self._positions(from_tiles(self.projector, tiles, item, self.config), item)

    @torch.inference_mode()
    def splice(self, prompt: Prompt, media: list[Tensor]) -> Tensor:
        """Return the embedded prompt [positions, D] with `media` in place of the media tokens."""
        embeds = self.language.embed(prompt.token_ids)
        pieces, start, remaining = [], 0, iter(media)
        for place, token in enumerate(prompt.token_ids):
            if token in (self.tokenizer.image_id, self.tokenizer.video_id):
                pieces += [embeds[start:place], next(remaining)]
                start = place + 1
        return torch.cat([*pieces, embeds[start:]])

    def embed(self, prompt: Prompt) -> Tensor:
        """Return the input embeddings [positions, hidden] of the language model."""
        return self.splice(prompt, self.encode(prompt))

    def logits(self, prompt: Prompt) -> Tensor:
        """Return float32 logits [positions, vocab] of the token after each position.

        `vocab` is the tokenizer's length; tokens without an embedding have -inf.
        """
        hidden = self.language.hidden_states(self.embed(prompt))
        return self.language.logits(hidden, len(self.tokenizer))

    def generate(
        self,
        parts_or_prompt: Any,
        params: SamplingParams | None = None,
        on_text: Callable[[str], None] | None = None,
    ) -> Completion:
        """Answer one prompt.

        Args:
            parts_or_prompt: a prepared `Prompt`, or what `prepare` takes.
            params: how to sample; default: greedy, up to 512 tokens.
            on_text: called with each new piece of the text as it is generated.

        Raises:
            PromptError: the prompt cannot be used, e.g. PromptTooLong.
            NotFinite: what the model computes for it is NaN or infinite.
        """
        prompt = (
            parts_or_prompt
            if isinstance(parts_or_prompt, Prompt)
            else self.prepare(parts_or_prompt)
        )
        sequence = Sequence(prompt, params or SamplingParams(), self.tokenizer, self.max_model_len)
        began = time.perf_counter()
        media = self.encode(prompt)
        if not all(bool(rows.isfinite().all()) for rows in media):
            raise NotFinite("features of a picture")
        sequence.encode_ms = 1000 * (time.perf_counter() - began)
        self.prefill(sequence, media)
        while True:
            if on_text and (delta := sequence.take_delta()):
                on_text(delta)
            if sequence.finish_reason:
                break
            self.decode([sequence])
        sequence.generate_ms = 1000 * (time.perf_counter() - began) - sequence.encode_ms
        return sequence.completion()

    def prefill(self, sequence: Sequence, media: list[Tensor]) -> None:
        """Run a sequence's prompt and draw its first token."""
        if sequence.finish_reason:
            return
        sequence.cache = SequenceCache()
        embeds = self.splice(sequence.prompt, media)
        hidden = self.language.hidden_states(embeds, sequence.cache)
        sequence.accept(self.language.logits(hidden[-1], len(self.tokenizer)))

    def decode(self, sequences: list[Sequence]) -> None:
        """Draw one more token for every sequence."""
        for sequence in sequences:
            embeds = self.language.embed(sequence.token_ids[-1:])
            hidden = self.language.hidden_states(embeds, sequence.cache)
            sequence.accept(self.language.logits(hidden[-1], len(self.tokenizer)))
