"""Writes a trained network as a checkpoint in the published layout (bfloat16)."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import SiglipVisionModel

from nvila_core.demo.training.config import ModelShape
from nvila_core.demo.training.labels import GRID
from nvila_core.demo.training.network import DemoNetwork, llm_config, vision_config
from nvila_core.demo.training.tokenizer import write_tokenizer


def export(network: DemoNetwork, shape: ModelShape, folder: Path) -> None:
    """Write `llm/`, `vision_tower/`, `mm_projector/` and `config.json` under `folder`."""
    vocab_size = write_tokenizer(folder / "llm", shape.max_positions)
    llm_keys = {k: v for k, v in network.llm.state_dict().items() if k != "lm_head.weight"}
    _save(folder / "llm", llm_keys)
    _save(folder / "vision_tower", _tower_state(network, shape))
    _save(folder / "mm_projector", dict(network.projector.state_dict()))
    ids = json.loads((folder / "llm" / "added_tokens.json").read_text(encoding="utf-8"))
    llm = _llm_fields(shape, vocab_size, ids)
    tower = _tower_fields(shape)
    projector = {
        "architectures": ["MultimodalProjector"],
        "mm_projector_type": "mlp_downsample_3x3_fix",
        "model_type": "v2l_projector",
        "torch_dtype": "bfloat16",
    }
    _write(folder / "llm" / "config.json", llm)
    _write(folder / "llm" / "generation_config.json", _generation_fields(ids))
    _write(folder / "vision_tower" / "config.json", tower)
    _write(folder / "vision_tower" / "preprocessor_config.json", _preprocessor_fields(shape))
    _write(folder / "mm_projector" / "config.json", projector)
    _write(folder / "config.json", _top_fields(shape, llm, tower, projector))


def _save(folder: Path, state: dict[str, Tensor]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    rounded = {
        key: value.detach().cpu().to(torch.bfloat16).contiguous() for key, value in state.items()
    }
    save_file(rounded, folder / "model.safetensors", metadata={"format": "pt"})


def _tower_state(network: DemoNetwork, shape: ModelShape) -> dict[str, Tensor]:
    # The last layer and the final norm are never used; they are there because the layout has them.
    torch.manual_seed(0)
    whole = SiglipVisionModel(vision_config(shape, shape.vision_layers)).state_dict()
    whole.update(network.tower.state_dict())
    prefix = "vision_model."
    return {key if key.startswith(prefix) else prefix + key: value for key, value in whole.items()}


def _llm_fields(shape: ModelShape, vocab_size: int, ids: dict[str, int]) -> dict[str, Any]:
    config = llm_config(shape, vocab_size)
    return {
        "architectures": ["Qwen2ForCausalLM"],
        "attention_dropout": 0.0,
        "bos_token_id": ids["[BOS]"],
        "eos_token_id": ids["<|im_end|>"],
        "pad_token_id": ids["[PAD]"],
        "hidden_act": "silu",
        "hidden_size": shape.llm_hidden,
        "initializer_range": config.initializer_range,
        "intermediate_size": shape.llm_intermediate,
        "max_position_embeddings": shape.max_positions,
        "max_window_layers": shape.llm_layers,
        "model_max_length": shape.max_positions,
        "model_type": "qwen2",
        "num_attention_heads": shape.llm_heads,
        "num_hidden_layers": shape.llm_layers,
        "num_key_value_heads": shape.llm_kv_heads,
        "rms_norm_eps": config.rms_norm_eps,
        "rope_scaling": None,
        "rope_theta": shape.rope_theta,
        "sliding_window": None,
        "tie_word_embeddings": True,
        "tokenizer_model_max_length": shape.max_positions,
        "tokenizer_padding_side": "right",
        "torch_dtype": "bfloat16",
        "use_cache": True,
        "use_sliding_window": False,
        "vocab_size": vocab_size,
    }


def _generation_fields(ids: dict[str, int]) -> dict[str, Any]:
    return {
        "bos_token_id": ids["<|endoftext|>"],
        "do_sample": False,
        "eos_token_id": [ids["<|im_end|>"], ids["<|endoftext|>"]],
        "pad_token_id": ids["[PAD]"],
    }


def _tower_fields(shape: ModelShape) -> dict[str, Any]:
    return {
        "architectures": ["SiglipVisionModel"],
        "attention_dropout": 0.0,
        "hidden_act": "gelu_pytorch_tanh",
        "hidden_size": shape.vision_hidden,
        "image_size": shape.tile,
        "intermediate_size": shape.vision_intermediate,
        "layer_norm_eps": 1e-06,
        "model_type": "siglip_vision_model",
        "num_attention_heads": shape.vision_heads,
        "num_channels": 3,
        "num_hidden_layers": shape.vision_layers,
        "patch_size": shape.patch,
        "torch_dtype": "bfloat16",
        "vision_use_head": False,
    }


def _preprocessor_fields(shape: ModelShape) -> dict[str, Any]:
    return {
        "do_convert_rgb": None,
        "do_normalize": True,
        "do_rescale": True,
        "do_resize": True,
        "image_mean": [0.5, 0.5, 0.5],
        "image_processor_type": "SiglipImageProcessor",
        "image_std": [0.5, 0.5, 0.5],
        "processor_class": "SiglipProcessor",
        "resample": 3,
        "rescale_factor": 0.00392156862745098,
        "size": {"height": shape.tile, "width": shape.tile},
    }


def _top_fields(
    shape: ModelShape, llm: dict[str, Any], tower: dict[str, Any], projector: dict[str, Any]
) -> dict[str, Any]:
    return {
        "architectures": ["LlavaLlamaModel"],
        "chat_template": None,
        "dynamic_s2": False,
        "fps": 0.0,
        "hidden_size": shape.llm_hidden,
        "image_aspect_ratio": "dynamic",
        "image_encoder": {"_target_": "llava.model.encoders.BasicImageEncoder"},
        "llm_cfg": llm,
        "max_tiles": 12,
        "min_tiles": 1,
        "mm_hidden_size": shape.vision_hidden,
        "mm_projector_cfg": projector,
        "mm_vision_select_feature": "cls_patch",
        "mm_vision_select_layer": -2,
        "model_dtype": "torch.bfloat16",
        "model_type": "llava_llama",
        "num_video_frames": 4,
        "s2": False,
        "tile_grids": [list(GRID)],
        "video_encoder": {"_target_": "llava.model.encoders.BasicVideoEncoder"},
        "video_max_tiles": 1,
        "vision_tower_cfg": tower,
    }


def _write(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n", encoding="utf-8")
