"""Merge the projections of a layer that read the same rows: fewer, larger products."""

from typing import cast

import torch
from torch import nn

from nvila_core.models.quantize import Linear4, Linear8, LinearFP8
from nvila_core.models.qwen2 import DecoderLayer, Qwen2Decoder
from nvila_core.models.vision_tower import EncoderLayer, VisionTower


def merge_projections(decoder: Qwen2Decoder) -> None:
    """Merge query, key and value, and gate and up, in every layer; in place.

    Weights in 4 bits stay separate on a CPU, because its kernels reorder each.
    """
    for layer in decoder.layers:
        if not isinstance(layer, DecoderLayer):
            continue  # a `SmallDecoderLayer`, which is merged
        attention, mlp = layer.self_attn, layer.mlp
        found = merged_linear([attention.q_proj, attention.k_proj, attention.v_proj])
        if found is not None:
            attention.qkv_proj = found
            attention.q_proj = attention.k_proj = attention.v_proj = None
        found = merged_linear([mlp.gate_proj, mlp.up_proj])
        if found is not None:
            mlp.gate_up_proj = found
            mlp.gate_proj = mlp.up_proj = None


def merge_tower(tower: VisionTower) -> None:
    """Merge query, key and value in every layer of a tower on a GPU; in place.

    On a CPU, whose products gain nothing from it, the tower stays as it was loaded.
    """
    if tower.positions.device.type == "cpu":
        return
    for layer in cast(list[EncoderLayer], list(tower.encoder.layers)):
        attention = layer.self_attn
        found = merged_linear([attention.q_proj, attention.k_proj, attention.v_proj])
        if found is not None:
            attention.qkv_proj = found
            attention.q_proj = attention.k_proj = attention.v_proj = None


@torch.inference_mode()
def merged_linear(parts: list[nn.Module | None]) -> nn.Module | None:
    """Return one linear layer with the outputs of all `parts`, or None if they cannot be merged."""
    if all(type(part) is nn.Linear for part in parts):
        linears = cast(list[nn.Linear], parts)
        weight = torch.cat([part.weight for part in linears])
        biased = linears[0].bias is not None
        outputs, inputs = weight.shape
        linear = nn.Linear(inputs, outputs, biased, device="meta")
        linear.weight = nn.Parameter(weight, requires_grad=False)
        if biased:
            bias = torch.cat([part.bias for part in linears])
            linear.bias = nn.Parameter(bias, requires_grad=False)
        return linear
    if all(type(part) is Linear8 for part in parts) or all(
        type(part) is LinearFP8 for part in parts
    ):
        eight = cast(list[Linear8 | LinearFP8], parts)
        codes = torch.cat([part.weight for part in eight])
        scale = torch.cat([part.scale for part in eight])
        biases = [part.bias for part in eight]
        return type(eight[0]).of(merged_bias(biases), weight=codes, scale=scale)
    if all(type(part) is Linear4 for part in parts):
        four = cast(list[Linear4], parts)
        if four[0].weight.device.type == "cpu" or len({part.group for part in four}) > 1:
            return None
        codes = torch.cat([part.weight for part in four])
        scales = torch.cat([part.scales for part in four], dim=1)
        biases = [part.bias for part in four]
        layer = Linear4.of(merged_bias(biases), weight=codes, scales=scales)
        layer.group = four[0].group
        return layer
    return None


def merged_bias(biases: list[torch.Tensor | None]) -> torch.Tensor | None:
    """Return the biases of all parts, which have one, or None if none of them has."""
    given = [bias for bias in biases if bias is not None]
    return torch.cat(given) if given else None
