"""The SigLIP vision tower (arXiv:2303.15343), up to the layer whose output the projector takes.

Parameter names are those of the published checkpoints. See `qwen2` for why these are not
transformers' modules.
"""

from contextlib import AbstractContextManager, nullcontext
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from nvila_core.config import VisionConfig
from nvila_core.models.activations import activation_function
from nvila_core.models.quantize import after_activation

MAX_TILES_PER_PASS = 16
"""Tiles in one pass through the tower, which bounds its memory."""

ATTENTION_ORDER = [
    SDPBackend.CUDNN_ATTENTION,
    SDPBackend.FLASH_ATTENTION,
    SDPBackend.EFFICIENT_ATTENTION,
    SDPBackend.MATH,
]
"""PyTorch's kernels for attention on a GPU; the first that can compute it does. By itself PyTorch
tries cuDNN's last but one, with which the tower encoded 6 % more tiles than with the next."""


def attention_order(device: torch.device) -> AbstractContextManager[None]:
    """Return a context in which attention on a device is computed by `ATTENTION_ORDER`."""
    if device.type != "cuda":
        return nullcontext()
    return sdpa_kernel(ATTENTION_ORDER, set_priority=True)


class Embeddings(nn.Module):
    """Pixels [tiles, 3, S, S] to patches [tiles, patches, C], with their position embeddings."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        patch, width = config.patch_size, config.hidden_size
        self.patch_embedding = nn.Conv2d(3, width, kernel_size=patch, stride=patch)
        self.position_embedding = nn.Embedding.from_pretrained(torch.empty(config.grid**2, width))

    def forward(self, pixels: Tensor) -> Tensor:
        """Return the embedded patches."""
        patches: Tensor = self.patch_embedding(pixels)
        out: Tensor = patches.flatten(2).transpose(1, 2) + self.position_embedding.weight
        return out


class EncoderAttention(nn.Module):
    """Self-attention over all patches of a tile.

    `merge_tower` replaces the three projections by `qkv_proj`.
    """

    qkv_proj: nn.Module | None
    q_proj: nn.Module | None
    k_proj: nn.Module | None
    v_proj: nn.Module | None

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        width = config.hidden_size
        self.num_heads = config.num_heads
        self.qkv_proj = None
        self.k_proj = nn.Linear(width, width)
        self.v_proj = nn.Linear(width, width)
        self.q_proj = nn.Linear(width, width)
        self.out_proj = nn.Linear(width, width)

    def project(self, x: Tensor) -> tuple[Tensor, ...]:
        """Return queries, keys and values [tiles, patches, C]."""
        if self.qkv_proj is not None:
            merged: Tensor = self.qkv_proj(x)
            return merged.chunk(3, dim=-1)
        projections = cast(tuple[nn.Module, ...], (self.q_proj, self.k_proj, self.v_proj))
        return tuple(one(x) for one in projections)

    def forward(self, x: Tensor) -> Tensor:
        """Return the attention output [tiles, patches, C] of x [tiles, patches, C]."""
        query, key, value = (
            one.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for one in self.project(x)
        )
        attended = F.scaled_dot_product_attention(query, key, value)
        out: Tensor = self.out_proj(attended.transpose(1, 2).flatten(2))
        return out


class FeedForward(nn.Module):
    """Feed-forward network: [..., C] to [..., C]."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.fc1 = nn.Linear(config.hidden_size, config.intermediate_size)
        self.fc2 = nn.Linear(config.intermediate_size, config.hidden_size)
        self.activation = activation_function(config.hidden_act)

    def forward(self, x: Tensor) -> Tensor:
        """Return fc2(activation(fc1(x)))."""
        return after_activation(self.fc2, self.fc1(x), self.activation)


class EncoderLayer(nn.Module):
    """One layer: attention and feed-forward, each after a norm and around a residual."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        width, eps = config.hidden_size, config.layer_norm_eps
        self.layer_norm1 = nn.LayerNorm(width, eps=eps)
        self.self_attn = EncoderAttention(config)
        self.layer_norm2 = nn.LayerNorm(width, eps=eps)
        self.mlp = FeedForward(config)

    def forward(self, x: Tensor) -> Tensor:
        """Return the layer's output [tiles, patches, C] for x [tiles, patches, C]."""
        x = x + self.self_attn(self.layer_norm1(x))
        out: Tensor = x + self.mlp(self.layer_norm2(x))
        return out


class Encoder(nn.Module):
    """The layers that are run."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.layers = nn.ModuleList(EncoderLayer(config) for _ in range(config.layers_run))

    def forward(self, x: Tensor) -> Tensor:
        """Return the output of the last layer [tiles, patches, C]."""
        for layer in self.layers:
            x = layer(x)
        return x


class VisionTower(nn.Module):
    """Pixels [tiles, 3, S, S] to features [tiles, patches, C].

    Only the layers below the selected one exist: hidden_states[-2] needs neither the last layer nor
    the post-norm, so they are neither computed nor loaded.
    """

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.embeddings = Embeddings(config)
        self.encoder = Encoder(config)

    @property
    def positions(self) -> Tensor:
        """The position embeddings [patches, C]; the tower computes in their dtype and device."""
        weight: Tensor = self.embeddings.position_embedding.weight
        return weight

    @torch.inference_mode()
    def forward(self, pixels: Tensor) -> Tensor:
        """Return features [tiles, patches, C] of float32 pixels [tiles, 3, S, S]."""
        if not len(pixels):
            return self.positions.new_empty((0, *self.positions.shape))
        features = []
        with (
            torch.cuda.device_of(self.positions),  # Triton launches on the current device
            attention_order(self.positions.device),
        ):
            for part in pixels.split(MAX_TILES_PER_PASS):
                hidden = self.embeddings(part.to(self.positions.device, self.positions.dtype))
                features.append(self.encoder(hidden))
            return torch.cat(features)
