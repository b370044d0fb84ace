"""Write a randomly initialised checkpoint of any shape, in any published layout.

For tests, and to try memory and speed at the true sizes without the published weights:

    python -m nvila_core.checkpoint.random_checkpoint OUT --shape 2b

It answers nonsense. The tokenizer knows single bytes only, whatever the size of the embedding
table.
"""

import argparse
import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import save_file
from torch import Tensor

from nvila_core.models.projector import build_projector
from nvila_core.prompt.tokenizer import IMAGE, QWEN2_TEMPLATE, SENTINEL, VIDEO

Layout = Literal["folders", "vila", "nvila_lite", "nvila"]
Entry = tuple[str, tuple[int, ...]]
CONTROLS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "[BOS]", "[PAD]"]
MEDIA = [SENTINEL, IMAGE, VIDEO]


@dataclass(frozen=True)
class Shape:
    """The sizes of a model; the defaults are tiny."""

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


def language_tensors(shape: Shape) -> Iterator[Entry]:
    """Names and shapes of `llm/`."""
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


def vision_tensors(shape: Shape) -> Iterator[Entry]:
    """Names and shapes of `vision_tower/`."""
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


def projector_tensors(shape: Shape) -> Iterator[Entry]:
    """Names and shapes of `mm_projector/`."""
    with torch.device("meta"):
        module = build_projector(shape.projector, shape.vision_hidden * shape.scales, shape.hidden)
    for name, parameter in module.named_parameters():
        yield name, tuple(parameter.shape)


def language_config(shape: Shape) -> dict[str, Any]:
    """`llm/config.json`."""
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
    """`vision_tower/config.json`."""
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
    """The fields of the top-level config.json that are used at inference."""
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
    """`preprocessor_config.json`."""
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


def byte_alphabet() -> list[str]:
    """The printable stand-ins of the 256 bytes in byte-level BPE, in the order of GPT-2's
    vocabulary.
    """
    from tokenizers.pre_tokenizers import ByteLevel

    alphabet = set(ByteLevel.alphabet())
    printable = sorted(c for c in alphabet if ord(c) < 256)
    return printable + sorted(c for c in alphabet if ord(c) >= 256)


def write_tokenizer(folder: Path, context: int, media_tokens: bool) -> None:
    """A byte tokenizer without merges, in the files of the published checkpoints."""
    alphabet = byte_alphabet()
    names = CONTROLS + (MEDIA if media_tokens else [])
    added = {name: len(alphabet) + i for i, name in enumerate(names)}
    details = {
        "lstrip": False,
        "normalized": False,
        "rstrip": False,
        "single_word": False,
        "special": True,
    }
    write_json(folder / "vocab.json", {token: i for i, token in enumerate(alphabet)})
    (folder / "merges.txt").write_text("#version: 0.2\n")
    write_json(folder / "added_tokens.json", added)
    write_json(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "Qwen2Tokenizer",
            "added_tokens_decoder": {
                str(i): {"content": name, **details} for name, i in added.items()
            },
            "bos_token": "[BOS]",
            "eos_token": "<|im_end|>",
            "pad_token": "[PAD]",
            "chat_template": QWEN2_TEMPLATE,
            "model_max_length": context,
        },
    )


