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
from nvila_core.models.fp8_rows import RowsFP8
from nvila_core.models.fused import add_rms_norm, gated
from nvila_core.models.quantize import reads_fp8
from nvila_core.models.rotation import RotaryEmbedding, Rotation


class RMSNorm(nn.Module):
    """Root mean square normalisation of the last dimension (arXiv:1910.07467), in float32."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(
        self, x: Tensor, residual: Tensor | None = None, fp8: bool = False
    ) -> tuple[Tensor | RowsFP8, Tensor]:
        """Return the norm of x + residual [N, size], scaled, and that sum, both in x's dtype.

        With `fp8` the product that follows takes the norm in FP8 as well.
        """
        return add_rms_norm(x, residual, self.weight, self.eps, fp8)


class DecoderAttention(nn.Module):
    """Self-attention with grouped queries: several query heads share a key and value head.

    `merge_projections` replaces the three projections by `qkv_proj`.
    """

    qkv_proj: nn.Module | None
    q_proj: nn.Module | None
    k_proj: nn.Module | None
    v_proj: nn.Module | None

    def __init__(self, config: LanguageConfig, layer: int) -> None:
        super().__init__()
        hidden, size = config.hidden_size, config.head_dim
        self.heads, self.kv_heads = config.num_attention_heads, config.num_key_value_heads
        self.layer, self.head_dim, self.scale = layer, size, size**-0.5
        self.qkv_proj = None
        self.q_proj = nn.Linear(hidden, self.heads * size)
        self.k_proj = nn.Linear(hidden, self.kv_heads * size)
        self.v_proj = nn.Linear(hidden, self.kv_heads * size)
        self.o_proj = nn.Linear(self.heads * size, hidden, bias=False)

    @property
    def reads_fp8(self) -> bool:
        """Whether `forward` takes rows in FP8."""
        if (merged := self.qkv_proj) is not None:
            return reads_fp8(merged)
        return reads_fp8(self.q_proj, self.k_proj, self.v_proj)

    def project(self, x: Tensor | RowsFP8) -> Tensor:
        """Return queries, keys and values [N, heads + 2 * kv heads, head size] of N rows."""
        if (merged := self.qkv_proj) is not None:
            qkv = merged(x)
        else:
            projections = cast(tuple[nn.Module, ...], (self.q_proj, self.k_proj, self.v_proj))
            qkv = torch.cat([one(x) for one in projections], -1)
        out: Tensor = qkv.view(len(qkv), -1, self.head_dim)
        return out

    def forward(self, x: Tensor | RowsFP8, rotation: Rotation, backend: AttentionBackend) -> Tensor:
        """Return the attention output [N, hidden] of rows [N, hidden]."""
        output = self.o_proj
        attended = backend.attend(
            self.layer, self.project(x), self.heads, rotation, self.scale, reads_fp8(output)
        )
        if isinstance(attended, Tensor):
            attended = attended.flatten(1)
        out: Tensor = output(attended)
        return out


class GatedFeedForward(nn.Module):
    """Gated feed-forward network: [N, hidden] to [N, hidden].

    `merge_projections` replaces `gate_proj` and `up_proj` by `gate_up_proj`.
    """

    gate_up_proj: nn.Module | None
    gate_proj: nn.Module | None
    up_proj: nn.Module | None

    def __init__(self, config: LanguageConfig) -> None:
        super().__init__()
        hidden, inner = config.hidden_size, config.intermediate_size
        self.gate_up_proj = None
        self.gate_proj = nn.Linear(hidden, inner, bias=False)
        self.up_proj = nn.Linear(hidden, inner, bias=False)
        self.down_proj = nn.Linear(inner, hidden, bias=False)
        self.activation = activation_function(config.hidden_act)

    @property
    def reads_fp8(self) -> bool:
        """Whether `forward` takes rows in FP8."""
        if (merged := self.gate_up_proj) is not None:
            return reads_fp8(merged)
        return reads_fp8(self.gate_proj, self.up_proj)

    def forward(self, x: Tensor | RowsFP8) -> Tensor:
        """Return down(activation(gate(x)) * up(x))."""
        down = self.down_proj
        if (gate_up := self.gate_up_proj) is not None:
            inner = gated(gate_up(x), self.activation, reads_fp8(down))
        else:
            gate, up = cast(tuple[nn.Module, nn.Module], (self.gate_proj, self.up_proj))
            inner = self.activation(gate(x)) * up(x)
        out: Tensor = down(inner)
        return out


class DecoderLayer(nn.Module):
    """One layer: attention and feed-forward, each after a norm and around a residual.

    What a part adds to the residual is added by the norm that follows, so that both take one pass.
    """

    def __init__(self, config: LanguageConfig, layer: int) -> None:
        super().__init__()
        self.self_attn = DecoderAttention(config, layer)
        self.mlp = GatedFeedForward(config)
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)

    def attend(
        self, x: Tensor, residual: Tensor | None, rotation: Rotation, backend: AttentionBackend
    ) -> tuple[Tensor, Tensor]:
        """Return what attention adds to the residual, and the residual before it, [N, hidden]."""
        attention = self.self_attn
        normed, residual = self.input_layernorm(x, residual, attention.reads_fp8)
        return attention(normed, rotation, backend), residual

    def feed_forward(self, x: Tensor, residual: Tensor) -> tuple[Tensor, Tensor]:
        """Return what the feed-forward network adds, and the residual before it, [N, hidden]."""
        mlp = self.mlp
        normed, residual = self.post_attention_layernorm(x, residual, mlp.reads_fp8)
        return mlp(normed), residual

    def forward(
        self, x: Tensor, residual: Tensor | None, rotation: Rotation, backend: AttentionBackend
    ) -> tuple[Tensor, Tensor]:
        """Return what the layer adds last, and the residual before it, [N, hidden].

        Args:
            x: [N, hidden], what the layer before has added last, or the embeddings.
            residual: [N, hidden], the residual before it; None in the first layer.
            rotation: of the rows.
            backend: computes attention.
        """
        return self.feed_forward(*self.attend(x, residual, rotation, backend))


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
            positions: [N], the position of each row in its sequence.
            backend: computes attention; holds the keys and values of earlier positions.
            rows: [M], the rows whose hidden states are needed, ascending; None: all.

        Returns:
            Final hidden states [M, hidden]. The last layer's feed-forward part is not computed for
            other rows.
        """
        with torch.cuda.device_of(embeds):  # Triton launches on the current device
            return self._run(embeds, positions, backend, rows)

    def _run(
        self, embeds: Tensor, positions: Tensor, backend: AttentionBackend, rows: Tensor | None
    ) -> Tensor:
        rotation = self.rotary_emb(positions, embeds.dtype)
        hidden, residual = embeds, None
        *layers, last = cast(Iterable[DecoderLayer], self.layers)
        for layer in layers:
            hidden, residual = layer(hidden, residual, rotation, backend)
        hidden, residual = last.attend(hidden, residual, rotation, backend)
        if rows is not None and len(rows) < len(hidden):
            hidden = hidden.index_select(0, rows)
            residual = None if residual is None else residual.index_select(0, rows)
        if not len(hidden):
            return hidden
        hidden, residual = last.feed_forward(hidden, residual)
        out: Tensor = self.norm(hidden, residual)[0]
        return out
