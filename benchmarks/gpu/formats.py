"""The tower and the language model in FP8, int8 and int4 beside bfloat16: time, memory, error.

Also products of many rows, for which weights may be widened in registers or in memory.
"""

from collections.abc import Callable, Sequence
from copy import deepcopy
from functools import partial
from itertools import product
from typing import Any
from unittest import mock

import torch
from made import SHAPES, language, projector, tower
from steps import Steps
from timing import device_ms, host_ms
from torch import Tensor, nn
from torch.nn import functional as F
from vision import flops

from nvila_core.models import quantized_products
from nvila_core.models.fp8_rows import quantize_rows
from nvila_core.models.merged import merge_projections, merge_tower
from nvila_core.models.quantize import Format, quantized, weight_bytes
from nvila_core.models.quantized_products import FEW_ROWS

FORMATS: tuple[Format, ...] = ("fp8", "int8", "int4")
MORE_THAN_CACHES = 2**28
"""Bytes of weights that no card's caches hold."""


def convert(module: nn.Module, kind: Format) -> None:
    """Quantize all linear layers inside a module, in place."""
    for name, linear in list(module.named_modules()):
        if type(linear) is nn.Linear:
            layer = quantized(linear.weight.detach(), kind, torch.bfloat16)
            layer.bias = linear.bias
            module.set_submodule(name, layer)


def difference(found: Tensor, expected: Tensor) -> dict[str, float]:
    """Return the relative error, and the smallest cosine of a row."""
    a, b = found.float().flatten(0, -2), expected.float().flatten(0, -2)
    cosines = F.cosine_similarity(a, b, dim=-1)
    return {"error": float((a - b).norm() / b.norm()), "least cosine": float(cosines.min())}


def recorded(model: nn.Module, kind: type[nn.Module], run: Callable[[], Any]) -> dict[str, Tensor]:
    """Return the outputs of the layers of a kind, by name, of one run."""
    found: dict[str, Tensor] = {}
    hooks = [
        module.register_forward_hook(lambda _m, _x, out, name=name: found.__setitem__(name, out))
        for name, module in model.named_modules()
        if isinstance(module, kind)
    ]
    run()
    for hook in hooks:
        hook.remove()
    return found


@torch.inference_mode()
def towers(device: torch.device, name: str, counts: tuple[int, ...]) -> dict[str, Any]:
    """Compare the tower and the projector in FP8 and in bfloat16."""
    shape, found = SHAPES[name], {}
    models = {"bf16": tower(shape, device, torch.bfloat16)}
    after = {"bf16": projector(shape, device, torch.bfloat16)}
    torch.manual_seed(0)
    models["fp8"], after["fp8"] = (
        tower(shape, device, torch.bfloat16),
        projector(shape, device, torch.bfloat16),
    )
    models["fp8"].load_state_dict(models["bf16"].state_dict())
    after["fp8"].load_state_dict(after["bf16"].state_dict())
    convert(models["fp8"].encoder, "fp8")
    convert(after["fp8"], "fp8")
    features, rows = {}, {}
    few = torch.rand(min(4, counts[-1]), 3, shape.image, shape.image, device=device) * 2 - 1
    for kind, model in models.items():
        merge_tower(model)
        rows[kind] = recorded(model.encoder, type(model.encoder.layers[0]), partial(model, few))
        features[kind] = model(few)
        found[f"tower, {kind}, MB"] = {"": weight_bytes(model) / 1e6}
    for layer, expected in rows["bf16"].items():
        if layer.rpartition(".")[2] in ("0", "12", str(shape.vision_layers - 2)):
            found[f"tower {layer}"] = difference(joined(rows["fp8"][layer]), joined(expected))
    found["tower's features"] = difference(features["fp8"], features["bf16"])
    embeds = {kind: after[kind](features[kind]) for kind in models}
    found["projector's output"] = difference(embeds["fp8"], embeds["bf16"])
    for count in counts:
        pixels = torch.randn(count, 3, shape.image, shape.image, device=device)
        for kind, model in models.items():
            ms = device_ms(partial(model, pixels), device, 10)
            found[f"tower, {kind}, {count} tiles"] = {
                "ms": ms,
                "tiles/s": 1000 * count / ms,
                "TFLOP/s": count * flops(shape) / ms / 1e9,
            }
        for kind in models:
            given = features[kind][:1].expand(count, -1, -1).contiguous()
            ms = device_ms(partial(after[kind], given), device, 10)
            found[f"projector, {kind}, {count} tiles"] = {"ms": ms}
    found |= parts(models, shape, device, min(16, counts[-1]))
    if device.type == "cuda":
        for kind, model in models.items():
            found[f"tower, {kind}, kernels of {count} tiles"] = kernels(partial(model, pixels))
    return found


def joined(out: Any) -> Tensor:
    """Return a layer's output, which may be in two parts that the next layer adds."""
    return out if isinstance(out, Tensor) else out[0] + out[1]


