"""How much of the card each kind of work uses; the tower and decode steps beside each other."""

import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from made import SHAPES, whole
from steps import Steps
from timing import device_ms, host_ms
from vision import flops

from nvila_core.engine.background_tower import BackgroundTower
from nvila_core.media.preprocess import Processor

GB, TERA = 1e9, 1e12


def peaks(device: torch.device) -> tuple[float, float]:
    """Return FLOP/s of a bfloat16 product, and bytes a second of a copy."""
    side, size = (8192, 2**31) if device.type == "cuda" else (256, 2**22)
    a = torch.randn(side, side, device=device, dtype=torch.bfloat16)
    source = torch.empty(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    product = device_ms(lambda: a @ a, device, 10)
    copy = device_ms(lambda: target.copy_(source), device, 10)
    return 2e3 * side**3 / product, 2e3 * size / copy


@torch.inference_mode()
def measure(
    device: torch.device, name: str = "2b", length: int = 9800, rows: int = 24, tiles: int = 16
) -> dict[str, Any]:
    """Return shares of the peaks, and the milliseconds of decode steps beside the tower.

    Args:
        length: positions of each sequence.
        rows: of a decode step.
        tiles: in a pass of the tower.
    """
    from nvila_core.engine.decode_graphs import DecodeGraphs
    from nvila_core.engine.triton_attention import TritonAttention
    from nvila_core.models.merged import merge_projections

    arithmetic, memory = peaks(device)
    shape = SHAPES[name]
    steps = Steps(name, device, length, rows)
    merge_projections(steps.model.model)
    attention = TritonAttention(steps.cache, shape.heads)
    layers = steps.model.model.layers
    weights = sum(p.numel() for p in layers.parameters())
    head = shape.hidden * steps.vocab
    found: dict[str, Any] = {"peaks": {"TFLOP/s": arithmetic / TERA, "copy GB/s": memory / GB}}
    chunk = min(2048, length // 2)
    for start in (0, (length - chunk) // 16 * 16):
        ms = host_ms(partial(steps.step, attention, steps.chunk(start, chunk)), device, 10)
        pairs = chunk * (start + chunk / 2) * shape.layers * shape.hidden
        found[f"chunk of {chunk} after {start}"] = {
            "ms": ms,
            "share of TFLOP/s": (2 * chunk * weights + 4 * pairs) / ms * 1e3 / arithmetic,
        }
    kv = 2 * shape.layers * shape.kv_heads * (shape.hidden // shape.heads) * 2
    single = steps.single_rows(rows)
    if device.type != "cuda":
        return found

    def decoder(stream: Any) -> Callable[[], None]:
        """Return a decode step whose kernels have the priority of a stream."""
        graphs = DecodeGraphs(steps.model, attention, length + 32, steps.vocab)
        graphs._stream = stream

        def decode() -> None:
            ran = graphs.run(single)
            assert ran is not None, "no graph"
            ran[1].tolist()

        return decode

    alone = host_ms(decoder(torch.cuda.Stream(device)), device, 20)
    found[f"decode step of {rows} rows"] = {
        "ms": alone,
        "share of GB/s": (2 * (weights + head) + rows * length * kv) / alone * 1e3 / memory,
    }
    model = whole(shape, device, torch.bfloat16)
    before = torch.cuda.memory_reserved(device)
    tower = BackgroundTower(model)
    pixels = np.random.default_rng(0).integers(
        0, 256, (tiles, shape.image, shape.image, 3), dtype=np.uint8
    )
    processor = Processor(shape.image)

    def encode() -> None:
        tower.start(list(pixels), processor).take()

    encode()
    by_graph = host_ms(encode, device, 10)
    launch: list[float] = []
    for _ in range(5):
        began = time.perf_counter()
        started = tower.start(list(pixels), processor)
        launch.append(1000 * (time.perf_counter() - began))
        started.take()
    found[f"tower, {tiles} tiles, by graph"] = {
        "ms": by_graph,
        "tiles/s": 1000 * tiles / by_graph,
        "share of TFLOP/s": tiles * flops(shape) / by_graph * 1e3 / arithmetic,
        "host ms to start it": min(launch),
        "memory of graphs and slots, MB": (torch.cuda.memory_reserved(device) - before) / 1e6,
    }
    found |= beside(tower, list(pixels), processor, decoder, device)
    return found


def beside(
    tower: BackgroundTower,
    pixels: list[Any],
    processor: Processor,
    decoder: Callable[[Any], Callable[[], None]],
    device: torch.device,
) -> dict[str, Any]:
    """Return milliseconds of passes and of decode steps while the other goes on."""
    found: dict[str, Any] = {}
    flying: list[Any] = []
    streams = {"same priority": 0, "tower of lower priority": -1}
    for label, priority in streams.items():
        stream: Any = torch.cuda.Stream(device, priority=priority)
        stream.wait_stream(torch.cuda.current_stream(device))
        decode = decoder(torch.cuda.Stream(device, priority=priority))
        with torch.cuda.stream(stream):
            decode()
            torch.cuda.synchronize(device)
            began, passes, times = time.perf_counter(), 0, []
            while time.perf_counter() - began < 2:
                while tower.has_room():
                    flying.append(tower.start(pixels, processor))
                step = time.perf_counter()
                decode()
                times.append(1000 * (time.perf_counter() - step))
                while flying and flying[0].is_done():
                    flying.pop(0).take()
                    passes += 1
            spent = time.perf_counter() - began
            while flying:
                flying.pop(0).take()
        found[f"side by side, {label}"] = {
            "decode ms, median": float(np.median(times)),
            "decode ms, 95 of 100": float(np.quantile(times, 0.95)),
            "steps/s": len(times) / spent,
            "tiles/s": passes * len(pixels) / spent,
        }
    return found
