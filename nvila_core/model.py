"""NVILA and NVILA-Lite: prepare a prompt, embed it, and generate from it."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .checkpoint import Checkpoint
from .completion import Completion
from .config import ModelConfig
from .encoders import project, video_positions
from .errors import NVILAError
from .hub import find_checkpoint
from .language import LanguageModel
from .projector import Projector
from .prompt import Media, Options, Prompt, PromptBuilder, VideoAs
from .sampling import SamplingParams
from .sequence import Sequence
from .tokens import Tokenizer
from .vision import VisionTower

DTYPES = {
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
}


class NVILA:
    """A loaded model. Preparing prompts is thread-safe; running the model is for one thread at a
    time.

    Example:
        model = NVILA.from_pretrained("Efficient-Large-Model/NVILA-Lite-2B", device="auto",
        dtype="auto") answer = model.generate([Image.open("photo.jpg"), "What is this?"])
        print(answer.text)
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

    @classmethod
    def from_pretrained(
        cls,
        path_or_hub_id: str | Path,
        device: str | torch.device = "cpu",
        dtype: str | torch.dtype = "float32",
        revision: str | None = None,
    ) -> "NVILA":
        """Load a checkpoint in any published layout.

        Args:
            path_or_hub_id: a folder, or a repository of the Hugging Face hub, downloaded when
                needed.
            device: "cpu", "cuda", "cuda:1", or "auto": a GPU when there is one.
            dtype: "float32", "float16", "bfloat16", or "auto": float32 on a CPU, bfloat16 on a GPU.
            revision: branch, tag or commit on the hub.

        Raises:
            CheckpointError: something is missing, malformed or contradictory; says which file and
                field.
            NVILAError: the device or dtype is not to be had here.
        """
        place = choose_device(device)
        kind = choose_dtype(dtype, place)
        checkpoint = Checkpoint.open(find_checkpoint(path_or_hub_id, revision))
        vision, projector, language = checkpoint.load(kind, place)
        name = Path(path_or_hub_id).name or "nvila"
        return cls(checkpoint.config, checkpoint.tokenizer, vision, projector, language, name)

    @property
    def device(self) -> torch.device:
        """Where the model lives."""
        return self.language.device

    @property
    def dtype(self) -> torch.dtype:
        """What the model computes in."""
        return self.language.dtype

    @property
    def context(self) -> int:
        """Positions that prompt and answer may take together."""
        return self.config.context

    def prepare(
        self,
        parts: Any,
        num_video_frames: int | None = None,
        video_max_tiles: int | None = None,
        video_as: VideoAs | None = None,
    ) -> Prompt:
        """Turn parts into ids and pixels, on the CPU and without the model.

        Args:
            parts: a list of str, PIL images, uint8 arrays [height, width, 3] and `Video`; or a
                conversation, a list of {"role": "system" | "user" | "assistant", "content": parts}.
            num_video_frames: frames looked at in each video; default: the checkpoint's (8).
            video_max_tiles: most tiles of a frame, with `video_as="video"`; default: the
                checkpoint's (1).
            video_as: "image" writes an `<image>` token for each frame, "video" one `<vila/video>`.
                Default: "image" for a Basic video encoder, "video" for one that pools (TSP).

        Raises:
            PromptTooLong: more positions than the context; nothing has been computed.
            PromptError: nothing to answer, an unknown role, or a part of another type.
        """
        config = self.config
        options = Options(
            config.num_video_frames if num_video_frames is None else num_video_frames,
            config.video_max_tiles if video_max_tiles is None else video_max_tiles,
            video_as or ("video" if config.video_encoder.pool_sizes else "image"),
            config.fps,
        )
        return PromptBuilder(config, self.tokenizer, options).build(parts)

    def encode(self, prompt: Prompt) -> list[Tensor]:
        """Tower and projector: [positions, D] for each media token of the prompt."""
        return self.media_positions(self.vision(prompt.pixel_values), prompt.media)

    @torch.inference_mode()
    def media_positions(self, features: Tensor, media: list[Media]) -> list[Tensor]:
        """[positions, D] for each media token, from the tower's features [tiles, N, C]."""
        config = self.config
        encoders = (config.image_encoder, config.video_encoder)
        texts = {t for e in encoders for t in (e.start_tokens, e.end_tokens, e.sep_tokens) if t}
        rows = {text: self.language.embed(self.tokenizer.encode(text)) for text in texts}
        projected = project(self.projector, features, media, config)
        return [
            video_positions(
                p, config.image_encoder if item.kind == "image" else config.video_encoder, rows
            )
            for item, p in zip(media, projected, strict=True)
        ]

    @torch.inference_mode()
    def splice(self, prompt: Prompt, media: list[Tensor]) -> Tensor:
        """[positions, D]: the embedded prompt with every media token replaced by its positions."""
        embeds = self.language.embed(prompt.token_ids)
        pieces, start, waiting = [], 0, iter(media)
        for place, token in enumerate(prompt.token_ids):
            if token in (self.tokenizer.image_id, self.tokenizer.video_id):
                pieces += [embeds[start:place], next(waiting)]
                start = place + 1
        return torch.cat([*pieces, embeds[start:]])

    def embed(self, prompt: Prompt) -> Tensor:
        """[positions, hidden]: what the language model is given."""
        return self.splice(prompt, self.encode(prompt))

    def logits(self, prompt: Prompt) -> Tensor:
        """float32 [positions, vocab]: the scores of the token after each position.

        `vocab` is the tokenizer's length; tokens without a row in the checkpoint have -inf.
        """
        return self.language.head(self.language.hidden(self.embed(prompt)), len(self.tokenizer))

    def generate(
        self,
        parts_or_prompt: Any,
        params: SamplingParams | None = None,
        on_text: Callable[[str], None] | None = None,
    ) -> Completion:
        """Answer one prompt.

        Args:
            parts_or_prompt: a prepared `Prompt`, or what `prepare` takes.
            params: default: greedy, at most 512 tokens.
            on_text: called with each new piece of the text as it is generated.
        """
        prompt = (
            parts_or_prompt
            if isinstance(parts_or_prompt, Prompt)
            else self.prepare(parts_or_prompt)
        )
        sequence = Sequence(prompt, params or SamplingParams(), self.tokenizer, self.context)
        began = time.perf_counter()
        media = self.encode(prompt)
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
        sequence.cache = self.language.new_cache()
        hidden = self.language.hidden(self.splice(sequence.prompt, media), sequence.cache)
        sequence.accept(self.language.head(hidden[-1], len(self.tokenizer)))

    def decode(self, sequences: list[Sequence]) -> None:
        """Draw one more token for every sequence."""
        for sequence in sequences:
            hidden = self.language.hidden(
                self.language.embed(sequence.token_ids[-1:]), sequence.cache
            )
            sequence.accept(self.language.head(hidden[-1], len(self.tokenizer)))


def choose_device(device: str | torch.device) -> torch.device:
    """The device that is asked for.

    Raises:
        NVILAError: it is unknown or not there.
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        place = torch.device(device)
    except RuntimeError:
        raise NVILAError(
            f"The device {device!r} is unknown; use 'auto', 'cpu' or 'cuda'."
        ) from None
    if place.type == "cuda" and not torch.cuda.is_available():
        raise NVILAError("No CUDA device is here; use device 'cpu' or 'auto'.")
    return place


def choose_dtype(dtype: str | torch.dtype, device: torch.device) -> torch.dtype:
    """The dtype that is asked for.

    Raises:
        NVILAError: it is not one the model can compute in.
    """
    if dtype == "auto":
        return torch.float32 if device.type == "cpu" else torch.bfloat16
    kind = DTYPES.get(dtype) if isinstance(dtype, str) else dtype
    if kind not in DTYPES.values():
        raise NVILAError(
            f"The dtype {dtype!r} is not supported; use 'auto' or one of {', '.join(DTYPES)}."
        )
    assert kind is not None
    return kind
