"""Decoder layers of small models on a CPU: the same numbers in fewer PyTorch calls.

In a step of few rows of the demo's model the products take less time than the calls around them: an
operation costs about a microsecond or two, and so does the call of a module, or reading one of its
attributes. So such a layer keeps its weights beside it, adds the residual within the product, and
calls no module.
"""

from typing import cast

import torch
from torch import Tensor, nn

from nvila_core.models.activations import Activation
from nvila_core.models.attention import AttentionBackend
from nvila_core.models.packed_linear import TransposedLinear
from nvila_core.models.qwen2 import DecoderLayer, Qwen2Decoder, RMSNorm
from nvila_core.models.rotation import Rotation


class ScaledNorm:
    """What `RMSNorm` computes, of [N, size], as division by the length of each row."""

    def __init__(self, norm: RMSNorm) -> None:
        size = norm.weight.numel()
        self.weight = norm.weight.detach() * size**0.5
        self.shortest = torch.tensor((size * norm.eps) ** 0.5, dtype=norm.weight.dtype)

    def __call__(self, x: Tensor) -> Tensor:
        """Return the norm of x, scaled."""
        length = torch.linalg.vector_norm(x, 2, -1, True).hypot_(self.shortest)
        return torch.div(x, length).mul_(self.weight)


class SmallDecoderLayer(nn.Module):
    """Replaces a `DecoderLayer` whose products are all by `TransposedLinear`.

    It returns sums, so no residual is left to be added.

    Args:
        layer: holds the weights.
    """

    def __init__(self, layer: DecoderLayer) -> None:
        super().__init__()
        self.layer = layer
        attention, mlp = layer.self_attn, layer.mlp
        qkv, output, gate_up, down = cast(list[TransposedLinear], products(layer))
        assert qkv.bias is not None
        self._qkv: tuple[Tensor, Tensor] = qkv.bias, qkv.weight
        self._output, self._gate_up, self._down = (
            (linear.weight,) for linear in (output, gate_up, down)
        )
        self._norms = ScaledNorm(layer.input_layernorm), ScaledNorm(layer.post_attention_layernorm)
        self._index, self._heads = attention.layer, attention.heads
        self._head_dim, self._scale = attention.head_dim, attention.scale
        self._activation: Activation = mlp.activation

    def attend(
        self, x: Tensor, residual: Tensor | None, rotation: Rotation, backend: AttentionBackend
    ) -> tuple[Tensor, None]:
        """Return the sum after attention [N, hidden]; see `DecoderLayer.attend`."""
        total = x if residual is None else x + residual
        bias, weight = self._qkv
        qkv = torch.addmm(bias, self._norms[0](total), weight).view(len(x), -1, self._head_dim)
        attended = backend.attend(self._index, qkv, self._heads, rotation, self._scale)
        return torch.addmm(total, cast(Tensor, attended).flatten(1), *self._output), None

    def feed_forward(self, x: Tensor, residual: Tensor | None) -> tuple[Tensor, None]:
        """Return the sum after the feed-forward network; see `DecoderLayer.feed_forward`."""
        total = x if residual is None else x + residual
        gate, up = self._norms[1](total).mm(*self._gate_up).chunk(2, 1)
        return torch.addmm(total, self._activation(gate).mul_(up), *self._down), None

    def forward(
        self, x: Tensor, residual: Tensor | None, rotation: Rotation, backend: AttentionBackend
    ) -> tuple[Tensor, None]:
        """Return the sum after the layer; see `DecoderLayer.forward`."""
        return self.feed_forward(*self.attend(x, residual, rotation, backend))


def products(layer: DecoderLayer) -> list[nn.Module | None]:
    """Return the products of a layer whose projections are merged."""
    attention, mlp = layer.self_attn, layer.mlp
    return [attention.qkv_proj, attention.o_proj, mlp.gate_up_proj, mlp.down_proj]


def replace_small_layers(decoder: Qwen2Decoder) -> int:
    """Replace the layers that a `SmallDecoderLayer` can stand for; return their number."""
    replaced = 0
    for index, layer in enumerate(decoder.layers):
        if isinstance(layer, DecoderLayer) and all(
            isinstance(product, TransposedLinear) for product in products(layer)
        ):
            decoder.layers[index] = SmallDecoderLayer(layer)
            replaced += 1
    return replaced
