"""A checkpoint's configuration as dataclasses; `checkpoint.config_reader` fills them."""

import re
from dataclasses import dataclass, field

from nvila_core.media.preprocess import Processor
from nvila_core.resolution.grids import Grid
from nvila_core.resolution.policy import TilingConfig

MAX_FRAMES = 4096
"""Frames of one video in a prompt."""
DOWNSAMPLING = {"mlp_downsample": 2, "mlp_downsample_2x2_fix": 2, "mlp_downsample_3x3_fix": 3}
"""Projectors that merge k x k patches into one token: `mm_projector_type` to k."""
MLP_PROJECTOR = re.compile(r"mlp([1-9])x_gelu")


@dataclass(frozen=True)
class EncoderConfig:
    """How the features of one image or video become LLM positions.

    `pool_sizes` is empty for the Basic encoders, else TSP's list of (frames, rows, columns).
    """

    start_tokens: str | None = None
    end_tokens: str | None = "\n"
    sep_tokens: str | None = None
    pool_sizes: tuple[tuple[int, int, int], ...] = ()


@dataclass(frozen=True)
class VisionConfig:
    """Configuration of the SigLIP vision tower.

    Only the first `layers_run` of its `num_layers` layers are loaded and computed.
    """

    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    image_size: int
    patch_size: int
    layers_run: int
    hidden_act: str = "gelu_pytorch_tanh"
    layer_norm_eps: float = 1e-6

    @property
    def grid(self) -> int:
        """Patches along one side of a tile."""
        return self.image_size // self.patch_size


@dataclass(frozen=True)
class LanguageConfig:
    """Configuration of the Qwen2 language model, with the field names of its `config.json`.

    Positions are divided by `rope_factor` (linear scaling of the rotary embedding).
    """

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    max_position_embeddings: int
    hidden_act: str = "silu"
    rms_norm_eps: float = 1e-6
    rope_theta: float = 10000.0
    rope_factor: float = 1.0
    tie_word_embeddings: bool = False

    @property
    def head_dim(self) -> int:
        """Width of one head."""
        return self.hidden_size // self.num_attention_heads


@dataclass(frozen=True)
class ModelConfig:
    """Everything that a checkpoint holds except tokenizer and weights.

    `tile_grids` is an extension of this project: the (columns, rows) that a checkpoint was trained
    on besides a single tile. It is empty where any grid works, as in the published checkpoints.
    """

    vision: VisionConfig
    processor: Processor
    llm: LanguageConfig
    max_model_len: int
    projector_type: str
    image_aspect_ratio: str = "dynamic"
    min_tiles: int = 1
    max_tiles: int = 12
    video_max_tiles: int = 1
    num_video_frames: int = 8
    fps: float = 0.0
    s2_scales: tuple[int, ...] = ()
    s2_resize_to: int = 0
    image_encoder: EncoderConfig = field(default_factory=EncoderConfig)
    video_encoder: EncoderConfig = field(default_factory=EncoderConfig)
    chat_template: str | None = None
    tile_grids: tuple[Grid, ...] = ()

    @property
    def tiles_frames(self) -> bool:
        """Whether each frame can be tiled on its own.

        False with dynamic S2 and with a video encoder that pools frames.
        """
        return self.image_aspect_ratio == "dynamic" and not self.video_encoder.pool_sizes

    @property
    def tiling(self) -> TilingConfig:
        """The model's tile parameters, for a resolution policy."""
        return TilingConfig(
            self.processor.size,
            self.tile_tokens,
            self.min_tiles,
            self.max_tiles,
            self.tile_grids,
        )

    @property
    def tile_side(self) -> int:
        """LLM tokens along one side of a tile: 11 for NVILA-Lite."""
        return tokens_per_side(self.projector_type, self.vision.grid)

    @property
    def tile_tokens(self) -> int:
        """LLM tokens of one tile: 121 for NVILA-Lite."""
        return self.tile_side**2

    @property
    def projector_input(self) -> int:
        """Input channels of the projector: the tower's width times the number of S2 scales."""
        return self.vision.hidden_size * max(1, len(self.s2_scales))

    @property
    def num_layers(self) -> int:
        """Layers of the language model."""
        return self.llm.num_hidden_layers

    @property
    def num_heads(self) -> int:
        """Query heads of each layer of the language model."""
        return self.llm.num_attention_heads

    @property
    def num_kv_heads(self) -> int:
        """Key and value heads of each layer of the language model."""
        return self.llm.num_key_value_heads

    @property
    def head_dim(self) -> int:
        """Width of one head of the language model."""
        return self.llm.head_dim

    @property
    def kv_size(self) -> int:
        """Numbers that the key-value cache holds for one position, over all layers."""
        return 2 * self.num_layers * self.num_kv_heads * self.head_dim


def is_known_projector(kind: str) -> bool:
    """Return whether `models.projector.build_projector` can build a projector of type `kind`."""
    return (
        kind in DOWNSAMPLING
        or kind in ("identity", "linear")
        or MLP_PROJECTOR.fullmatch(kind) is not None
    )


def tokens_per_side(kind: str, grid: int) -> int:
    """Return the tokens along one side that projector `kind` makes of `grid` x `grid` patches."""
    return -(-grid // DOWNSAMPLING.get(kind, 1))


def output_block(config: ModelConfig, block: Grid) -> Grid:
    """Return the (rows, columns) of blocks in which the merged S2 map is projected."""
    if config.s2_resize_to in (-1, len(config.s2_scales) - 1):
        return block
    k = config.s2_scales[config.s2_resize_to] // config.s2_scales[0]
    return (k, k)
