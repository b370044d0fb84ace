"""Configuration of the demo checkpoint: sizes of the model, and hyperparameters of the training."""

from dataclasses import dataclass


@dataclass(frozen=True)
class ModelShape:
    """Sizes of the three parts of the model.

    `mm_vision_select_layer` is -2, so the last vision layer is never used.
    """

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
        """LLM tokens of one tile, without the newline after it."""
        side = -(-(self.tile // self.patch) // 3)
        return side * side


@dataclass(frozen=True)
class TrainingConfig:
    """Hyperparameters of the training; the defaults suit two CPU cores.

    The README of `nvila_core/demo` has those of the shipped checkpoint's last run, on a GPU.
    """

    seed: int = 20261122
    muon_lr: float = 0.006
    adam_lr: float = 1.5e-3
    weight_decay: float = 0.01
    ema: float = 0.99
    see_tiles: int = 96
    """Scenes per step of the first stage, which trains the tower and the projector."""
    watch_clips: int = 48
    """Clips per step of the second stage, which teaches motion to the lower half of the LLM."""
    clips: int = 24
    """Clips per step of the last stage, before `batch_scale`."""
    stills: int = 4
    """Tiled stills per step of the last stage, before `batch_scale`."""
    batch_scale: int = 1
    """Factor on the number of visuals per step of the last stage: a GPU needs larger batches."""
    questions: int = 5
    """Questions about each clip or still; they do not attend to each other."""
    auxiliary: float = 0.4
    """Weight of the tower's auxiliary loss at the start of the last stage; it decays to zero."""
    motion: float = 1.5
    """Weight of the LLM's auxiliary loss at the start of the last stage; it decays to zero."""
    fade: float = 0.9
    """Share of the last stage after which the auxiliary losses are zero."""
    frozen: float = 0.8
    """Share of the last stage in which the tower is frozen, so that its features can be cached."""
    head_steps: int = 200
    """Steps after a start from a checkpoint in which the auxiliary loss trains its head alone."""
    fresh: float = 0.6
    """Share of newly rendered visuals in a batch of the last stage."""
    token_noise: float = 0.3
    """Noise on the visual tokens of the frozen tower (whose size is 2.5), against overfitting."""
    tower_share: float = 0.4
    """Learning rate of the tower and the projector in the last stage, relative to the LLM's."""
    workers: int = 1
    """Processes that render batches."""
    save_minutes: float = 8.0
    """Time between two saves of the training state."""


SHAPE = ModelShape()
TRAINING = TrainingConfig()
