"""Configuration of the demo checkpoint: the shape of the model, the training, and the seed."""

from dataclasses import dataclass


@dataclass(frozen=True)
class ModelShape:
    """Sizes of the three parts. `mm_vision_select_layer` is -2: the last layer is never used."""

    tile: int = 84
    patch: int = 14
    vision_hidden: int = 128
    vision_intermediate: int = 320
    vision_layers: int = 5
    vision_heads: int = 4
    llm_hidden: int = 160
    llm_intermediate: int = 384
    llm_layers: int = 4
    llm_heads: int = 4
    llm_kv_heads: int = 2
    rope_theta: float = 10000.0
    max_positions: int = 4096

    @property
    def tokens_per_tile(self) -> int:
        """LLM tokens of one tile, without its newline."""
        side = -(-(self.tile // self.patch) // 3)
        return side * side


@dataclass(frozen=True)
class TrainingConfig:
    """How the shipped checkpoint was trained."""

    seed: int = 20261122
    muon_lr: float = 0.006
    adam_lr: float = 1.5e-3
    weight_decay: float = 0.01
    ema: float = 0.99
    see_tiles: int = 96
    """Scenes in a step of the first stage (tower and projector alone)."""
    watch_clips: int = 48
    """Clips in a step of the stage between, in which the lower half of the LLM learns motion."""
    clips: int = 24
    """Clips in a step of the last stage."""
    stills: int = 4
    """Tiled stills in a step of the last stage."""
    questions: int = 5
    """Questions asked of each clip or still; they do not see each other."""
    auxiliary: float = 0.4
    """Weight of the tower's auxiliary loss when the last stage begins; it fades to nothing."""
    motion: float = 1.5
    """Weight of the LLM's auxiliary loss when the last stage begins; it fades likewise."""
    fade: float = 0.9
    """Share of the last stage after which the auxiliary losses are gone."""
    frozen: float = 0.8
    """Share of the last stage in which the tower rests, and its features are kept for reuse."""
    fresh: float = 0.6
    """Share of newly rendered visuals in a batch of the last stage."""
    token_noise: float = 0.3
    """Noise on a resting tower's visual tokens (of size 2.5), against learning by heart."""
    tower_share: float = 0.4
    """Learning rate of the tower and the projector in the last stage, as a part of the LLM's."""
    workers: int = 1
    save_minutes: float = 8.0


SHAPE = ModelShape()
TRAINING = TrainingConfig()
