"""What a step asks of a GPU, counted on one without numbers, at the true sizes of NVILA-Lite."""

import tracemalloc
from collections.abc import Iterator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import unset_fake_temporarily

from nvila_core import NVILA, SamplingParams
from nvila_core.config import LanguageConfig, VisionConfig
from nvila_core.engine.background_tower import MAX_PASSES, TILE_BUCKETS, BackgroundTower
from nvila_core.engine.handle import Handle
from nvila_core.engine.kv_cache import KVCache
from nvila_core.engine.model_runner import ModelRunner
from nvila_core.engine.prefix_keys import PromptLayout
from nvila_core.engine.request import NEVER, Request
from nvila_core.engine.scheduler import ScheduledRequest
from nvila_core.generation.sequence import Sequence
from nvila_core.media.preprocess import Processor
from nvila_core.models.language_model import LanguageModel
from nvila_core.models.merged import merge_projections, merge_tower
from nvila_core.models.projector import build_projector
from nvila_core.models.quantize import Format, Linear4, Linear8, LinearFP8
from nvila_core.models.vision_tower import VisionTower

pytest.importorskip("triton", reason="the kernels need Triton, which this machine lacks")

from nvila_core.engine.decode_graphs import DecodeGraphs
from nvila_core.engine.triton_attention import TritonAttention
from tests.support.fake_cuda import FakeCuda, fake_cuda

pytestmark = pytest.mark.filterwarnings("ignore:Accessing the data pointer of FakeTensor")

VOCAB = 151_648
SMALL = LanguageConfig(VOCAB, 1536, 8960, 28, 12, 2, 32768, tie_word_embeddings=True)
LARGE = LanguageConfig(VOCAB, 3584, 18944, 28, 28, 4, 32768)
SHAPES = {"2B": SMALL, "8B": LARGE}
CUDA = torch.device("cuda:0")
POSITIONS = 2**16

GREEDY = SamplingParams()
KINDS = (
    GREEDY,
    SamplingParams(temperature=0.7, top_k=20, top_p=0.8, repetition_penalty=1.05, seed=1),
    SamplingParams(temperature=1.0),
    SamplingParams(choice=("yes", "no")),
)


@pytest.fixture
def cuda() -> Iterator[FakeCuda]:
    """A GPU."""
    with fake_cuda() as device:
        yield device


