"""Merge the projections of a decoder layer that read the same rows: fewer, larger products."""

from typing import cast

import torch
from torch import nn

from nvila_core.models.quantize import Linear8
from nvila_core.models.qwen2 import DecoderLayer, Qwen2Decoder


def merge_projections(decoder: Qwen2Decoder) -> None:
    """Merge query, key and value, and gate and up, in every layer; in place.

    Weights in 4 bits stay separate, because their kernels reorder each.
    """
    for layer in cast(list[DecoderLayer], list(decoder.layers)):
        attention, mlp = layer.self_attn, layer.mlp
        found = merged_linear([attention.q_proj, attention.k_proj, attention.v_proj])
        if found is not None:
            attention.qkv_proj = found
            attention.q_proj = attention.k_proj = attention.v_proj = None
        found = merged_linear([mlp.gate_proj, mlp.up_proj])
        if found is not None:
            mlp.gate_up_proj = found
            mlp.gate_proj = mlp.up_proj = None


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
    if all(type(part) is Linear8 for part in parts):
        quantized = cast(list[Linear8], parts)
        codes = torch.cat([part.weight for part in quantized])
        scale = torch.cat([part.scale for part in quantized])
        biases = [part.bias for part in quantized if part.bias is not None]
        return Linear8.of(codes, scale, torch.cat(biases) if biases else None)
    return None
