"""Triton's kernels compute what PyTorch computes: in Triton's interpreter, which needs no GPU."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from nvila_core import NVILA, Engine, NotFinite, SamplingParams
from nvila_core.checkpoint.loader import Checkpoint
from nvila_core.checkpoint.random_checkpoint import Shape, write_checkpoint
from nvila_core.engine import attention_choice, engine
from nvila_core.engine.batch import SequenceSlice
from nvila_core.engine.grouped_attention import GroupedAttention
from nvila_core.engine.kv_cache import KVCache
from nvila_core.models import fused, quantize, qwen2, staging
from nvila_core.models.fp8_rows import quantize_rows
from nvila_core.models.kernels import Switch, kernels_for, try_kernels
from nvila_core.models.merged import merge_projections
from nvila_core.models.quantize import Precision
from nvila_core.models.rotation import Rotation

pytest.importorskip("triton", reason="the kernels need Triton, which this machine lacks")

from nvila_core.engine import triton_attention
from nvila_core.engine.decode_graphs import Bucket, DecodeGraphs
from nvila_core.engine.triton_attention import Tiling, TritonAttention, TritonBatch
from nvila_core.kernels import layer

TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2}


@pytest.fixture
def interpreted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Use the kernels on the processor, where Triton interprets them."""
    monkeypatch.setattr(Switch, "interpreted", True)


def make_cache(dtype: torch.dtype, kv_heads: int, size: int, layers: int = 1) -> KVCache:
    made = KVCache(
        num_layers=layers,
        num_kv_heads=kv_heads,
        head_dim=size,
        num_blocks=20,
        block_size=16,
        dtype=dtype,
        device=torch.device("cpu"),
    )
    for held in (*made.keys, *made.values):
        held.normal_()
    return made