def make_runner(
    shape: str, dtype: torch.dtype, kind: Format | None = None, *, graphs: bool = True
) -> Any:
    """Return what runs the steps of a language model on the GPU."""
    config = SHAPES[shape]
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
    model: NVILA, prompt: int, computed: int, count: int, params: SamplingParams = GREEDY
) -> ScheduledRequest:
    """Return a request with `prompt` positions, and what a step computes of it."""
    prepared = model.prepare(["x"])
    text = replace(prepared, token_ids=(prepared.token_ids * prompt)[:prompt], num_tokens=prompt)
    request = Request(
        sequence=Sequence(text, params, model.tokenizer, 2 * POSITIONS),
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


@pytest.mark.parametrize("shape", ["2B", pytest.param("8B", marks=pytest.mark.slow)])
def test_a_decode_step_is_few_launches_and_one_copy_each_way(
    shape: str, tiny: NVILA, cuda: FakeCuda
) -> None:
    # given eight requests that decode, and a GPU without graphs
    items = [scheduled(tiny, 9800 + n, 9799 + n, 1) for n in range(8)]
    runner = make_runner(shape, torch.bfloat16, graphs=False)
    cuda.reset()
    # when
    drawn = runner.forward(items)
    # then the host starts few kernels, and never waits but for the tokens
    assert drawn == [1] * 8
    assert cuda.launches.total() <= 300, cuda.launches
    assert (cuda.copies_in, cuda.copies_out, cuda.waits) == (1, 1, 0)
    assert cuda.launches["paged_attention"] == SHAPES[shape].num_hidden_layers


def test_a_graph_is_one_launch(tiny: NVILA, cuda: FakeCuda) -> None:
    # given a step whose graph has been captured
    items = [scheduled(tiny, 9800 + n, 9799 + n, 1) for n in range(8)]
    runner = make_runner("2B", torch.bfloat16)
    runner.forward(items)
    cuda.reset()
    # when it is computed again
    runner.forward(items)
    # then the rest is reading its results
    assert cuda.launches == {"graph": 1, "cat": 1}
    assert (cuda.copies_in, cuda.copies_out, cuda.waits) == (1, 1, 0)


def test_a_step_is_started_before_the_tokens_of_the_one_before_are_read(
    tiny: NVILA, cuda: FakeCuda
) -> None:
    # given a step that a graph computes, of which one request will end
    items = [scheduled(tiny, 9800 + n, 9799 + n, 1) for n in range(8)]
    runner = make_runner("2B", torch.bfloat16)
    runner.forward(items)
    cuda.reset()
    # when the next one is started
    step = runner.launch(items)
    following = runner.launch_next(step, range(1, 8))
    # then both are launched, each with one copy each way, before the first is read
    assert step.by_graph
    assert following is not None
    assert runner.read(step) == [1] * 8
    assert runner.read(following) == [1] * 7
    assert cuda.order == ["graph", "graph", "read", "read"]
    assert (cuda.copies_in, cuda.copies_out, cuda.waits) == (2, 2, 0)
    # and the first step of so many rows, which captures a graph, is not started ahead
    assert runner.launch_next(step, range(3)) is None


def test_requests_that_decode_beside_a_chunk_are_one_launch(tiny: NVILA, cuda: FakeCuda) -> None:
    # given a captured step of eight requests that decode
    decoding = [scheduled(tiny, 9800 + n, 9799 + n, 1) for n in range(8)]
    chunk = scheduled(tiny, 3000, 1000, 500)
    runner = make_runner("2B", torch.bfloat16)
    runner.forward(decoding)
    cuda.reset()
    # when a chunk of a prompt comes between them
    drawn = runner.forward([*decoding[:4], chunk, *decoding[4:]])
    # then they are still one launch, before those of the chunk, and all is read at once
    assert drawn == [1, 1, 1, 1, None, 1, 1, 1, 1]
    assert next(iter(cuda.launches)) == "graph"
    assert cuda.launches["graph"] == 1
    assert "combine_splits" not in cuda.launches  # no single row is left
    assert (cuda.copies_in, cuda.copies_out, cuda.waits) == (2, 1, 0)


def test_drawing_tokens_never_waits_and_copies_no_logits(tiny: NVILA, cuda: FakeCuda) -> None:
    # given a captured step of requests that sample, are penalised, or choose
    items = [scheduled(tiny, 200 + n, 199 + n, 1, KINDS[n % 4]) for n in range(30)]
    runner = make_runner("2B", torch.bfloat16)
    runner.forward(items)
    cuda.reset()
    # when
    drawn = runner.forward(items)
    # then their numbers and sets of tokens go there in one copy, and the tokens come back in one
    assert drawn == [1] * 30
    assert (cuda.copies_in, cuda.copies_out, cuda.waits) == (2, 1, 0)
    assert cuda.launches.total() <= 60, cuda.launches
    assert cuda.host_bytes < 2**20


@pytest.mark.slow
@pytest.mark.parametrize("shape", SHAPES)
def test_a_chunk_after_many_positions_builds_nothing_large(
    shape: str, tiny: NVILA, cuda: FakeCuda
) -> None:
    # given a chunk of 2,048 positions after 8,192
    items = [scheduled(tiny, 10_240, 8192, 2048)]
    runner = make_runner(shape, torch.bfloat16)
    cuda.reset()
    # when
    tracemalloc.start()
    runner.forward(items)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    # then the host makes little, and waits for nothing but the token
    assert cuda.host_bytes < 2**20
    assert peak < 2**20
    assert (cuda.copies_in, cuda.copies_out, cuda.waits) == (1, 1, 0)


@pytest.mark.parametrize(
    ("kind", "launches"),
    [("int8", 300), ("int4", 300), pytest.param("fp8", 412, marks=pytest.mark.slow)],
)
def test_a_quantized_decode_step_is_few_launches(
    kind: Format, launches: int, tiny: NVILA, cuda: FakeCuda
) -> None:
    # given eight requests that decode with quantized weights
    items = [scheduled(tiny, 9800 + n, 9799 + n, 1) for n in range(8)]
    runner = make_runner("2B", torch.bfloat16, kind, graphs=False)
    cuda.reset()
    # when
    assert runner.forward(items) == [1] * 8
    # then it takes as many launches as in full precision; FP8 one more for each product's rows
    assert cuda.launches.total() <= launches, cuda.launches
    assert (cuda.copies_in, cuda.copies_out, cuda.waits) == (1, 1, 0)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["int8", "int4", "fp8"])
