"""What a step asks of a GPU, counted on one without numbers, at the true sizes of NVILA-Lite."""

import tracemalloc
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any, get_args

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import unset_fake_temporarily
from torch.nn.attention import SDPBackend

from nvila_core import NVILA, SamplingParams
from nvila_core.config import VisionConfig
from nvila_core.engine.background_tower import MAX_PASSES, TILE_BUCKETS, BackgroundTower
from nvila_core.engine.batch import SequenceSlice
from nvila_core.media.preprocess import Processor
from nvila_core.models.merged import merge_tower
from nvila_core.models.projector import build_projector
from nvila_core.models.quantize import Format
from nvila_core.models.vision_tower import ATTENTION_ORDER, VisionTower

pytest.importorskip("triton", reason="the kernels need Triton, which this machine lacks")

from nvila_core.engine.decode_graphs import ROW_BUCKETS, Bucket
from tests.support.fake_cuda import FakeCuda, fake_cuda
from tests.support.fake_steps import CUDA, SHAPES, in_format, make_runner, scheduled

pytestmark = pytest.mark.filterwarnings("ignore:Accessing the data pointer of FakeTensor")

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


@pytest.mark.parametrize(
    ("shape", "layers"), [("2B", 28), ("8B", 4), pytest.param("8B", 28, marks=pytest.mark.slow)]
)
def test_a_decode_step_is_few_launches_and_one_copy_each_way(
    shape: str, layers: int, tiny: NVILA, cuda: FakeCuda
) -> None:
    # given eight requests that decode, and a GPU without graphs
    items = [scheduled(tiny, 9800 + n, 9799 + n, 1) for n in range(8)]
    runner = make_runner(shape, torch.bfloat16, graphs=False, layers=layers)
    cuda.reset()
    # when
    drawn = runner.forward(items)
    # then the host starts few kernels, and never waits but for the tokens
    assert drawn == [1] * 8
    assert cuda.launches.total() <= 300 - 10 * (28 - layers), cuda.launches
    assert (cuda.copies_in, cuda.copies_out, cuda.waits) == (1, 1, 0)
    assert cuda.launches["paged_attention"] == layers


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


def test_log_probabilities_are_computed_there_and_come_back_with_the_tokens(
    tiny: NVILA, cuda: FakeCuda
) -> None:
    # given a captured step of requests whose log-probabilities are recorded
    kinds = [
        SamplingParams(logprobs=2),
        SamplingParams(logprobs=0, temperature=0.7, top_p=0.8, repetition_penalty=1.05, seed=1),
        SamplingParams(logprobs=20, temperature=1.0),
        SamplingParams(logprobs=2, choice=("yes", "no", "not sure")),
    ]
    items = [scheduled(tiny, 200 + n, 199 + n, 1, kinds[n % 4]) for n in range(8)]
    runner = make_runner("2B", torch.bfloat16, layers=2)
    runner.forward(items)
    cuda.reset()
    # when
    drawn = runner.forward(items)
    # then the host waits only for the tokens, with which their log-probabilities arrive
    assert (cuda.copies_in, cuda.copies_out, cuda.waits) == (3, 1, 0)
    assert [each.token for each in drawn] == [1] * 8
    assert [len(each.likelihood.top) for each in drawn] == [2, 0, 20, 2] * 2
    # and instead of the logits a few numbers travel
    assert cuda.bytes_out < 8 * 64 * 4
    assert cuda.bytes_in < 2**18
    assert cuda.launches.total() <= 75, cuda.launches


LENGTHS = [(1,) * 5, (500,) * 5, (9800,) * 5, (1, 9800, 500, 16, 17)]


