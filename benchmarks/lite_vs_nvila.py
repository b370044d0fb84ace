"""Compare NVILA-Lite with NVILA at the same width: tokens, FLOPs, time and memory.

    .venv/bin/python benchmarks/lite_vs_nvila.py flops [--shape 2b|8b] [--json]
    .venv/bin/python benchmarks/lite_vs_nvila.py time [--shape small|2b|8b] [--device cuda] [--json]

`flops` counts at the true size, with PyTorch's FlopCounterMode on modules without memory (`meta`):
a multiplication and an addition are two FLOPs, and attention covers the full square. `time` runs
random weights; "small" keeps the 448-pixel tiles and their token counts and reduces the widths, so
that two cores can run it. The models take turns within each round, and the median round is printed.
Peak memory is the most that the allocator held beyond the weights, in a run of its own.
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import accumulate
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from PIL import Image
from report import publish
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from nvila_core import NVILA, Prompt, SamplingParams, Video
from nvila_core.checkpoint.config_reader import read_model
from nvila_core.checkpoint.random_checkpoint import (
    SHAPES,
    SIGLIP,
    Shape,
    byte_tokenizer,
    language_config,
    model_config,
    preprocessor_config,
    vision_config,
    write_checkpoint,
)
from nvila_core.json_fields import Fields
from nvila_core.models.attention import SequenceCache
from nvila_core.models.language_model import LanguageModel
from nvila_core.models.projector import build_projector
from nvila_core.models.vision_tower import VisionTower
from nvila_core.prompt.tokenizer import Tokenizer

SMALL = replace(
    SIGLIP,
    vision_hidden=192,
    vision_layers=3,
    vision_heads=4,
    vision_inner=768,
    hidden=256,
    layers=4,
    heads=4,
    kv_heads=2,
    inner=1024,
    vocab=8192,
)
SIZES = {"small": SMALL, "2b": SHAPES["2b"], "8b": SHAPES["8b"]}
KINDS: dict[str, dict[str, Any]] = {
    "NVILA-Lite": {"projector": "mlp_downsample_3x3_fix"},
    "NVILA": {"projector": "mlp_downsample", "scales": 3},
    # Lite with the other projector: what 3x3 alone changes
    "Lite with 2x2": {"projector": "mlp_downsample_2x2_fix"},
}
QUESTION = "Please describe what happens."
STAGES = ("tower", "projector", "prefill", "answer")


def scenes() -> dict[str, list[Any]]:
    """Return the prompts: eight frames of a 16:9 video, and one 16:9 picture."""
    random = np.random.default_rng(0)
    frames = [
        Image.fromarray(random.integers(0, 256, (720, 1280, 3), dtype=np.uint8)) for _ in range(8)
    ]
    return {
        "8 video frames": [Video(frames), QUESTION],
        "one 1280x720 picture": [frames[0], QUESTION],
    }


@dataclass
class Run:
    """One model on one prompt, stage by stage; each stage needs the one before."""

    model: NVILA
    prompt: Prompt
    answer: int
    state: Any = None

    def tower(self) -> None:
        self.state = self.model.vision(self.prompt.pixel_values)

    def projector(self) -> None:
        self.state = self.model.media_positions(self.state, self.prompt.media)

    @torch.inference_mode()
    def prefill(self) -> None:
        language = self.model.language
        cache = SequenceCache()
        hidden = language.hidden_states(self.model.splice(self.prompt, self.state), cache)
        language.logits(hidden[-1], len(self.model.tokenizer))
        self.state = cache

    @torch.inference_mode()
    def decode(self) -> None:
        language = self.model.language
        for _ in range(self.answer - 1):
            hidden = language.hidden_states(language.embed([0]), self.state)
            language.logits(hidden[-1], len(self.model.tokenizer))


def without_memory(folder: Path, shape: Shape) -> NVILA:
    """Return a model of `shape` on the meta device, which counts operations without computing."""
    byte_tokenizer(shape.context).write(folder)
    files = (model_config, language_config, vision_config, preprocessor_config)
    top, llm, tower, processor = (Fields(file(shape), file.__name__) for file in files)
    config = read_model(top, llm, tower, processor, shape.projector)
    with torch.device("meta"):
        vision, language = VisionTower(config.vision), LanguageModel(config.llm).to("meta")
        projector = build_projector(shape.projector, config.projector_input, shape.hidden)
    return NVILA(config, Tokenizer(folder), vision, projector, language)


def count_flops(model: NVILA, prompt: Prompt, answer: int) -> dict[str, float]:
    """Return the GFLOP of each stage; "answer" is all stages and `answer` tokens."""
    run, flops = Run(model, prompt, answer), {}
    for stage in ("tower", "projector", "prefill", "decode"):
        # The counter knows the plain products of the math backend on every device.
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            getattr(run, stage)()
        flops[stage] = counter.get_total_flops() / 1e9
    flops["answer"] = sum(flops.values())
    return flops


def peak_memory(call: Callable[[], None], device: torch.device) -> float:
    """Return the most MB that `call` held beyond what was held before it."""
    if device.type == "cuda":
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        call()
        torch.cuda.synchronize()
        return (torch.cuda.max_memory_allocated() - before) / 1e6
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        call()
    events = profiler.profiler.kineto_results.events()
    changes = sorted((e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]")
    return float(max(accumulate(change for _, change in changes))) / 1e6


def milliseconds(call: Callable[[], None], device: torch.device) -> float:
    """Return how long `call` takes."""
    began = time.perf_counter()
    call()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return 1000 * (time.perf_counter() - began)


def measure(
    model: NVILA,
    parts: list[Any],
    answer: int,
    gauge: Callable[[Callable[[], None], torch.device], float],
) -> dict[str, float]:
    """Return the value of `gauge` for each stage; "answer" is a whole `generate`."""
    prompt = model.prepare(parts)
    run = Run(model, prompt, answer)

    def generate() -> None:
        model.generate(prompt, SamplingParams(max_tokens=answer, ignore_eos=True))

    calls = {stage: getattr(run, stage) for stage in STAGES[:-1]} | {"answer": generate}
    return {stage: gauge(call, model.device) for stage, call in calls.items()}


def shapes_of(size: str) -> dict[str, Shape]:
    """Return the shapes of the compared models at one size."""
    return {name: replace(SIZES[size], **changes) for name, changes in KINDS.items()}


def counted(size: str, prompts: dict[str, list[Any]], answer: int, root: Path) -> dict[str, Any]:
    """Return positions and FLOPs of every model and prompt at the true size."""
    results: dict[str, Any] = {}
    for name, shape in shapes_of(size).items():
        model = without_memory(root / name, shape)
        for scene, parts in prompts.items():
            prompt = model.prepare(parts)
            results[f"{scene}, {name}"] = {
                "tiles": prompt.tiles,
                "vision_tokens": prompt.vision_tokens,
                "positions": prompt.num_tokens,
                "gflops": count_flops(model, prompt, answer),
            }
    return results


def timed(prompts: dict[str, list[Any]], args: argparse.Namespace, root: Path) -> dict[str, Any]:
    """Return median milliseconds and peak MB of every model and prompt on random weights."""
    models = {
        name: NVILA.from_pretrained(
            write_checkpoint(root / name, shape, shard_bytes=2**30), args.device, args.dtype
        )
        for name, shape in shapes_of(args.shape).items()
    }
    rounds: dict[str, list[dict[str, float]]] = {}
    peaks: dict[str, dict[str, float]] = {}
    for number in range(args.rounds + 1):
        order = list(models.items())
        for name, model in order if number % 2 else reversed(order):
            for scene, parts in prompts.items():
                key = f"{scene}, {name}"
                if number:
                    result = measure(model, parts, args.answer, milliseconds)
                    rounds.setdefault(key, []).append(result)
                else:  # the first round also warms up
                    peaks[key] = measure(model, parts, args.answer, peak_memory)
    return {
        key: {
            "ms": {stage: median(run[stage] for run in rounds[key]) for stage in STAGES},
            "peak_mb": peaks[key],
        }
        for key in sorted(peaks)
    }


def main() -> None:
    """Count or measure, and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("part", choices=("flops", "time"))
    parser.add_argument("--shape", choices=SIZES, help="default: 2b for flops, small for time")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--answer", type=int, default=32, help="tokens in the whole answer")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    args.shape = args.shape or ("2b" if args.part == "flops" else "small")
    prompts = scenes()
    with tempfile.TemporaryDirectory() as directory:
        if args.part == "flops":
            results = counted(args.shape, prompts, args.answer, Path(directory))
            columns = ["tiles", "vision_tokens", "positions"]
            header = [
                "prompt, model",
                *columns,
                *(f"{stage} GFLOP" for stage in (*STAGES[:-1], "decode", "answer")),
            ]
            rows = [
                [key, *(r[c] for c in columns), *(round(v) for v in r["gflops"].values())]
                for key, r in results.items()
            ]
        else:
            results = timed(prompts, args, Path(directory))
            header = [
                "prompt, model",
                *(f"{s} ms" for s in STAGES),
                *(f"{s} peak MB" for s in STAGES),
            ]
            rows = [
                [
                    key,
                    *(round(r["ms"][s]) for s in STAGES),
                    *(round(r["peak_mb"][s]) for s in STAGES),
                ]
                for key, r in results.items()
            ]
    publish({"results": results, "arguments": vars(args)}, header, rows)


if __name__ == "__main__":
    main()