def test_quantized_layers_run_on_the_gpu(kind: Format, tiny: NVILA, cuda: FakeCuda) -> None:
    # given a quantized model
    runner = make_runner("2B", torch.bfloat16, kind)
    items = [scheduled(tiny, 60, 59, 1), scheduled(tiny, 300, 100, 200)]
    cuda.reset()
    # when a row and a chunk are computed, then no device or dtype is wrong, and nothing waits
    assert runner.forward(items) == [1, 1]
    assert cuda.waits == 0


def make_tower() -> BackgroundTower:
    """Return the tower of NVILA-Lite on the GPU."""
    config = VisionConfig(1152, 4304, 27, 16, 448, 14, 26)
    with unset_fake_temporarily(), torch.device("meta"):
        vision = VisionTower(config)
        projector = build_projector("mlp_downsample_3x3_fix", 1152, 1536)
    for network in (vision, projector):
        for module in network.modules():
            for name, parameter in list(module.named_parameters(recurse=False)):
                there = torch.empty(parameter.shape, dtype=torch.bfloat16, device=CUDA)
                module.register_parameter(name, torch.nn.Parameter(there, requires_grad=False))
    model: Any = SimpleNamespace(
        device=CUDA,
        config=SimpleNamespace(vision=config),
        encode_tiles=lambda pixels: projector(vision(pixels)),
    )
    return BackgroundTower(model)


@pytest.mark.parametrize("count", [1, 5, TILE_BUCKETS[-1]])
def test_a_pass_of_the_tower_is_one_launch_and_one_copy(count: int, cuda: FakeCuda) -> None:
    # given a tower whose graph for so many tiles has been captured
    tower, processor = make_tower(), Processor(448)
    with unset_fake_temporarily():
        tiles = [np.zeros((448, 448, 3), np.uint8)] * count
    with torch.inference_mode():
        tower.start(tiles, processor).take()
        cuda.reset()
        # when tiles are encoded
        started = tower.start(tiles, processor)
        # then the host launches one graph and one copy, and does not wait for the device
        assert cuda.launches == {"graph": 1, "copy": 1}
        assert (cuda.copies_in, cuda.copies_out, cuda.waits) == (1, 1, 0)
        # and when it takes the features, they are copied at once
        features, finite = started.take()
    assert [tuple(one.shape) for one in features] == [(121, 1536)] * count
    assert len(finite) == count
    assert cuda.launches == {"graph": 1, "copy": 1, "foreach_copy": 1}
    assert cuda.waits == 0


def test_no_more_passes_are_in_flight_than_have_memory(cuda: FakeCuda) -> None:
    # given a tower
    tower, processor = make_tower(), Processor(448)
    with unset_fake_temporarily():
        tiles = [np.zeros((448, 448, 3), np.uint8)]
    with torch.inference_mode():
        # when as many passes are started as it has room for
        passes = [tower.start(tiles, processor) for _ in range(MAX_PASSES)]
        # then there is room when the features of one are taken
        assert not tower.has_room()
        passes[0].take()
        assert tower.has_room()


@pytest.mark.parametrize("kind", [None, "fp8"])
def test_the_tower_runs_on_the_gpu(kind: Format | None, cuda: FakeCuda) -> None:
    # given a tower of two layers of the true sizes
    config = VisionConfig(1152, 4304, 3, 16, 448, 14, 2)
    with unset_fake_temporarily(), torch.device("meta"):
        tower = VisionTower(config)
    for module in tower.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            there = torch.empty(parameter.shape, dtype=torch.bfloat16, device=CUDA)
            module.register_parameter(name, torch.nn.Parameter(there, requires_grad=False))
    if kind is not None:
        for name, module in list(tower.encoder.named_modules()):
            if type(module) is torch.nn.Linear:
                tower.encoder.set_submodule(name, in_format(module, kind, torch.bfloat16))
    merge_tower(tower)
    cuda.reset()
    # when tiles are encoded, then nothing waits, and the launches of a layer are few
    features = tower(torch.empty(2, 3, 448, 448, device=CUDA))
    assert features.shape == (2, 1024, 1152)
    assert cuda.waits == 0
    assert cuda.launches["_scaled_mm"] == (8 if kind == "fp8" else 0)
    assert cuda.launches["rows_to_fp8"] == cuda.launches["_scaled_mm"]
