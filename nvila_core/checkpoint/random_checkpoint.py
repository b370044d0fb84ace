"""Write a randomly initialised checkpoint of any shape, in any published layout.

For tests, and to measure memory and speed at the true sizes without the published weights:

    python -m nvila_core.checkpoint.random_checkpoint OUT --shape 2b

Its answers are meaningless. Its tokenizer knows single bytes only, whatever the size of the
embedding table.
"""

import argparse
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from math import prod
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from nvila_core.checkpoint.writer import (
    Contents,
    LazyTensor,
    TokenizerFiles,
    write_flat,
    write_folders,
)
from nvila_core.models.projector import build_projector
from nvila_core.prompt.tokenizer import IMAGE_TOKEN, QWEN2_TEMPLATE, SENTINEL_TOKEN, VIDEO_TOKEN

CheckpointLayout = Literal["folders", "vila", "nvila_lite", "nvila"]
NameAndShape = tuple[str, tuple[int, ...]]
CONTROL_TOKENS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "[BOS]", "[PAD]"]
MEDIA_TOKENS = [SENTINEL_TOKEN, IMAGE_TOKEN, VIDEO_TOKEN]


@dataclass(frozen=True)
class Shape:
    """Sizes of a model; the defaults are tiny."""

    hidden: int = 48
    layers: int = 2
    heads: int = 4
    kv_heads: int = 2
    inner: int = 96
    vocab: int = 264
    tied: bool = True
    vision_hidden: int = 32
    vision_layers: int = 3
    vision_heads: int = 4
    vision_inner: int = 64
    image: int = 112
    patch: int = 14
    projector: str = "mlp_downsample_3x3_fix"
    scales: int = 1
    context: int = 4096


SIGLIP = Shape(
    vision_hidden=1152,
    vision_layers=27,
    vision_heads=16,
    vision_inner=4304,
    image=448,
    context=32768,
)
SHAPES = {
    "tiny": Shape(),
    "2b": replace(SIGLIP, hidden=1536, layers=28, heads=12, kv_heads=2, inner=8960, vocab=151936),
    "8b": replace(
        SIGLIP, hidden=3584, layers=28, heads=28, kv_heads=4, inner=18944, vocab=151648, tied=False
    ),
}


def language_tensors(shape: Shape) -> Iterator[NameAndShape]:
    """Yield names and shapes of the tensors of `llm/`."""
    d, kv = shape.hidden, shape.hidden // shape.heads * shape.kv_heads
    yield "model.embed_tokens.weight", (shape.vocab, d)
    for i in range(shape.layers):
        layer = f"model.layers.{i}"
        for name, width in (("q", d), ("k", kv), ("v", kv)):
            yield f"{layer}.self_attn.{name}_proj.weight", (width, d)
            yield f"{layer}.self_attn.{name}_proj.bias", (width,)
        yield f"{layer}.self_attn.o_proj.weight", (d, d)
        for name in ("gate", "up"):
            yield f"{layer}.mlp.{name}_proj.weight", (shape.inner, d)
        yield f"{layer}.mlp.down_proj.weight", (d, shape.inner)
        for name in ("input", "post_attention"):
            yield f"{layer}.{name}_layernorm.weight", (d,)
    yield "model.norm.weight", (d,)
    if not shape.tied:
        yield "lm_head.weight", (shape.vocab, d)


