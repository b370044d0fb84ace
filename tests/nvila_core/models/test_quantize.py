"""Weights in 8 and 4 bits: their size, their error, and that other layers stay unchanged."""

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from nvila_core import NVILA, CheckpointError, Engine, NVILAError, SamplingParams
from nvila_core.checkpoint.loader import Checkpoint
from nvila_core.checkpoint.random_checkpoint import Shape, write_checkpoint
from nvila_core.demo import CHECKPOINT
from nvila_core.demo.evaluate import held_out
from nvila_core.demo.sampling import FIRST_EVALUATION_SEED
from nvila_core.models.activations import GELU_TANH
from nvila_core.models.fp8_rows import quantize_rows
from nvila_core.models.quantize import (
    MAX_DEQUANTIZED,
    Format,
    Linear4,
    Linear8,
    LinearFP8,
    Precision,
    after_activation,
    check_kernel,
    choose_precision,
    quantized,
    require_fp8,
    split_rows,
    weight_bytes,
)

WAIT = 120
CPU = torch.device("cpu")
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
MAX_ERROR = {"int8": 0.015, "int4": 0.15, "fp8": 0.05}
"""Largest relative error of a product with random weights: steps are 1/127 of the largest of
hundreds of weights, or 1/7.5 of the largest of 32; FP8 has 3 bits after the first."""

KINDS = {"int8": Linear8, "int4": Linear4, "fp8": LinearFP8}
PRECISIONS = {
    "int8": Precision("int8", vision="int8"),
    "int4": Precision("int4", vision="int8"),
    "fp8": Precision("fp8", "fp8", "fp8"),
}


def load(quantize: str, dtype: torch.dtype = torch.float32) -> NVILA:
    """Load the shipped checkpoint in a precision; FP8 is emulated, which `quantize` refuses."""
    checkpoint = Checkpoint.open(CHECKPOINT)
    vision, projector, language = checkpoint.load(dtype, CPU, PRECISIONS[quantize])
    return NVILA(checkpoint.config, checkpoint.tokenizer, vision, projector, language)


def error(found: Tensor, expected: Tensor) -> float:
    """Return the relative error."""
    return float((found.float() - expected.float()).norm() / expected.float().norm())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("kind", "inputs"),
    [("int8", 80), ("int8", 128), ("int4", 96), ("int4", 128), ("int4", 256), ("fp8", 112)],
)
def test_a_product_is_close_to_that_of_the_full_weights(
    kind: Format, inputs: int, dtype: torch.dtype
) -> None:
    torch.manual_seed(1)
    full = nn.Linear(inputs, 48)
    layer = quantized(full.weight.detach(), kind, dtype)
    layer.bias = nn.Parameter(full.bias.detach().to(dtype), requires_grad=False)
    x = torch.randn(2, 5, inputs)

    with torch.inference_mode():
        found, expected = layer(x.to(dtype)), full(x)

    assert isinstance(layer, KINDS[kind])
    assert (found.shape, found.dtype) == (expected.shape, dtype)
    assert error(found, expected) < MAX_ERROR[kind]


@pytest.mark.parametrize("kind", KINDS)
def test_all_rows_are_quantized_in_parts(kind: Format) -> None:
    weight, x = torch.randn(208, 8192), torch.randn(3, 8192)
    assert [len(part) for part in split_rows(weight)] == [64, 64, 64, 16]

    with torch.inference_mode():
        found = quantized(weight.bfloat16(), kind, torch.float32)(x)

    assert error(found, x @ weight.T) < MAX_ERROR[kind]


@pytest.mark.parametrize("kind", ["int8", "int4"])
def test_every_weight_is_within_half_a_step(kind: Format) -> None:
    torch.manual_seed(2)
    weight = torch.randn(32, 128)
    weight[3], weight[4], weight[5, :64] = 0.0, 2.5, 1e4  # rows that have no spread, and outliers

    with torch.inference_mode():
        kept = quantized(weight, kind, torch.float32)(torch.eye(128)).T

    group = 128 if kind == "int8" else 64
    parts = weight.unflatten(1, (-1, group))
    reach = parts.abs().amax(-1) / 127 if kind == "int8" else (parts.amax(-1) - parts.amin(-1)) / 15
    # the offset of 4 bits and the identity's product are bfloat16, with 8 bits of mantissa
    blur = 2e-6 if kind == "int8" else 2**-7
    limit = reach[..., None] * 0.51 + blur * parts.abs().amax(-1, keepdim=True)
    assert (kept - weight).unflatten(1, (-1, group)).abs().le(limit).all()