@pytest.mark.parametrize("lengths", LENGTHS[1:], ids=str)
def test_a_graph_fits_rows_of_any_lengths(lengths: tuple[int, ...], cuda: FakeCuda) -> None:
    # given what a graph of eight rows computes for five new sequences
    runner = make_runner("2B", torch.bfloat16, layers=2)
    graphs = runner.graphs
    bucket = Bucket(graphs.attention, 8, graphs.table_width)

    def operations(lengths: tuple[int, ...]) -> list[str]:
        """Return all that a step with so many positions in each row asks of the device."""
        cuda.reset()
        with torch.inference_mode():
            bucket.fill([SequenceSlice(n - 1, 1, list(range(-(-n // 16))), [65]) for n in lengths])
            graphs.compute(bucket)
        assert cuda.launches["paged_attention"] == 2
        return cuda.operations

    recorded = operations(LENGTHS[0])
    # when it computes sequences of other lengths
    replayed = operations(lengths)
    # then each operation is the same, with the same shapes, strides and constants
    assert replayed == recorded
    assert len(recorded) > 20


def test_a_sampled_step_is_started_before_the_tokens_of_the_one_before_are_read(
    tiny: NVILA, cuda: FakeCuda
) -> None:
    # given a step of requests that sample and of one that does not, by a graph
    kinds = [SamplingParams(temperature=0.7, top_p=0.8, seed=1, logprobs=1), GREEDY]
    items = [scheduled(tiny, 200 + n, 199 + n, 1, kinds[n % 2]) for n in range(8)]
    runner = make_runner("2B", torch.bfloat16, layers=2)
    runner.forward(items)
    cuda.reset()
    # when the next one is started
    step = runner.launch(items)
    following = runner.launch_next(step, range(8))
    # then both are launched before the first is read
    assert step.by_graph
    assert following is not None
    runner.read(step)
    runner.read(following)
    assert cuda.order == ["graph", "graph", "read", "read"]
    assert cuda.waits == 0
    # and a penalty, or a form, needs the token first
    for other in (SamplingParams(repetition_penalty=1.1), SamplingParams(choice=("yes", "no"))):
        held = [*items[:7], scheduled(tiny, 200, 199, 1, other)]
        assert not runner.launch(held).by_graph


@pytest.mark.parametrize(
    ("shape", "layers"),
    [
        ("2B", 2),
        ("8B", 2),
        *(pytest.param(shape, None, marks=pytest.mark.slow) for shape in SHAPES),
    ],
)
def test_a_chunk_after_many_positions_builds_nothing_large(
    shape: str, layers: int | None, tiny: NVILA, cuda: FakeCuda
) -> None:
    # given a chunk of 2,048 positions after 8,192
    items = [scheduled(tiny, 10_240, 8192, 2048)]
    runner = make_runner(shape, torch.bfloat16, layers=layers)
    cuda.reset()
    # when
    tracemalloc.start()
    runner.forward(items)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    # then the host makes little, and waits only for the token
    assert cuda.host_bytes < 2**20
    assert peak < 2**20
    assert (cuda.copies_in, cuda.copies_out, cuda.waits) == (1, 1, 0)


@pytest.mark.parametrize("kind", ["int8", "int4", "fp8"])
@pytest.mark.parametrize("shape", ["2B", pytest.param("8B", marks=pytest.mark.slow)])
def test_a_quantized_decode_step_is_as_few_launches(
    shape: str, kind: Format, tiny: NVILA, cuda: FakeCuda
) -> None:
    # given eight requests that decode with quantized weights
    items = [scheduled(tiny, 9800 + n, 9799 + n, 1) for n in range(8)]
    runner = make_runner(shape, torch.bfloat16, kind, graphs=False)
    cuda.reset()
    # when
    assert runner.forward(items) == [1] * 8
    # then it takes no more launches than in full precision
    assert cuda.launches.total() <= 300, cuda.launches
    assert (cuda.copies_in, cuda.copies_out, cuda.waits) == (1, 1, 0)
    if kind == "fp8":  # only what no other kernel can quantize has a launch of its own
        layers = SHAPES[shape].num_hidden_layers
        assert cuda.launches["_scaled_mm"] == 4 * layers
        assert cuda.launches["combine_splits_to_fp8"] == layers
        assert cuda.launches["rows_to_fp8"] == layers  # with the gate


@pytest.mark.parametrize("rows", [8, 65, ROW_BUCKETS[-1]])
@pytest.mark.parametrize("kind", [None, *get_args(Format)])
@pytest.mark.parametrize(
    ("shape", "layers"),
    [("2B", 2), *(pytest.param(shape, 28, marks=pytest.mark.slow) for shape in SHAPES)],
)
def test_a_decode_step_of_any_number_of_rows_is_few_launches(
    shape: str, layers: int, kind: Format | None, rows: int, tiny: NVILA, cuda: FakeCuda
) -> None:
    # given so many requests that decode, and a GPU without graphs
    items = [scheduled(tiny, 200 + n, 199 + n, 1) for n in range(rows)]
    runner = make_runner(shape, torch.bfloat16, kind, graphs=False, layers=layers)
    cuda.reset()
    # when
    assert runner.forward(items) == [1] * rows
    # then no layer takes more than ten launches: no weight is widened by one of its own
    assert cuda.launches.total() <= 300 - 10 * (28 - layers), cuda.launches
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
    orders: list[list[int]] = []
    tower.encoder.register_forward_pre_hook(
        lambda *_: orders.append(torch._C._get_sdp_priority_order())
    )
    by_itself = torch._C._get_sdp_priority_order()
    cuda.reset()
    # when tiles are encoded, then nothing waits, and the launches of a layer are few
    features = tower(torch.empty(2, 3, 448, 448, device=CUDA))
    # and PyTorch prefers cuDNN's kernel for attention to flash attention, for the tower only
    assert [SDPBackend(number) for number in orders[0][:4]] == ATTENTION_ORDER
    assert ATTENTION_ORDER[0] == SDPBackend.CUDNN_ATTENTION
    assert torch._C._get_sdp_priority_order() == by_itself
    assert features.shape == (2, 1024, 1152)
    assert cuda.waits == 0
    assert cuda.launches["_scaled_mm"] == (8 if kind == "fp8" else 0)
    assert cuda.launches["rows_to_fp8"] == cuda.launches["_scaled_mm"]