def vision_tensors(shape: Shape) -> Iterator[NameAndShape]:
    """Yield names and shapes of the tensors of `vision_tower/`."""
    c, inner = shape.vision_hidden, shape.vision_inner
    yield "vision_model.embeddings.patch_embedding.weight", (c, 3, shape.patch, shape.patch)
    yield "vision_model.embeddings.patch_embedding.bias", (c,)
    yield (
        "vision_model.embeddings.position_embedding.weight",
        ((shape.image // shape.patch) ** 2, c),
    )
    for i in range(shape.vision_layers):
        layer = f"vision_model.encoder.layers.{i}"
        linears = [(f"self_attn.{n}_proj", c, c) for n in ("q", "k", "v", "out")]
        for name, out, into in [*linears, ("mlp.fc1", inner, c), ("mlp.fc2", c, inner)]:
            yield f"{layer}.{name}.weight", (out, into)
            yield f"{layer}.{name}.bias", (out,)
        for name in ("layer_norm1", "layer_norm2"):
            yield f"{layer}.{name}.weight", (c,)
            yield f"{layer}.{name}.bias", (c,)
    yield "vision_model.post_layernorm.weight", (c,)
    yield "vision_model.post_layernorm.bias", (c,)


def projector_tensors(shape: Shape) -> Iterator[NameAndShape]:
    """Yield names and shapes of the tensors of `mm_projector/`."""
    with torch.device("meta"):
        module = build_projector(shape.projector, shape.vision_hidden * shape.scales, shape.hidden)
    for name, parameter in module.named_parameters():
        yield name, tuple(parameter.shape)


def language_config(shape: Shape) -> dict[str, Any]:
    """Return the fields of `llm/config.json`."""
    return {
        "architectures": ["Qwen2ForCausalLM"],
        "model_type": "qwen2",
        "hidden_act": "silu",
        "hidden_size": shape.hidden,
        "intermediate_size": shape.inner,
        "max_position_embeddings": shape.context,
        "num_attention_heads": shape.heads,
        "num_hidden_layers": shape.layers,
        "num_key_value_heads": shape.kv_heads,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1000000.0,
        "tie_word_embeddings": shape.tied,
        "vocab_size": shape.vocab,
    }


def vision_config(shape: Shape) -> dict[str, Any]:
    """Return the fields of `vision_tower/config.json`."""
    return {
        "architectures": ["SiglipVisionModel"],
        "model_type": "siglip_vision_model",
        "hidden_act": "gelu_pytorch_tanh",
        "hidden_size": shape.vision_hidden,
        "image_size": shape.image,
        "intermediate_size": shape.vision_inner,
        "layer_norm_eps": 1e-6,
        "num_attention_heads": shape.vision_heads,
        "num_channels": 3,
        "num_hidden_layers": shape.vision_layers,
        "patch_size": shape.patch,
        "vision_use_head": False,
    }


def model_config(shape: Shape) -> dict[str, Any]:
    """Return the fields of the top-level `config.json` that inference uses."""
    s2 = shape.scales > 1
    return {
        "image_aspect_ratio": "dynamic_s2" if s2 else "dynamic",
        "dynamic_s2": s2,
        "s2_scales": ",".join(str(shape.image * (k + 1)) for k in range(shape.scales)),
        "s2_resize_output_to_scale_idx": -1 if s2 else 0,
        "min_tiles": 1,
        "max_tiles": 12,
        "video_max_tiles": 1,
        "num_video_frames": 8,
        "fps": 0.0,
        "mm_vision_select_layer": -2,
        "mm_vision_select_feature": "cls_patch",
        "image_encoder": {"_target_": "llava.model.encoders.BasicImageEncoder"},
        "video_encoder": {"_target_": "llava.model.encoders.BasicVideoEncoder"},
        "chat_template": None,
    }


def preprocessor_config(shape: Shape) -> dict[str, Any]:
    """Return the fields of `preprocessor_config.json`."""
    return {
        "do_normalize": True,
        "do_rescale": True,
        "do_resize": True,
        "image_mean": [0.5] * 3,
        "image_std": [0.5] * 3,
        "resample": 3,
        "rescale_factor": 0.00392156862745098,
        "size": {"height": shape.image, "width": shape.image},
    }


def projector_config(shape: Shape) -> dict[str, Any]:
    """Return the fields of `mm_projector/config.json`."""
    return {"mm_projector_type": shape.projector, "model_type": "v2l_projector"}


def byte_alphabet() -> list[str]:
    """Return the printable characters that byte-level BPE has for the 256 bytes, in the order of
    GPT-2's vocabulary.
    """
    from tokenizers.pre_tokenizers import ByteLevel

    alphabet = set(ByteLevel.alphabet())
    printable = sorted(c for c in alphabet if ord(c) < 256)
    return printable + sorted(c for c in alphabet if ord(c) >= 256)


def byte_tokenizer(context: int, media_tokens: bool = True) -> TokenizerFiles:
    """Return a tokenizer without merges: one token for each byte.

    Args:
        context: `model_max_length` in positions.
        media_tokens: add `<image>` and the other media tokens.
    """
    alphabet = byte_alphabet()
    names = CONTROL_TOKENS + (MEDIA_TOKENS if media_tokens else [])
    added = {name: len(alphabet) + i for i, name in enumerate(names)}
    flags = {
        "lstrip": False,
        "normalized": False,
        "rstrip": False,
        "single_word": False,
        "special": True,
    }
    config = {
        "tokenizer_class": "Qwen2Tokenizer",
        "added_tokens_decoder": {str(i): {"content": name, **flags} for name, i in added.items()},
        "bos_token": "[BOS]",
        "eos_token": "<|im_end|>",
        "pad_token": "[PAD]",
        "chat_template": QWEN2_TEMPLATE,
        "model_max_length": context,
    }
    return TokenizerFiles({token: i for i, token in enumerate(alphabet)}, [], added, config)


def random_tensor(
    name: str, shape: tuple[int, ...], dtype: torch.dtype, generator: torch.Generator
) -> Tensor:
    """Return ones for the scale of a norm, zeros for a bias, else normally distributed numbers.

    Their standard deviation is 1 / sqrt(fan-in), which keeps activations in range.
    """
    if len(shape) == 1:
        return (torch.zeros if name.endswith("bias") else torch.ones)(shape, dtype=dtype)
    fan_in = prod(shape[1:])
    return torch.empty(shape, dtype=dtype).normal_(0.0, fan_in**-0.5, generator=generator)


def random_tensors(
    entries: Iterable[NameAndShape], dtype: torch.dtype, generator: torch.Generator
) -> list[LazyTensor]:
    """Return tensors that are drawn from `generator` in the order in which they are written."""
    return [
        LazyTensor(name, shape, dtype, partial(random_tensor, name, shape, dtype, generator))
        for name, shape in entries
    ]


def write_checkpoint(
    folder: str | Path,
    shape: Shape | None = None,
    *,
    layout: CheckpointLayout = "folders",
    dtype: torch.dtype = torch.bfloat16,
    seed: int = 0,
    shard_bytes: int | None = None,
    media_tokens: bool = True,
    config: dict[str, Any] | None = None,
) -> Path:
    """Write a random checkpoint and return its folder.

    Args:
        folder: created if needed.
        shape: sizes of the model; default: tiny.
        layout: "folders" (llm/, vision_tower/, mm_projector/), or the model_type of a flat layout.
        dtype: dtype of the weights on disk.
        seed: seed of the weights.
        shard_bytes: split the weights into files of about this many bytes.
        media_tokens: False: leave `<image>` and the other media tokens out of the tokenizer, as
            some published checkpoints do.
        config: fields of config.json to add or replace.
    """
    root, shape = Path(folder), shape or Shape()
    generator = torch.Generator().manual_seed(seed)
    contents = Contents(
        top={**model_config(shape), **(config or {})},
        llm=language_config(shape),
        vision=vision_config(shape),
        projector=projector_config(shape),
        preprocessor=preprocessor_config(shape),
        tokenizer=byte_tokenizer(shape.context, media_tokens),
        llm_tensors=random_tensors(language_tensors(shape), dtype, generator),
        vision_tensors=random_tensors(vision_tensors(shape), dtype, generator),
        projector_tensors=random_tensors(projector_tensors(shape), dtype, generator),
    )
    if layout == "folders":
        write_folders(root, contents, shard_bytes)
    else:
        write_flat(root, contents, layout, shard_bytes)
    return root


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m nvila_core.checkpoint.random_checkpoint", description=__doc__
    )
    parser.add_argument("folder", help="folder to write the checkpoint to")
    parser.add_argument("--shape", choices=sorted(SHAPES), default="tiny", help="size of the model")
    parser.add_argument(
        "--layout",
        choices=["folders", "vila", "nvila_lite", "nvila"],
        default="folders",
        help="three folders, or the model type of a flat layout",
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the weights")
    args = parser.parse_args()
    root = write_checkpoint(
        args.folder, SHAPES[args.shape], layout=args.layout, seed=args.seed, shard_bytes=2**30
    )
    size = sum(file.stat().st_size for file in root.rglob("*.safetensors"))
    print(f"{root}: {size / 1e9:.2f} GB of random bfloat16 weights")


if __name__ == "__main__":
    main()
