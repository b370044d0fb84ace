"""The decoder of Qwen2 (arXiv:2407.10671), with the parameter names of the published checkpoints.

transformers has the same modules. These compute the same numbers, call the attention backend
directly, and do not take the three seconds that importing transformers' models takes.
"""

from collections.abc import Iterable
from typing import cast

import torch
from torch import Tensor, nn

from nvila_core.config import LanguageConfig
from nvila_core.models.activations import activation_function
from nvila_core.models.attention import AttentionBackend

Rotation = tuple[Tensor, Tensor]
"""Cosines and sines [N, head size] of N positions."""


class RMSNorm(nn.Module):
    """Root mean square normalisation of the last dimension (arXiv:1910.07467), in float32."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """Return x [..., size], normalised and scaled, in the dtype of x."""
        wide = x.float()
        wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.eps)
        return self.weight * wide.to(x.dtype)


class RotaryEmbedding(nn.Module):
    """Rotary position embedding (arXiv:2104.09864), with linear scaling of the positions."""

    inv_freq: Tensor

    def __init__(self, config: LanguageConfig) -> None:
        super().__init__()
        # On the CPU even where parameters are built on the meta device: no file holds them.
        steps = torch.arange(0, config.head_dim, 2, dtype=torch.float32, device="cpu")
        inv_freq = 1.0 / config.rope_theta ** (steps / config.head_dim) / config.rope_factor
        self.register_buffer("inv_freq", inv_freq, persistent=False)

    def forward(self, positions: Tensor, dtype: torch.dtype) -> Rotation:
        """Return cosines and sines [N, head size] in `dtype` of int64 positions [N]."""
        angles = positions[:, None].float() * self.inv_freq
        angles = torch.cat((angles, angles), dim=-1)
        return angles.cos().to(dtype), angles.sin().to(dtype)


def rotate(x: Tensor, rotation: Rotation) -> Tensor:
    """Return x [heads, N, head size] rotated by the angles of its positions."""
    cos, sin = rotation
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-second, first), dim=-1) * sin


class DecoderAttention(nn.Module):
    """Self-attention with grouped queries: several query heads share a key and value head."""

    def __init__(self, config: LanguageConfig, layer: int) -> None:
        super().__init__()
        hidden, size = config.hidden_size, config.head_dim
        self.layer, self.head_dim, self.scale = layer, size, size**-0.5
        self.q_proj = nn.Linear(hidden, config.num_attention_heads * size)
        self.k_proj = nn.Linear(hidden, config.num_key_value_heads * size)
        self.v_proj = nn.Linear(hidden, config.num_key_value_heads * size)
        self.o_proj = nn.Linear(config.num_attention_heads * size, hidden, bias=False)

    def forward(self, x: Tensor, rotation: Rotation, backend: AttentionBackend) -> Tensor:
        """Return the attention output [N, hidden] of rows [N, hidden]."""
        query, key, value = (
            projection(x).unflatten(-1, (-1, self.head_dim)).transpose(0, 1)
            for projection in (self.q_proj, self.k_proj, self.v_proj)
        )
        query, key = rotate(query, rotation), rotate(key, rotation)
        attended = backend.attend(self.layer, query, key, value, self.scale)
        out: Tensor = self.o_proj(attended.flatten(1))
        return out


class GatedFeedForward(nn.Module):
    """Gated feed-forward network: [..., hidden] to [..., hidden]."""

    def __init__(self, config: LanguageConfig) -> None:
        super().__init__()
        hidden, inner = config.hidden_size, config.intermediate_size
        self.gate_proj = nn.Linear(hidden, inner, bias=False)
        self.up_proj = nn.Linear(hidden, inner, bias=False)
        self.down_proj = nn.Linear(inner, hidden, bias=False)
        self.activation = activation_function(config.hidden_act)

    def forward(self, x: Tensor) -> Tensor:
        """Return down(activation(gate(x)) * up(x))."""
        out: Tensor = self.down_proj(self.activation(self.gate_proj(x)) * self.up_proj(x))
        return out


class DecoderLayer(nn.Module):
    """One layer: attention and feed-forward, each after a norm and around a residual."""

    def __init__(self, config: LanguageConfig, layer: int) -> None:
        super().__init__()
        self.self_attn = DecoderAttention(config, layer)
        self.mlp = GatedFeedForward(config)
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)

    def attend(self, x: Tensor, rotation: Rotation, backend: AttentionBackend) -> Tensor:
        """Return rows [N, hidden] after the attention and its residual."""
        out: Tensor = x + self.self_attn(self.input_layernorm(x), rotation, backend)
        return out

    def feed_forward(self, x: Tensor) -> Tensor:
        """Return rows [N, hidden] after the feed-forward network and its residual."""
        out: Tensor = x + self.mlp(self.post_attention_layernorm(x))
        return out

    def forward(self, x: Tensor, rotation: Rotation, backend: AttentionBackend) -> Tensor:
        """Return the layer's output [N, hidden] for rows [N, hidden]."""
        return self.feed_forward(self.attend(x, rotation, backend))


class Qwen2Decoder(nn.Module):
    """All layers, with the embedding table before them and the norm after them."""

    def __init__(self, config: LanguageConfig) -> None:
        super().__init__()
        table = torch.empty(config.vocab_size, config.hidden_size)
        self.embed_tokens = nn.Embedding.from_pretrained(table)
        self.layers = nn.ModuleList(
            DecoderLayer(config, layer) for layer in range(config.num_hidden_layers)
        )
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.rotary_emb = RotaryEmbedding(config)

    def forward(
        self,
        embeds: Tensor,
        positions: Tensor,
        backend: AttentionBackend,
        rows: Tensor | None = None,
    ) -> Tensor:
        """Run rows of any number of sequences through all layers.

        Args:
            embeds: [N, hidden], one row for each new position.
            positions: int64 [N], the position of each row in its sequence.
            backend: computes attention; holds the keys and values of earlier positions.
            rows: int64 [M], the rows whose hidden states are needed; None: all.

        Returns:
            Final hidden states [M, hidden]. The last layer's feed-forward part is not computed for
            other rows.
        """
        rotation = self.rotary_emb(positions, embeds.dtype)
        hidden = embeds
        *layers, last = cast(Iterable[DecoderLayer], self.layers)
        for layer in layers:
            hidden = layer(hidden, rotation, backend)
        hidden = last.attend(hidden, rotation, backend)
        if rows is not None:
            hidden = hidden[rows]
        if len(hidden):
            hidden = last.feed_forward(hidden)
        out: Tensor = self.norm(hidden)
        return out
