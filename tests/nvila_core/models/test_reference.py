"""The language model and the vision tower compute what transformers' modules compute."""

import pytest
import torch
from torch import nn

from nvila_core.config import LanguageConfig, VisionConfig
from nvila_core.models.attention import SequenceCache
from nvila_core.models.language_model import LanguageModel
from nvila_core.models.merged import merge_projections
from nvila_core.models.packed_linear import can_pack, pack_linears
from nvila_core.models.small_layer import SmallDecoderLayer, replace_small_layers
from nvila_core.models.vision_tower import VisionTower

TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 3e-2}


def randomise(module: nn.Module) -> None:
    """Draw parameters that give activations of the size of one, norms and biases included."""
    torch.manual_seed(7)
    for name, parameter in module.named_parameters():
        if parameter.ndim == 1:
            nn.init.normal_(parameter, mean=float("norm" in name and "bias" not in name), std=0.1)
        else:
            nn.init.normal_(parameter, std=parameter[0].numel() ** -0.5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("kv_heads", "activation", "factor"), [(2, "silu", 1.0), (4, "gelu", 4.0), (1, "relu", 1.0)]
)
@pytest.mark.parametrize("in_engine", [False, True])
@torch.inference_mode()
def test_the_decoder_equals_transformers(
    dtype: torch.dtype, kv_heads: int, activation: str, factor: float, in_engine: bool
) -> None:
    import transformers  # takes seconds

    # given the same weights in both
    shape = {
        "vocab_size": 40,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": kv_heads,
        "hidden_act": activation,
        "max_position_embeddings": 128,
        "rms_norm_eps": 1e-5,
    }
    rope = {"rope_type": "linear", "rope_theta": 500.0, "factor": factor}
    config = transformers.Qwen2Config(**shape, rope_parameters=rope, attn_implementation="sdpa")
    expected_model = transformers.Qwen2Model(config)
    randomise(expected_model)
    expected_model = expected_model.to(dtype).eval()
    config = LanguageConfig(**shape, rope_theta=500.0, rope_factor=factor)  # type: ignore[arg-type]
    model = LanguageModel(config)
    model.model.load_state_dict(expected_model.state_dict())
    model = model.to(dtype).eval()
    model.model.rotary_emb.float()  # the frequencies stay in float32, as after loading
    expected_model.rotary_emb.float()
    if in_engine:
        merge_projections(model.model)
        pack_linears(model.model.layers)
        replaced = replace_small_layers(model.model)
        assert replaced == (3 if dtype is torch.float32 and can_pack(dtype) else 0)

    # when both read a prompt, then several more positions, then one
    embeds = torch.randn(14, 32).to(dtype)
    cache, expected_cache = SequenceCache(), transformers.DynamicCache(config=expected_model.config)
    for part in embeds.split([9, 4, 1]):
        found = model.hidden_states(part, cache)
        out = expected_model(inputs_embeds=part[None], past_key_values=expected_cache)

        # then
        limit = TOLERANCE[dtype]
        torch.testing.assert_close(found, out.last_hidden_state[0], rtol=limit, atol=limit)
    assert len(cache) == 14


def test_small_layers_are_replaced_once_and_keep_their_weights() -> None:
    # given a small model, as a first engine left it
    config = LanguageConfig(40, 32, 48, 3, 4, 2, 128)
    decoder = LanguageModel(config).model
    merge_projections(decoder)
    pack_linears(decoder.layers)
    held = sum(buffer.numel() for buffer in decoder.buffers())
    if not replace_small_layers(decoder):
        pytest.skip("this PyTorch has no oneDNN")
    # when a second engine does the same
    merge_projections(decoder)
    assert pack_linears(decoder.layers) == 0
    assert replace_small_layers(decoder) == 0
    # then the layers are small ones, and the weights are held once
    assert all(isinstance(layer, SmallDecoderLayer) for layer in decoder.layers)
    assert sum(buffer.numel() for buffer in decoder.buffers()) == held


def test_a_layer_with_a_large_product_stays() -> None:
    # given a model of which one product has more than 2**19 weights
    config = LanguageConfig(40, 64, 8193, 2, 4, 2, 128)
    decoder = LanguageModel(config).model
    # when
    merge_projections(decoder)
    pack_linears(decoder.layers)
    # then no layer is replaced
    assert replace_small_layers(decoder) == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("select", [2, 3])
@torch.inference_mode()
def test_the_tower_equals_transformers(dtype: torch.dtype, select: int) -> None:
    import transformers  # takes seconds

    # given the same weights in both
    config = transformers.SiglipVisionConfig(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=3,
        num_attention_heads=4,
        image_size=28,
        patch_size=7,
        hidden_act="gelu_pytorch_tanh",
        vision_use_head=False,
        attn_implementation="sdpa",
    )
    expected_model = transformers.SiglipVisionModel(config)
    randomise(expected_model)
    expected_model = expected_model.to(dtype).eval()
    tower = VisionTower(VisionConfig(32, 48, 3, 4, 28, 7, layers_run=select))
    tower.load_state_dict(
        {
            key: value
            for key, value in expected_model.state_dict().items()
            if key in tower.state_dict()
        }
    )
    tower = tower.to(dtype).eval()

    # when
    pixels = torch.randn(2, 3, 28, 28)
    found = tower(pixels)

    # then
    out = expected_model(pixel_values=pixels.to(dtype), output_hidden_states=True)
    limit = TOLERANCE[dtype]
    torch.testing.assert_close(found, out.hidden_states[select], rtol=limit, atol=limit)
