"""Export a trained network as a checkpoint in the published layout, in bfloat16, and load one."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import SiglipVisionModel

from nvila_core.checkpoint.weights import Weights
from nvila_core.checkpoint.writer import Contents, tensors_of, write_folders
from nvila_core.demo.sampling import TILE_GRID
from nvila_core.demo.training.config import ModelShape
from nvila_core.demo.training.network import DemoNetwork, qwen2_config, siglip_config
from nvila_core.demo.training.tokenizer import train_tokenizer

_TOWER_PREFIX = "vision_model."


def export(network: DemoNetwork, shape: ModelShape, folder: Path) -> None:
    """Write the checkpoint to `folder`, creating it if needed."""
    tokenizer = train_tokenizer(shape.max_positions)
    ids = tokenizer.added_tokens
    llm = {k: v for k, v in network.llm.state_dict().items() if k != "lm_head.weight"}
    contents = Contents(
        top=_top_fields(shape),
        llm=_llm_fields(shape, len(tokenizer), ids),
        vision=_tower_fields(shape),
        projector=_projector_fields(),
        preprocessor=_preprocessor_fields(shape),
        tokenizer=tokenizer,
        llm_tensors=tensors_of(llm, torch.bfloat16),
        vision_tensors=tensors_of(_tower_state(network, shape), torch.bfloat16),
        projector_tensors=tensors_of(network.projector.state_dict(), torch.bfloat16),
        generation=_generation_fields(ids),
    )
    write_folders(folder, contents)


def load_weights(network: DemoNetwork, folder: Path) -> None:
    """Load the weights of a checkpoint that `export` wrote into a network of the same shape.

    Raises:
        CheckpointError: a file or tensor is missing, not readable, or of another shape.
    """
    parts = {"llm": network.llm, "mm_projector": network.projector, "vision_tower": network.tower}
    for name, part in parts.items():
        stored = Weights.open(folder / name)
        for key, parameter in part.named_parameters():
            if key not in stored and name == "vision_tower":
                key = _TOWER_PREFIX + key
            stored.expect(key, tuple(parameter.shape), "the shape of the network")
            parameter.data.copy_(stored.read(key, parameter.dtype, parameter.device))


def _tower_state(network: DemoNetwork, shape: ModelShape) -> dict[str, Tensor]:
    # The last layer and the final norm are never used, but the layout has them.
    torch.manual_seed(0)
    whole = SiglipVisionModel(siglip_config(shape, shape.vision_layers)).state_dict()
    whole.update(network.tower.state_dict())
    return {_TOWER_PREFIX + key.removeprefix(_TOWER_PREFIX): value for key, value in whole.items()}


def _llm_fields(shape: ModelShape, vocab_size: int, ids: dict[str, int]) -> dict[str, Any]:
    config = qwen2_config(shape, vocab_size)
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


def _projector_fields() -> dict[str, Any]:
    return {
        "architectures": ["MultimodalProjector"],
        "mm_projector_type": "mlp_downsample_3x3_fix",
        "model_type": "v2l_projector",
        "torch_dtype": "bfloat16",
    }


def _top_fields(shape: ModelShape) -> dict[str, Any]:
    return {
        "chat_template": None,
        "dynamic_s2": False,
        "fps": 0.0,
        "hidden_size": shape.llm_hidden,
        "image_aspect_ratio": "dynamic",
        "image_encoder": {"_target_": "llava.model.encoders.BasicImageEncoder"},
        "max_tiles": 12,
        "min_tiles": 1,
        "mm_hidden_size": shape.vision_hidden,
        "mm_vision_select_feature": "cls_patch",
        "mm_vision_select_layer": -2,
        "model_dtype": "torch.bfloat16",
        "num_video_frames": 4,
        "s2": False,
        "tile_grids": [list(TILE_GRID)],
        "video_encoder": {"_target_": "llava.model.encoders.BasicVideoEncoder"},
        "video_max_tiles": 1,
    }