def parts(models: dict[str, Any], shape: Any, device: torch.device, tiles: int) -> dict[str, Any]:
    """Return milliseconds of the parts of one layer of the tower."""
    patches, width = (shape.image // shape.patch) ** 2, shape.vision_hidden
    x = torch.randn(tiles, patches, width, device=device, dtype=torch.bfloat16)
    wide = torch.randn(tiles, patches, shape.vision_inner, device=device, dtype=torch.bfloat16)
    calls: dict[str, Any] = {
        "quantize": lambda: quantize_rows(x.flatten(0, 1)),
        "quantize GELU": lambda: quantize_rows(wide.flatten(0, 1), gelu=True),
        "GELU": lambda: F.gelu(wide, approximate="tanh"),
    }
    for kind, model in models.items():
        layer = model.encoder.layers[0]
        calls[f"norm, {kind}"] = partial(layer.layer_norm1, x)
        calls[f"attention, {kind}"] = partial(layer.self_attn, x)
        calls[f"fc1, {kind}"] = partial(layer.mlp.fc1, x)
        calls[f"fc2, {kind}"] = partial(layer.mlp.fc2, wide)
        calls[f"feed-forward, {kind}"] = partial(layer.mlp, x)
    return {
        f"a layer of {tiles} tiles, {name}": {"ms": device_ms(call, device, 20)}
        for name, call in calls.items()
    }


def kernels(call: Callable[[], Any]) -> dict[str, float]:
    """Return the milliseconds of the slowest kernels of a call."""
    from torch.profiler import ProfilerActivity, profile

    call()
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CUDA]) as taken:
        call()
        torch.cuda.synchronize()
    events = sorted(taken.key_averages(), key=lambda e: -e.self_device_time_total)[:12]
    return {event.key[:60]: event.self_device_time_total / 1000 for event in events}


@torch.inference_mode()
def decoders(
    device: torch.device, name: str, length: int, counts: tuple[int, ...]
) -> dict[str, Any]:
    """Compare decode steps, replayed as graphs, and chunks of the language model."""
    from nvila_core.engine.decode_graphs import DecodeGraphs
    from nvila_core.engine.triton_attention import TritonAttention

    steps = Steps(name, device, length, max(counts))
    attention = TritonAttention(steps.cache, steps.shape.heads)
    chunk = min(2048, length // 2)
    works = {f"{n} rows": steps.single_rows(n) for n in counts}
    works |= {f"chunk of {n}": steps.chunk(0, n) for n in (chunk // 8, chunk)}
    found: dict[str, Any] = {}
    expected: dict[str, Tensor] = {}
    plain = {key: value.clone() for key, value in steps.model.state_dict().items()}
    for kind in (None, *FORMATS):
        if kind is not None:
            steps.model = language(steps.shape, device, torch.bfloat16)
            steps.model.load_state_dict(plain)
            convert(steps.model.model.layers, kind)
        merge_projections(steps.model.model)
        graphs = DecodeGraphs(steps.model, attention, length + 32, steps.vocab)
        label = f"{name} {kind or 'bf16'}"
        found[f"{label}, MB"] = {"": weight_bytes(steps.model) / 1e6}
        for work, rows in works.items():
            times: dict[str, Any] = {}
            logits = steps.step(attention, rows)[0]
            if kind is None:
                expected[work] = logits.clone()
            else:
                times |= difference(logits, expected[work])
                same = logits.argmax(-1) == expected[work].argmax(-1)
                times["same token"] = float(same.float().mean())
            step: Callable[[], Any] = partial(steps.step, attention, rows)
            if device.type == "cuda" and rows[0].count == 1:

                def step(rows: Any = rows, graphs: Any = graphs) -> Any:
                    ran = graphs.run(rows)
                    assert ran is not None, "no graph"
                    return ran[1].tolist()

            times["ms"] = host_ms(step, device, 10)
            found[f"{label}, {work}"] = times
        del graphs
        if device.type == "cuda":
            torch.cuda.empty_cache()
    return found


@torch.inference_mode()
def products(device: torch.device, name: str, counts: tuple[int, ...]) -> dict[str, Any]:
    """Time products whose weights are widened in registers, and in memory (`FEW_ROWS`).

    Each product has other weights than the one before, so that no cache holds them. In bfloat16
    nothing is widened: both numbers are of the same product.
    """
    shape = SHAPES[name]
    sizes = ((shape.hidden,) * 2, (shape.hidden, 2 * shape.inner), (shape.inner, shape.hidden))
    kinds: tuple[Format | None, ...] = (None, "int8", "int4")
    found: dict[str, Any] = {}
    for (inputs, outputs), kind in product(sizes, kinds):
        plain = nn.Linear(inputs, outputs, False, device, torch.bfloat16)
        layer = plain if kind is None else quantized(plain.weight, kind, torch.bfloat16)
        copies = MORE_THAN_CACHES // weight_bytes(layer) if device.type == "cuda" else 0
        layers = [layer, *(deepcopy(layer) for _ in range(copies))]
        for count in counts:
            x = torch.randn(count, inputs, device=device, dtype=torch.bfloat16)
            times = {}
            for way, few in {"registers": count, "memory": 0}.items():
                with mock.patch.object(quantized_products, "FEW_ROWS", few):
                    ms = device_ms(partial(multiply_all, layers, x), device)
                times[f"{way}, us"] = 1000 * ms / len(layers)
            found[f"{name} {kind or 'bf16'}, {inputs} x {outputs}, {count} rows"] = times
    return found


def multiply_all(layers: Sequence[nn.Module], x: Tensor) -> None:
    """Multiply rows by the weights of each layer."""
    for layer in layers:
        layer(x)


def measure(device: torch.device, small: bool = False) -> dict[str, Any]:
    """Return what each format takes and changes."""
    if small:
        found = towers(device, "tiny", (1, 2)) | decoders(device, "tiny", 64, (1, 2))
        return found | products(device, "tiny", (1, 128))
    found = towers(device, "2b", (1, 16, 32))
    for name in ("2b", "8b"):
        found |= products(device, name, (32, 64, 128, FEW_ROWS))
    found |= decoders(device, "2b", 2048, (1, 8, 32))
    return found | decoders(device, "8b", 2048, (1, 32))