def write_json(path: Path, value: dict[str, Any]) -> None:
    """`value` as an indented JSON file; its folder is made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=2), encoding="utf-8")


def random_tensor(
    name: str, shape: tuple[int, ...], dtype: torch.dtype, generator: torch.Generator
) -> Tensor:
    """Ones for the scale of a norm, zeros for a bias, else normal with a deviation that keeps
    activations sane.
    """
    if len(shape) == 1:
        return (torch.zeros if name.endswith("bias") else torch.ones)(shape, dtype=dtype)
    fan_in = 1
    for size in shape[1:]:
        fan_in *= size
    return torch.empty(shape, dtype=dtype).normal_(0.0, fan_in**-0.5, generator=generator)


def write_weights(
    folder: Path,
    entries: list[Entry],
    dtype: torch.dtype,
    generator: torch.Generator,
    shard_bytes: int | None,
) -> None:
    """One model.safetensors, or shards of about `shard_bytes` with their index; one shard in memory
    at a time.
    """
    folder.mkdir(parents=True, exist_ok=True)
    shards: list[list[Entry]] = [[]]
    filled = 0
    for entry in entries:
        size = torch.Size(entry[1]).numel() * dtype.itemsize
        if shard_bytes is not None and shards[-1] and filled + size > shard_bytes:
            shards.append([])
            filled = 0
        shards[-1].append(entry)
        filled += size
    weight_map = {}
    for number, shard in enumerate(shards, 1):
        file = "model.safetensors"
        if shard_bytes is not None:
            file = f"model-{number:05}-of-{len(shards):05}.safetensors"
        tensors = {name: random_tensor(name, size, dtype, generator) for name, size in shard}
        save_file(tensors, folder / file, metadata={"format": "pt"})
        weight_map.update(dict.fromkeys(tensors, file))
    if shard_bytes is not None:
        write_json(
            folder / "model.safetensors.index.json", {"metadata": {}, "weight_map": weight_map}
        )


def write_checkpoint(
    folder: str | Path,
    shape: Shape | None = None,
    *,
    layout: Layout = "folders",
    dtype: torch.dtype = torch.bfloat16,
    seed: int = 0,
    shard_bytes: int | None = None,
    media_tokens: bool = True,
    config: dict[str, Any] | None = None,
) -> Path:
    """Write a random checkpoint.

    Args:
        folder: made when missing.
        shape: default: tiny.
        layout: "folders" (llm/, vision_tower/, mm_projector/), or a flat layout by its model_type.
        dtype: of the weights on disk.
        seed: of the weights.
        shard_bytes: split the weights into files of about this size.
        media_tokens: False leaves `<image>` and its kin out of the tokenizer, as some checkpoints
            do.
        config: fields of config.json to add or replace.
    """
    root, shape = Path(folder), shape or Shape()
    generator = torch.Generator().manual_seed(seed)
    llm, vision = list(language_tensors(shape)), list(vision_tensors(shape))
    projector = list(projector_tensors(shape))
    fields = {**model_config(shape), **(config or {})}
    if layout == "folders":
        write_json(
            root / "config.json",
            {
                "architectures": ["LlavaLlamaModel"],
                "model_type": "llava_llama",
                **fields,
                "llm_cfg": language_config(shape),
                "vision_tower_cfg": vision_config(shape),
                "mm_projector_cfg": {"mm_projector_type": shape.projector},
            },
        )
        write_json(root / "llm/config.json", language_config(shape))
        write_json(root / "vision_tower/config.json", vision_config(shape))
        write_json(root / "vision_tower/preprocessor_config.json", preprocessor_config(shape))
        kind = {"mm_projector_type": shape.projector, "model_type": "v2l_projector"}
        write_json(root / "mm_projector/config.json", kind)
        write_tokenizer(root / "llm", shape.context, media_tokens)
        for name, entries in (("llm", llm), ("vision_tower", vision), ("mm_projector", projector)):
            write_weights(root / name, entries, dtype, generator, shard_bytes)
        return root
    write_json(
        root / "config.json",
        {
            "model_type": layout,
            **fields,
            "mm_projector_type": shape.projector,
            "text_config": language_config(shape),
            "vision_config": vision_config(shape),
        },
    )
    write_json(root / "preprocessor_config.json", preprocessor_config(shape))
    write_tokenizer(root, shape.context, media_tokens)
    prefixed = [
        (f"{prefix}.{name}", size)
        for prefix, entries in (("llm", llm), ("vision_tower", vision), ("mm_projector", projector))
        for name, size in entries
    ]
    write_weights(root, prefixed, dtype, generator, shard_bytes)
    return root


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m nvila_core.checkpoint.random_checkpoint", description=__doc__
    )
    parser.add_argument("folder", help="where to write it")
    parser.add_argument(
        "--shape", choices=sorted(SHAPES), default="tiny", help="sizes of the model"
    )
    parser.add_argument(
        "--layout", choices=["folders", "vila", "nvila_lite", "nvila"], default="folders"
    )
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    root = write_checkpoint(
        args.folder, SHAPES[args.shape], layout=args.layout, seed=args.seed, shard_bytes=2**30
    )
    size = sum(file.stat().st_size for file in root.rglob("*.safetensors"))
    print(f"{root}: {size / 1e9:.2f} GB of random bfloat16 weights")


if __name__ == "__main__":
    main()
