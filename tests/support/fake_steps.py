"""Steps of the language model, at the true sizes of NVILA-Lite, on a GPU without numbers."""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import torch
from torch._subclasses.fake_tensor import unset_fake_temporarily

from nvila_core import NVILA, SamplingParams
from nvila_core.config import LanguageConfig
from nvila_core.engine.decode_graphs import DecodeGraphs
from nvila_core.engine.handle import Handle
from nvila_core.engine.kv_cache import KVCache
from nvila_core.engine.model_runner import ModelRunner
from nvila_core.engine.prefix_keys import PromptLayout
from nvila_core.engine.request import NEVER, Request
from nvila_core.engine.scheduler import ScheduledRequest
from nvila_core.engine.triton_attention import TritonAttention
from nvila_core.generation.sequence import Sequence
from nvila_core.models.language_model import LanguageModel
from nvila_core.models.merged import merge_projections
from nvila_core.models.quantize import Format, Linear4, Linear8, LinearFP8

VOCAB = 151_648
SMALL = LanguageConfig(VOCAB, 1536, 8960, 28, 12, 2, 32768, tie_word_embeddings=True)
LARGE = LanguageConfig(VOCAB, 3584, 18944, 28, 28, 4, 32768)
SHAPES = {"2B": SMALL, "8B": LARGE}
CUDA = torch.device("cuda:0")
POSITIONS = 2**16


def make_runner(
    shape: str,
    dtype: torch.dtype,
    kind: Format | None = None,
    *,
    graphs: bool = True,
    layers: int | None = None,
) -> Any:
    """Return what runs the steps of a language model on the GPU; `layers` of its layers, or all."""
    config = SHAPES[shape]
    config = replace(config, num_hidden_layers=layers or config.num_hidden_layers)
    with unset_fake_temporarily(), torch.device("meta"):
        language = LanguageModel(config)
    for module in language.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            there = torch.empty(parameter.shape, dtype=dtype, device=CUDA)
            module.register_parameter(name, torch.nn.Parameter(there, requires_grad=False))
    rotary: Any = language.model.rotary_emb
    rotary.inv_freq = torch.empty(config.head_dim // 2, device=CUDA)
    if kind is not None:
        for name, module in list(language.model.layers.named_modules()):
            if type(module) is torch.nn.Linear:
                language.model.layers.set_submodule(name, in_format(module, kind, dtype))
    merge_projections(language.model)
    cache = KVCache(
        num_layers=config.num_hidden_layers,
        num_kv_heads=config.num_key_value_heads,
        head_dim=config.head_dim,
        num_blocks=POSITIONS // 16,
        block_size=16,
        dtype=dtype,
        device=CUDA,
    )
    attention = TritonAttention(cache, config.num_attention_heads)
    model: Any = SimpleNamespace(language=language, tokenizer=range(VOCAB), device=CUDA)
    encoder: Any = None  # the prompts have no pictures
    steps = DecodeGraphs(language, attention, 16384, VOCAB) if graphs else None
    return ModelRunner(model, attention, encoder, steps)


def in_format(linear: torch.nn.Linear, kind: Format, dtype: torch.dtype) -> torch.nn.Module:
    """Return a quantized layer of the same shape."""
    outputs, inputs = linear.weight.shape
    if kind == "int8":
        codes = torch.empty(outputs, inputs, dtype=torch.int8, device=CUDA)
        scale = torch.empty(outputs, dtype=dtype, device=CUDA)
        return Linear8.of(linear.bias, weight=codes, scale=scale)
    if kind == "fp8":
        codes = torch.empty(outputs, inputs, dtype=torch.float8_e4m3fn, device=CUDA)
        scale = torch.empty(outputs, device=CUDA)
        return LinearFP8.of(linear.bias, weight=codes, scale=scale)
    packed = torch.empty(outputs, inputs // 2, dtype=torch.uint8, device=CUDA)
    scales = torch.empty(inputs // 64, outputs, 2, dtype=torch.bfloat16, device=CUDA)
    layer = Linear4.of(linear.bias, weight=packed, scales=scales)
    layer.group = 64
    return layer


def scheduled(
    model: NVILA, prompt: int, computed: int, count: int, params: SamplingParams | None = None
) -> ScheduledRequest:
    """Return a request with `prompt` positions, and what a step computes of it."""
    prepared = model.prepare(["x"])
    text = replace(prepared, token_ids=(prepared.token_ids * prompt)[:prompt], num_tokens=prompt)
    request = Request(
        sequence=Sequence(text, params or SamplingParams(), model.tokenizer, 2 * POSITIONS),
        handle=Handle(),
        layout=PromptLayout(text, ()),
        tile_hashes=[],
        priority=0,
        deadline=NEVER,
        timeout=NEVER,
        arrival_time=0.0,
    )
    request.blocks = list(range(-(-prompt // 16)))
    request.num_computed_tokens = computed
    return ScheduledRequest(request, count)
