"""Write checkpoints in the published layouts; `checkpoint.loader` describes and reads them."""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor


@dataclass(frozen=True)
class LazyTensor:
    """A tensor that `make` creates when it is written, so that few of them are in memory."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    make: Callable[[], Tensor]

    @property
    def nbytes(self) -> int:
        """Size of the data in bytes."""
        return torch.Size(self.shape).numel() * self.dtype.itemsize


@dataclass(frozen=True)
class TokenizerFiles:
    """A byte-level BPE tokenizer in the files of the published checkpoints.

    Attributes:
        vocab: ids of the tokens that the merges make, without the added ones.
        merges: pairs of tokens, the most frequent first.
        added_tokens: ids of the control and media tokens.
        config: `tokenizer_config.json`.
        special_tokens_map: `special_tokens_map.json`; None: do not write it.
    """

    vocab: dict[str, int]
    merges: Sequence[tuple[str, str]]
    added_tokens: dict[str, int]
    config: dict[str, Any]
    special_tokens_map: dict[str, Any] | None = None

    def __len__(self) -> int:
        return len(self.vocab) + len(self.added_tokens)

    def write(self, folder: Path) -> None:
        """Write the files, creating `folder` if needed."""
        folder.mkdir(parents=True, exist_ok=True)
        by_id = dict(sorted(self.vocab.items(), key=lambda item: item[1]))
        text = json.dumps(by_id, ensure_ascii=False, separators=(",", ":"))
        (folder / "vocab.json").write_text(text, encoding="utf-8")
        lines = ["#version: 0.2", *(f"{left} {right}" for left, right in self.merges)]
        (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
        write_json(folder / "added_tokens.json", self.added_tokens)
        write_json(folder / "tokenizer_config.json", self.config)
        if self.special_tokens_map is not None:
            write_json(folder / "special_tokens_map.json", self.special_tokens_map)


@dataclass(frozen=True)
class Contents:
    """What a checkpoint holds, whatever its layout.

    Attributes:
        top: fields of the top-level `config.json` that are not of one component.
        llm, vision, projector: the `config.json` of each component.
        preprocessor: `preprocessor_config.json`.
        tokenizer: the tokenizer's files.
        llm_tensors: weights named as in transformers' Qwen2ForCausalLM.
        vision_tensors: weights named as in transformers' SiglipVisionModel.
        projector_tensors: weights named as in `models.projector.Projector`.
        generation: `generation_config.json`; None: do not write it.
    """

    top: dict[str, Any]
    llm: dict[str, Any]
    vision: dict[str, Any]
    projector: dict[str, Any]
    preprocessor: dict[str, Any]
    tokenizer: TokenizerFiles
    llm_tensors: Sequence[LazyTensor]
    vision_tensors: Sequence[LazyTensor]
    projector_tensors: Sequence[LazyTensor]
    generation: dict[str, Any] | None = None

    @property
    def tensors(self) -> Iterator[tuple[str, Sequence[LazyTensor]]]:
        """(name of the component, its tensors)."""
        yield "llm", self.llm_tensors
        yield "vision_tower", self.vision_tensors
        yield "mm_projector", self.projector_tensors


def write_folders(root: Path, contents: Contents, shard_bytes: int | None = None) -> None:
    """Write the layout of three folders: `llm/`, `vision_tower/` and `mm_projector/`.

    Args:
        root: folder of the checkpoint, created if needed.
        contents: what to write.
        shard_bytes: split the weights of each component into files of about this many bytes.
    """
    top = {
        "architectures": ["LlavaLlamaModel"],
        "model_type": "llava_llama",
        **contents.top,
        "llm_cfg": contents.llm,
        "vision_tower_cfg": contents.vision,
        "mm_projector_cfg": contents.projector,
    }
    write_json(root / "config.json", top)
    write_json(root / "llm" / "config.json", contents.llm)
    if contents.generation is not None:
        write_json(root / "llm" / "generation_config.json", contents.generation)
    write_json(root / "vision_tower" / "config.json", contents.vision)
    write_json(root / "vision_tower" / "preprocessor_config.json", contents.preprocessor)
    write_json(root / "mm_projector" / "config.json", contents.projector)
    contents.tokenizer.write(root / "llm")
    for component, tensors in contents.tensors:
        write_weights(root / component, tensors, shard_bytes)


def write_flat(
    root: Path, contents: Contents, model_type: str, shard_bytes: int | None = None
) -> None:
    """Write the flat layout: one config.json and one set of weights.

    Args:
        root: folder of the checkpoint, created if needed.
        contents: what to write.
        model_type: "vila", "nvila_lite" or "nvila".
        shard_bytes: split the weights into files of about this many bytes.
    """
    top = {
        "model_type": model_type,
        **contents.top,
        "mm_projector_type": contents.projector["mm_projector_type"],
        "text_config": contents.llm,
        "vision_config": contents.vision,
    }
    write_json(root / "config.json", top)
    if contents.generation is not None:
        write_json(root / "generation_config.json", contents.generation)
    write_json(root / "preprocessor_config.json", contents.preprocessor)
    contents.tokenizer.write(root)
    prefixed = [
        replace(tensor, name=f"{component}.{tensor.name}")
        for component, tensors in contents.tensors
        for tensor in tensors
    ]
    write_weights(root, prefixed, shard_bytes)


def write_weights(
    folder: Path, tensors: Iterable[LazyTensor], shard_bytes: int | None = None
) -> None:
    """Write model.safetensors, or shards of about `shard_bytes` and their index.

    Only the tensors of one file are in memory at a time.
    """
    folder.mkdir(parents=True, exist_ok=True)
    shards: list[list[LazyTensor]] = [[]]
    filled = 0
    for tensor in tensors:
        if shard_bytes is not None and shards[-1] and filled + tensor.nbytes > shard_bytes:
            shards.append([])
            filled = 0
        shards[-1].append(tensor)
        filled += tensor.nbytes
    weight_map: dict[str, str] = {}
    for number, shard in enumerate(shards, 1):
        file = "model.safetensors"
        if shard_bytes is not None:
            file = f"model-{number:05}-of-{len(shards):05}.safetensors"
        made = {tensor.name: tensor.make() for tensor in shard}
        save_file(made, folder / file, metadata={"format": "pt"})
        weight_map.update(dict.fromkeys(made, file))
    if shard_bytes is not None:
        index = {"metadata": {}, "weight_map": weight_map}
        write_json(folder / "model.safetensors.index.json", index)


def tensors_of(state: Mapping[str, Tensor], dtype: torch.dtype) -> list[LazyTensor]:
    """Return the tensors of a state dict, each converted to `dtype` when it is written."""

    def converted(tensor: Tensor) -> Callable[[], Tensor]:
        return lambda: tensor.detach().cpu().to(dtype).contiguous()

    return [
        LazyTensor(name, tuple(tensor.shape), dtype, converted(tensor))
        for name, tensor in state.items()
    ]


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write an indented JSON file, creating its folder if needed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n", encoding="utf-8")