def attended(
    kind: Any, cache: KVCache, rows: list[SequenceSlice], heads: int, **options: Any
) -> tuple[torch.Tensor, ...]:
    """Return attention by row of `rows`, and the cache afterwards."""
    torch.manual_seed(1)
    attention = kind(cache, heads, **options)
    if kind is TritonAttention:  # several tiles a chunk, several passes a tile
        attention.chunks, attention.single_rows = Tiling(32, 16, 1, 1), Tiling(16, 16, 1, 1)
    planned = attention.plan(rows)
    total, size = sum(r.count for r in rows), cache.keys[0].shape[-1]
    kv_heads = cache.num_kv_heads
    merged = torch.randn(total, heads + 2 * kv_heads, size).to(cache.dtype)
    places = {i: slice(sum(r.count for r in rows[:i]), None) for i in range(len(rows))}
    order = [
        n for i in planned.order for n in range(places[i].start, places[i].start + rows[i].count)
    ]
    rotation = Rotation(planned.positions, torch.linspace(1, 0.1, size // 2), cache.dtype)
    out = planned.attend(0, merged[order], heads, rotation, size**-0.5)
    by_row = torch.empty_like(out)
    by_row[order] = out
    return by_row, cache.keys[0], cache.values[0]


MIXED = [
    SequenceSlice(40, 1, [3, 9, 1]),
    SequenceSlice(13, 9, [7, 2]),  # a chunk that begins inside a block
    SequenceSlice(0, 1, [4]),
    SequenceSlice(50, 1, [7, 2, 6, 8]),  # shares blocks with the chunk
]


@pytest.mark.parametrize(
    ("dtype", "heads", "kv_heads", "size", "processors"),
    [
        (torch.float32, 4, 2, 12, 1),  # the head is no power of two
        (torch.float32, 7, 1, 16, 8),  # the group neither; keys of single rows in parts
        (torch.bfloat16, 6, 1, 32, 4),
    ],
)
def test_the_kernel_equals_pytorch(
    dtype: torch.dtype, heads: int, kv_heads: int, size: int, processors: int
) -> None:
    # given the same cache twice, and chunks and single rows with prefixes in common
    torch.manual_seed(0)
    first = make_cache(dtype, kv_heads, size)
    second = make_cache(dtype, kv_heads, size)
    second.keys[0].copy_(first.keys[0])
    second.values[0].copy_(first.values[0])
    # when
    expected = attended(GroupedAttention, first, MIXED, heads)
    found = attended(TritonAttention, second, MIXED, heads, processors=processors)
    # then attention and what was stored are equal
    limit = TOLERANCE[dtype]
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=limit, atol=limit)


def test_a_batch_is_copied_at_once_and_builds_nothing_large(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # given a chunk of 2048 positions after 8192 others
    cache = make_cache(torch.float32, 1, 8)
    attention = TritonAttention(cache, 4)
    copied: list[int] = []

    def count(numbers: Any, device: torch.device) -> Any:
        copied.append(sum(array.nbytes for array in numbers))
        return staging.stage(numbers, device)

    monkeypatch.setattr(triton_attention, "stage", count)
    # when
    planned = attention.plan([SequenceSlice(8192, 2048, [0] * 640)])
    # then one copy of a few numbers for each row goes to the device
    (nbytes,) = copied
    assert nbytes < 2**20
    assert planned.tiles[:, 1].sum() == 2048
    assert planned.last_rows.tolist() == [2047]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_rows_with_keys_that_are_not_numbers_are_found(value: float) -> None:
    cache = make_cache(torch.float32, 1, 8)
    planned = TritonAttention(cache, 2).plan([SequenceSlice(0, 1, [0]), SequenceSlice(0, 2, [1])])
    qkv = torch.randn(3, 4, 8)  # two queries, a key and a value
    qkv[1, 3, 3] = value
    rotation = Rotation(planned.positions, torch.ones(4), torch.float32)
    planned.attend(0, qkv, 2, rotation, 1.0)
    assert planned.are_finite().tolist() == [True, False, True]


@pytest.mark.usefixtures("interpreted")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_norm_and_gate_equal_pytorch(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    x, residual = torch.randn(2, 3, 24).to(dtype)
    weight = torch.randn(24).to(dtype)

    def compute() -> tuple[Any, ...]:
        return (
            *fused.add_rms_norm(x, residual, weight, 1e-5),
            *fused.add_rms_norm(x, None, weight, 1e-5),
            fused.gated(x, F.silu),
        )

    found = compute()
    monkeypatch.setattr(Switch, "interpreted", False)
    limit = TOLERANCE[dtype]
    for a, b in zip(found, compute(), strict=True):
        torch.testing.assert_close(a, b, rtol=limit, atol=limit)


@pytest.mark.usefixtures("interpreted")
def test_kernels_that_do_not_compile_are_turned_off_before_a_model_uses_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # given kernels that run
    cpu = torch.device("cpu")
    monkeypatch.setattr(Switch, "disabled", False)
    try_kernels(cpu)
    assert kernels_for(torch.zeros(1)) is layer

    class Broken:
        def __getitem__(self, grid: Any) -> Any:
            raise RuntimeError("Failed to find C compiler.\nSet CC.")

    # when one no longer compiles
    monkeypatch.setattr(layer, "silu_mul", Broken())
    with pytest.warns(RuntimeWarning, match=r"cpu \(RuntimeError: Failed to find C compiler\.\)"):
        try_kernels(cpu)
    # then PyTorch computes
    assert kernels_for(torch.zeros(1)) is None


@pytest.mark.parametrize(
    ("slices", "processors", "apart"),
    [
        ([MIXED[0], MIXED[3]], 1, 2),  # attention is quantized by the product that follows
        ([MIXED[0], MIXED[3]], 16, 0),  # the keys are divided, and joined in FP8
        (MIXED, 16, 2),
    ],
)
def test_a_model_in_fp8_computes_the_same_whichever_kernel_quantizes_its_rows(
    slices: list[SequenceSlice],
    processors: int,
    apart: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # given a model of two layers in FP8
    folder = write_checkpoint(tmp_path / "model", Shape(hidden=64, inner=128))
    checkpoint = Checkpoint.open(folder)
    kinds = Precision("fp8", "fp8", "fp8")
    language = checkpoint.load(torch.bfloat16, torch.device("cpu"), kinds)[2]
    merge_projections(language.model)
    quantized: list[int] = []

    def count(x: torch.Tensor, gelu: bool = False) -> Any:
        quantized.append(len(x))
        return quantize_rows(x, gelu)

    monkeypatch.setattr(quantize, "quantize_rows", count)
    monkeypatch.setattr(Switch, "interpreted", True)

    def hidden() -> torch.Tensor:
        torch.manual_seed(3)
        cache = make_cache(torch.bfloat16, 2, 16, layers=2)
        batch = TritonAttention(cache, 4, processors).plan(slices)
        quantized.clear()
        embeds = torch.randn(len(batch.ids), 64).bfloat16()
        return language.forward_step(embeds, batch.positions, batch, range(len(batch.ids)))

    # when the kernels before each product quantize its rows
    found = hidden()
    # then few rows are quantized apart, and the result is the same
    assert len(quantized) == apart
    monkeypatch.setattr(qwen2, "reads_fp8", lambda *layers: False)
    expected = hidden()
    assert len(quantized) == 8
    limit = 0 if apart else 3e-2  # parts are joined in another order
    torch.testing.assert_close(found, expected, rtol=limit, atol=limit)


class ReplayedGraphs(DecodeGraphs):
    """Decode steps over static tensors, computed again where a GPU would replay a graph."""

    replayed = 0

    def _capture(self, bucket: Bucket) -> bool:
        logits, outcome = self.compute(bucket)
        graph: Any = Replay(self, bucket, logits, outcome)
        self._graphs[bucket.rows] = (graph, logits, outcome)
        bucket.batch.damaged.zero_()
        return True


class Replay:
    """What a bucket's graph would do: compute the step, and leave the results where they were."""

    def __init__(self, graphs: ReplayedGraphs, bucket: Bucket, *results: torch.Tensor) -> None:
        self._graphs, self._bucket, self._results = graphs, bucket, results

    def replay(self) -> None:
        self._graphs.replayed += 1
        computed = self._graphs.compute(self._bucket)
        for result, new in zip(self._results, computed, strict=True):
            result.copy_(new)


def replayed_graphs(model: NVILA, attention: Any, max_model_len: int) -> ReplayedGraphs:
    return ReplayedGraphs(model.language, attention, max_model_len, len(model.tokenizer))


@pytest.mark.slow
def test_rows_beside_a_chunk_are_computed_by_the_graph_and_stay_the_same(
    tiny_folder: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    # given two engines on the kernels, one of them with graphs, and a request that decodes
    monkeypatch.setattr(engine, "choose_attention", TritonAttention)
    plain = Engine(NVILA.from_pretrained(tiny_folder), kv_cache_tokens=256)
    monkeypatch.setattr(engine, "make_graphs", replayed_graphs)
    graphs = Engine(NVILA.from_pretrained(tiny_folder), kv_cache_tokens=256)
    params = SamplingParams(max_tokens=4, ignore_eos=True, temperature=1.0, seed=5)
    for each in (plain, graphs):
        each.submit(["One"], params)
        each.step()
        # when a step has a row of it beside the prompt of another
        each.submit(["Another"], params)
        each.step()
    # then the graph has computed the row, and both engines have drawn and stored the same
    assert isinstance(graphs.runner.graphs, ReplayedGraphs)
    assert graphs.runner.graphs.replayed == 1
    tokens = [[r.sequence.token_ids for r in each.scheduler.running] for each in (plain, graphs)]
    assert tokens[0] == tokens[1]
    assert [len(ids) for ids in tokens[0]] == [2, 1]
    for a, b in zip(plain.cache.keys, graphs.cache.keys, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("graphs", [False, True])
@pytest.mark.parametrize("all_kernels", [False, True])
def test_the_engine_on_the_kernels_answers_as_generate(
    all_kernels: bool,
    graphs: bool,
    tiny_folder: Any,
    pictures: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # given an engine on the kernels, which reads prompts in chunks
    monkeypatch.setattr(Switch, "interpreted", all_kernels)
    monkeypatch.setattr(engine, "choose_attention", TritonAttention)
    if graphs:
        monkeypatch.setattr(engine, "make_graphs", replayed_graphs)
    model = NVILA.from_pretrained(tiny_folder)
    runner = Engine(model, max_num_batched_tokens=48)
    params = SamplingParams(max_tokens=3, ignore_eos=True)
    photo = pictures.image()
    asks = [[photo, "What is it?"], ["short"], [photo, "What is it like?"]]
    # when requests with a common picture and text run together
    handles = [runner.submit(ask, params) for ask in asks]
    while runner.step():
        pass
    # then each answers as it does alone, in PyTorch
    assert handles[2].result(0).usage.cached_tokens > 0
    monkeypatch.setattr(Switch, "interpreted", False)
    for ask, handle in zip(asks, handles, strict=True):
        assert handle.result(0).token_ids == model.generate(ask, params).token_ids


def static_step(model: NVILA) -> tuple[DecodeGraphs, Bucket]:
    """Return what a graph of four rows would replay."""
    held = KVCache(
        num_layers=2,
        num_kv_heads=2,
        head_dim=12,
        num_blocks=8,
        block_size=16,
        dtype=torch.float32,
        device=torch.device("cpu"),
    )
    attention = TritonAttention(held, 4)
    graphs = DecodeGraphs(model.language, attention, 64, len(model.tokenizer))
    return graphs, Bucket(attention, 4, graphs.table_width)


def test_a_padded_step_with_static_tensors_computes_the_same(tiny_folder: Any) -> None:
    # given a model, and what a graph of four rows would replay
    model = NVILA.from_pretrained(tiny_folder)
    graphs, bucket = static_step(model)
    attention, held = graphs.attention, graphs.attention.cache
    # when steps of fewer rows fill it, and a sequence gets another block and another place
    blocks = [5, 1]
    first = [SequenceSlice(3, 1, [2], [70]), SequenceSlice(31, 1, blocks, [80])]
    blocks_later = [*blocks, 7]
    second = [SequenceSlice(32, 1, blocks_later, [90])]
    for slices in (first, second):
        bucket.fill(slices)
        with torch.inference_mode():
            logits, outcome = graphs.compute(bucket)
            planned = attention.plan(slices)
            hidden = model.language.forward_step(
                model.language.embed_rows(planned.ids),
                planned.positions,
                planned,
                planned.last_rows,
            )
            expected = model.language.logits(hidden, len(model.tokenizer))
        # then its rows are those of a step planned by itself
        count = len(slices)
        torch.testing.assert_close(logits[:count], expected, rtol=1e-5, atol=1e-5)
        assert outcome[0, :count].tolist() == expected.argmax(-1).tolist()
        assert outcome[1:, :count].tolist() == [[1] * count] * 2
    # and padding has stored nothing
    assert not held.keys[0][held.padding_block].any()
    assert not held.keys[0][0].any()


def embed_as_nan(model: NVILA, token: int) -> None:
    """Let a model embed a token as NaN, and draw it as often as before."""
    table = model.language.embedding_table
    head = torch.nn.Linear(table.shape[1], table.shape[0], bias=False)
    head.load_state_dict({"weight": table.clone()})
    model.language.lm_head = head  # tied to the table, every request would see the NaN
    with torch.no_grad():
        table[token] = float("nan")


def test_a_row_of_nan_harms_no_other_row_of_a_padded_step(tiny_folder: Any) -> None:
    # given a token that is embedded as NaN, and the static tensors of a graph of four rows
    model = NVILA.from_pretrained(tiny_folder)
    embed_as_nan(model, 90)
    graphs, bucket = static_step(model)
    held = graphs.attention.cache
    poisoned = SequenceSlice(20, 1, [3, 6], [90])
    sound = [SequenceSlice(3, 1, [2], [70]), SequenceSlice(31, 1, [5, 1], [80])]

    def compute(slices: list[SequenceSlice]) -> tuple[torch.Tensor, list[list[int]]]:
        bucket.fill(slices)
        with torch.inference_mode():
            logits, outcome = graphs.compute(bucket)
        return logits[: len(slices)].clone(), outcome[1:, : len(slices)].tolist()

    expected, _ = compute(sound)
    keys, values = [part.clone() for part in held.keys], [part.clone() for part in held.values]
    # when its row stands between two others and a row of padding
    logits, flags = compute([sound[0], poisoned, sound[1]])
    # then its logits and its keys are flagged, and the others are the same to the bit
    assert flags == [[1, 0, 1], [1, 0, 1]]
    assert logits[[0, 2]].equal(expected)
    assert logits[1].isnan().all()
    # and in the cache nothing but its own position has changed
    for before, now in zip((*keys, *values), (*held.keys, *held.values), strict=True):
        changed = (before != now).flatten(2).any(-1).nonzero().tolist()
        assert changed == [[6, 4]]
    # and without it the next step is sound, in which its row is padding
    again, flags = compute(sound)
    assert again.equal(expected)
    assert flags == [[1, 1], [1, 1]]


def test_a_request_of_nan_fails_alone_in_steps_by_graph(
    tiny_folder: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    # given three requests, and a token that only the answer to the second has
    asks, params = [["One"], ["cars"], ["And?"]], SamplingParams(max_tokens=3, ignore_eos=True)
    model = NVILA.from_pretrained(tiny_folder)
    answers = [model.generate(ask, params).token_ids for ask in asks]
    others = {*answers[0], *answers[2], *(t for ask in asks for t in model.prepare(ask).token_ids)}
    token = answers[1][0]
    assert token not in others
    # when the model embeds it as NaN, in an engine whose steps of three rows have one of padding
    embed_as_nan(model, token)
    monkeypatch.setattr(engine, "choose_attention", TritonAttention)
    monkeypatch.setattr(engine, "make_graphs", replayed_graphs)
    runner = Engine(model, kv_cache_tokens=256)
    handles = [runner.submit(ask, params) for ask in asks]
    while runner.step():
        pass
    # then it fails alone, and the others answer as before
    with pytest.raises(NotFinite):
        handles[1].result(0)
    assert [handles[n].result(0).token_ids for n in (0, 2)] == [answers[0], answers[2]]
    graphs = runner.runner.graphs
    assert isinstance(graphs, ReplayedGraphs)
    assert 4 in graphs._graphs
    # and nothing of it is left in the cache
    assert all(bool(part.isfinite().all()) for part in (*runner.cache.keys, *runner.cache.values))


class Changed:
    """A kernel, one of whose results is changed afterwards."""

    def __init__(self, kernel: Any, result: int) -> None:
        self.kernel, self.result = kernel, result

    def __getitem__(self, grid: Any) -> Any:
        def launch(*args: Any, **options: Any) -> None:
            self.kernel[grid](*args, **options)
            if args[self.result] is not args[0]:  # without a residual the sum is the input
                args[self.result].mul_(1.01)

        return launch


@pytest.mark.usefixtures("interpreted")
@pytest.mark.parametrize(
    ("kernel", "result", "problem"),
    [
        ("sum_and_norm", "normed", "the norm differs by"),
        ("sum_and_norm", "total", "the sum before the norm differs by"),
        ("silu_mul", "out", "the gate differs by"),
        ("rotate_and_store", "keys", "the attention differs by"),
        ("rotate_and_store", "values", "the attention differs by"),
    ],
)
def test_each_step_of_a_layer_is_compared_with_pytorch(
    kernel: str, result: str, problem: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # given kernels that are right
    cache = make_cache(torch.float32, 1, 12)
    assert attention_choice.check_kernels(cache, 2) == ""
    # when a result of one of them is wrong by a hundredth
    right = getattr(layer, kernel)
    monkeypatch.setattr(layer, kernel, Changed(right, right.arg_names.index(result)))
    # then the check says so
    assert attention_choice.check_kernels(cache, 2).startswith(problem)


def test_kernels_that_compute_wrong_numbers_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    # given kernels that are right
    cache = make_cache(torch.float32, 2, 16)
    assert attention_choice.check_attention(cache, 4) == ""
    # when the last of them computes nothing
    monkeypatch.setattr(TritonBatch, "_launch", lambda self, tiles, *_: None)
    monkeypatch.setattr(torch.Tensor, "new_empty", torch.Tensor.new_zeros)
    # then the check says which numbers are wrong
    assert "the attention differs by" in attention_choice.check_attention(cache, 4)
