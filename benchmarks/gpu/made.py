"""Models of the true shapes with random weights, made on the card in seconds."""

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from nvila_core.checkpoint.random_checkpoint import SHAPES, Shape, language_config, write_checkpoint
from nvila_core.config import LanguageConfig, VisionConfig
from nvila_core.engine.kv_cache import KVCache
from nvila_core.models.language_model import LanguageModel
from nvila_core.models.projector import Projector, build_projector
from nvila_core.models.vision_tower import VisionTower

NAMES = {
    "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
    "num_key_value_heads", "max_position_embeddings", "rms_norm_eps", "rope_theta",
    "tie_word_embeddings",
}  # fmt: skip
BLOCK = 16
REPEATED = 2**20 + 7
"""Random numbers that are repeated."""


def filled(module: nn.Module, device: torch.device, dtype: torch.dtype) -> Any:
    """Return a module on the device with weights that keep activations in range."""
    module = module.to_empty(device=device)
    for name, parameter in module.named_parameters():
        parameter.requires_grad_(False)
        if parameter.ndim == 1:
            parameter.data = torch.full_like(parameter, float(not name.endswith("bias")))
        else:
            fill_noise(parameter.data)
            parameter.data.mul_(parameter[0].numel() ** -0.5)
        parameter.data = parameter.data.to(dtype)
    return module.eval()


def fill_noise(tensor: torch.Tensor) -> None:
    """Fill a tensor with normal noise; on a CPU, where drawing is slow, it repeats itself."""
    if tensor.device.type != "cpu":
        tensor.normal_()
        return
    noise, flat = torch.randn(min(REPEATED, tensor.numel())), tensor.view(-1)
    for part in flat.split(len(noise)):
        part.copy_(noise[: len(part)])


def language(shape: Shape, device: torch.device, dtype: torch.dtype) -> LanguageModel:
    """Return a language model."""
    config = LanguageConfig(**{k: v for k, v in language_config(shape).items() if k in NAMES})
    with torch.device("meta"):
        model = LanguageModel(config)
    frequencies = model.model.rotary_emb.inv_freq.clone()
    model = cast(LanguageModel, filled(model, device, dtype))
    model.model.rotary_emb.inv_freq = frequencies.to(device)
    return model


def tower(shape: Shape, device: torch.device, dtype: torch.dtype) -> VisionTower:
    """Return a vision tower."""
    config = VisionConfig(
        shape.vision_hidden,
        shape.vision_inner,
        shape.vision_layers,
        shape.vision_heads,
        shape.image,
        shape.patch,
        shape.vision_layers - 1,
    )
    with torch.device("meta"):
        model = VisionTower(config)
    return cast(VisionTower, filled(model, device, dtype))


def projector(shape: Shape, device: torch.device, dtype: torch.dtype) -> Projector:
    """Return a projector."""
    with torch.device("meta"):
        model = build_projector(shape.projector, shape.vision_hidden, shape.hidden)
    return cast(Projector, filled(model, device, dtype))


def whole(shape: Shape, device: torch.device, dtype: torch.dtype) -> Any:
    """Return an `NVILA`: tokenizer and settings of a tiny checkpoint, and networks made here."""
    from nvila_core import NVILA

    with tempfile.TemporaryDirectory() as folder:
        small = Shape(image=shape.image, patch=shape.patch, context=shape.context)
        tiny = NVILA.from_pretrained(write_checkpoint(Path(folder) / "tiny", small))
    model, vision = language(shape, device, dtype), tower(shape, device, dtype)
    known = len(tiny.tokenizer)
    head = model.lm_head
    for table in (model.embedding_table, *([] if head is None else [head.weight])):
        table.data[known:] = 0  # their tokens have no text
    size = tiny.config.vision
    config = replace(
        tiny.config,
        llm=model.config,
        vision=replace(size, hidden_size=shape.vision_hidden, num_heads=shape.vision_heads),
    )
    return NVILA(
        config, tiny.tokenizer, vision, projector(shape, device, dtype), model, name="random"
    )


def cache(shape: Shape, positions: int, device: torch.device, dtype: torch.dtype) -> KVCache:
    """Return a cache with noise in it."""
    made = KVCache(
        num_layers=shape.layers,
        num_kv_heads=shape.kv_heads,
        head_dim=shape.hidden // shape.heads,
        num_blocks=-(-positions // BLOCK),
        block_size=BLOCK,
        dtype=dtype,
        device=device,
    )
    for part in (*made.keys, *made.values):
        part.normal_()
    return made


__all__ = ["SHAPES", "Shape", "cache", "language", "projector", "tower", "whole"]