def test_all_rows_are_dequantized_in_parts(monkeypatch: Any) -> None:
    layer, x = quantized(torch.randn(50, 64), "int8", torch.float32), torch.randn(3, 64)
    with torch.inference_mode():
        whole = layer(x)
        monkeypatch.setitem(MAX_DEQUANTIZED, "cpu", 64 * 7)  # 7 rows, which do not divide 50
        parts = layer(x)

    torch.testing.assert_close(parts, whole, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("shape", [(48, 80), (20, 64), (8, 64)])
def test_layers_that_the_4_bit_kernel_does_not_support_get_8_bits(shape: tuple[int, int]) -> None:
    assert isinstance(quantized(torch.randn(shape), "int4", torch.float32), Linear8)


@pytest.mark.parametrize("shape", [(48, 88), (24, 64)])
def test_layers_that_fp8_products_do_not_take_get_int8(shape: tuple[int, int]) -> None:
    assert isinstance(quantized(torch.randn(shape), "fp8", torch.float32), Linear8)


def test_fp8_rows_have_scales_of_their_own() -> None:
    # given rows of very different sizes, one of zeros, and some that are not finite
    x = torch.randn(5, 64) * torch.tensor([1e-4, 1.0, 1e4, 0.0, 1.0])[:, None]
    x[4, 7] = float("inf")
    # when
    codes, scales, _ = quantize_rows(x)
    # then each keeps three bits after the first, and what is not finite stays so
    kept = codes.float() * scales
    assert ((kept - x)[:4].abs() <= x[:4].abs() / 16 + scales[:4] * 2**-9).all()
    assert scales[3].isfinite().all()
    assert not kept[3].any()
    assert kept[4].isnan().all()


@torch.inference_mode()
def test_a_bias_is_added_apart_where_no_kernel_adds_it(monkeypatch: pytest.MonkeyPatch) -> None:
    # given cuBLASLt, which has no kernel with a bias for some numbers of rows
    asked: list[bool] = []

    def multiply(a: Tensor, b: Tensor, scale_a: Tensor, scale_b: Tensor, **rest: Any) -> Tensor:
        asked.append(rest.get("bias") is not None)
        if asked[-1]:
            raise RuntimeError("CUDA error: CUBLAS_STATUS_NOT_SUPPORTED when calling ...")
        return (a.float() @ b.float() * scale_a * scale_b).to(rest["out_dtype"])

    monkeypatch.setattr(torch, "_scaled_mm", multiply)
    layer = LinearFP8(torch.randn(16, 32))
    layer.bias = nn.Parameter(torch.randn(16), requires_grad=False)
    x = torch.randn(3, 32)
    # when
    found = [layer.scaled_product(quantize_rows(x)) for _ in range(2)]
    # then the product is right, and a kernel with a bias is tried once
    torch.testing.assert_close(found, [layer.product(x)] * 2)
    assert asked == [True, False, False]


def test_fp8_quantizes_what_gelu_gives() -> None:
    torch.manual_seed(4)
    layer, x = quantized(torch.randn(32, 64), "fp8", torch.float32), torch.randn(2, 3, 64)

    with torch.inference_mode():
        found = after_activation(layer, x, GELU_TANH)
        expected = layer(GELU_TANH(x))

    torch.testing.assert_close(found, expected)


@pytest.fixture(scope="module")
def demo() -> NVILA:
    """The shipped checkpoint in full precision."""
    return NVILA.from_pretrained(CHECKPOINT)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("quantize", KINDS)
def test_only_linear_layers_inside_the_blocks_are_quantized(
    demo: NVILA, quantize: str, dtype: str
) -> None:
    model = load(quantize, getattr(torch, dtype))
    layers = len(demo.language.model.layers)

    kinds = Counter(type(m).__name__ for m in model.language.modules())
    assert kinds[KINDS[quantize].__name__] == 7 * layers
    assert kinds["Linear"] == 0
    vision = Counter(type(m).__name__ for m in model.vision.modules())
    eight = "LinearFP8" if quantize == "fp8" else "Linear8"
    assert (vision[eight], vision["Linear"]) == (6 * model.config.vision.layers_run, 0)
    projector = Counter(type(m).__name__ for m in model.projector.modules())
    assert bool(projector["Linear"]) == (quantize != "fp8")
    assert model.dtype == getattr(torch, dtype)
    torch.testing.assert_close(
        model.language.embedding_table.float(), demo.language.embedding_table, atol=0.02, rtol=0
    )
    part = weight_bytes(model.language) / weight_bytes(demo.language)
    assert part < (0.25 if quantize == "int4" else 0.35)


def test_an_untied_head_keeps_its_precision(tmp_path: Path) -> None:
    shape = Shape(hidden=64, inner=128, heads=4, tied=False)
    folder = write_checkpoint(tmp_path / "untied", shape)

    model = NVILA.from_pretrained(folder, quantize="int4")

    assert isinstance(model.language.lm_head, nn.Linear)
    down = model.language.model.layers[1].get_submodule("mlp.down_proj")
    assert isinstance(down, Linear4)


@pytest.mark.parametrize(("quantize", "least"), [("int8", 0.97), ("int4", 0.85), ("fp8", 0.9)])
def test_the_next_token_is_nearly_always_the_same(demo: NVILA, quantize: str, least: float) -> None:
    # given questions that the model answers well in full precision
    model = load(quantize)
    size, same, total = demo.config.tile_side, 0, 0
    for kind, count in (("caption", 5), ("colour", 3)):
        for parts, _ in held_out("clip", kind, count, FIRST_EVALUATION_SEED, size):
            prompt = demo.prepare(parts)
            answer = demo.generate(prompt, SamplingParams(max_tokens=40)).token_ids
            # when each model predicts every token of the answer from those before it
            embeds = torch.cat([model.embed(prompt), model.language.embed(answer[:-1])])
            scores = model.language.logits(
                model.language.hidden_states(embeds), len(model.tokenizer)
            )
            guesses = scores[-len(answer) :].argmax(-1).tolist()
            same += sum(a == b for a, b in zip(guesses, answer, strict=True))
            total += len(answer)
    # then the predictions are mostly the same
    assert total > 70
    assert same / total >= least


@pytest.mark.parametrize("quantize", KINDS)
def test_the_engine_answers_as_generate_does(quantize: str, pictures: Any) -> None:
    requests = [
        ([pictures.image(120, 90), f"How many cars are there? {i}"], SamplingParams(max_tokens=12))
        for i in range(6)
    ]
    model = load(quantize)
    alone = [model.generate(*request).text for request in requests]

    with Engine(model, max_num_seqs=4) as engine:
        handles = [engine.submit(*request) for request in requests]
        together = [handle.result(WAIT).text for handle in handles]

    assert together == alone


def test_an_unknown_quantization_is_refused_before_reading(tmp_path: Path) -> None:
    with pytest.raises(NVILAError, match="Unknown quantization 'int2': use 'int8', 'int4'"):
        NVILA.from_pretrained(tmp_path / "not there", quantize="int2")
    with pytest.raises(CheckpointError):
        NVILA.from_pretrained(tmp_path / "not there", quantize="int8")


@pytest.mark.parametrize("kind", ["int8", "int4"])
def test_a_device_without_the_kernels_is_refused_in_one_sentence(kind: Format) -> None:
    with pytest.raises(NVILAError, match=f"Weights in {kind} do not work on meta") as caught:
        check_kernel(kind, torch.device("meta"), torch.float32)

    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("quantize", ["fp8", "fp8-vision"])
def test_fp8_is_refused_where_nothing_multiplies_it(quantize: str, tmp_path: Path) -> None:
    with pytest.raises(NVILAError, match=r"FP8 needs a GPU.* set quantize to int8"):
        NVILA.from_pretrained(tmp_path / "not there", quantize=quantize)


@pytest.mark.parametrize(
    ("capability", "dtype", "expected"),
    [
        ((8, 6), torch.bfloat16, "compute capability 8.9 or more .* has 8.6: set quantize to int8"),
        ((8, 9), torch.float16, "FP8 computes in bfloat16, not in float16: set dtype to auto"),
        ((8, 9), torch.bfloat16, None),
        ((9, 0), torch.bfloat16, None),
    ],
)
def test_fp8_needs_a_gpu_that_multiplies_it(
    capability: tuple[int, int], dtype: torch.dtype, expected: str | None, monkeypatch: Any
) -> None:
    # given a GPU
    made = SimpleNamespace(name="a card", major=capability[0], minor=capability[1])
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda *_: made)
    # when FP8 is asked for, then it is allowed, or refused with what to do
    if expected is None:
        require_fp8(torch.device("cuda"), dtype)
        return
    with pytest.raises(NVILAError, match=expected):
        require_fp8(torch.device("cuda"), dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_this_processor_has_the_kernels(dtype: torch.dtype) -> None:
    found = [choose_precision(mode, CPU, dtype) for mode in (None, "int8", "int4")]

    assert found == [None, PRECISIONS["int8"], PRECISIONS["int4"]]


PROGRAM = """
import json, sys, threading
import torch
from nvila_core import NVILA
import nvila_core.checkpoint.loader
import nvila_core.models.language_model, nvila_core.models.vision_tower
from nvila_core.models.quantize import weight_bytes
def own():  # without memory that is only mapped from files
    lines = open("/proc/self/status").read().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith("RssAnon")).split()[1])
base, peak, done = own(), [0], threading.Event()
def watch():
    while not done.wait(0.005):
        peak[0] = max(peak[0], own() - base)
thread = threading.Thread(target=watch)
thread.start()
model = NVILA.from_pretrained(sys.argv[1], quantize=sys.argv[2])
done.set()
thread.join()
parts = (model.vision, model.projector, model.language)
print(json.dumps({"peak": peak[0], "weights": sum(map(weight_bytes, parts))}))
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads /proc")
def test_loading_never_holds_the_full_weights(tmp_path: Path) -> None:
    # given 130 MB of float32 weights in small shards
    shape = Shape(hidden=512, layers=8, heads=8, inner=2048, vision_hidden=256)
    folder = write_checkpoint(tmp_path / "small", shape, dtype=torch.float32, shard_bytes=2**24)
    full = sum(file.stat().st_size for file in folder.rglob("*.safetensors"))
    # when they are loaded in 4 bits
    program = [sys.executable, "-c", PROGRAM, str(folder), "int4"]
    done = subprocess.run(program, capture_output=True, text=True, timeout=300, check=True)
    numbers = json.loads(done.stdout)
    # then the peak is the size of the quantized weights and some working memory
    assert full > 100 * 2**20
    assert numbers["weights"] < 0.25 * full
    assert numbers["peak"] < numbers["weights"] + 40 * 2**20
