"""Compare float32 with bfloat16 on the CPU of a machine that is lent for minutes; see README.md.

    python benchmarks/gpu/cpu_dtypes.py [--threads 2 --threads 8] [--seconds 75] [--part answers]

The weights are kept in oneDNN's order ("packed", as in the engine), or as PyTorch keeps them
("plain"). `answers` counts the right answers of the demo model in both dtypes; `products` times a
layer of 2B and its output head; `2b` and `demo` time decoding steps, chunks of a prompt and tiles,
in milliseconds. `2b` has a quarter of the layers, and random weights.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
sys.path.insert(0, str(Path(__file__).resolve().parent))

import absent

MISSING = absent.install()

import torch  # noqa: E402
from torch import Tensor, nn  # noqa: E402

Results = dict[str, dict[str, Any]]
CPU = torch.device("cpu")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
QUESTIONS = 25
"""Questions of each of the demo's tests."""
VARIANTS = (("float32", True), ("bfloat16", True), ("bfloat16", False))
"""Dtypes of the timed steps, and whether the weights are packed."""
PRODUCTS = {"gate and up": (1536, 17920), "head": (1536, 151936)}
"""Inputs and outputs of 2B's largest layer, and of its output head."""
POSITIONS = 20480
"""Room for 16 sequences of a clip in 2B."""


class Clock:
    """Says when the time is up."""

    def __init__(self, seconds: float) -> None:
        self.ends = time.perf_counter() + seconds

    def is_over(self) -> bool:
        """Return whether no more measurements should begin."""
        return time.perf_counter() > self.ends


def machine() -> Results:
    """Describe the processor, as PyTorch sees it."""
    from nvila_core.models.device import multiplies_bfloat16
    from nvila_core.models.packed_linear import can_pack

    lines = Path("/proc/cpuinfo").read_text().splitlines()
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    facts = {
        "cpu": next(names, "unknown"),
        "torch": torch.__version__,
        "instructions used": torch.backends.cpu.get_cpu_capability(),
        "multiplies bfloat16": multiplies_bfloat16(),
        "can be packed": [name for name, dtype in DTYPES.items() if can_pack(dtype)],
        "missing libraries": MISSING,
    }
    return {name: {"": str(value)} for name, value in facts.items()}


def fastest_ms(call: Callable[[], object], times: int = 15, seconds: float = 0.15) -> float:
    """Return the milliseconds of the fastest call; the first one warms up."""
    found: list[float] = []
    call()
    while not found or (len(found) < times and sum(found) < seconds):
        began = time.perf_counter()
        call()
        found.append(time.perf_counter() - began)
    return 1000 * min(found)


@torch.inference_mode()
def products(threads: list[int], clock: Clock) -> Results:
    """Time single layers, and the output head, by rows."""
    from made import fill_noise

    from nvila_core.models.packed_linear import PackedLinear, can_pack

    def head(weight: Tensor, x: Tensor) -> Tensor:
        return weight @ x.T  # as the language model does

    found: Results = {}
    for count in threads:
        torch.set_num_threads(count)
        for layer, (inputs, outputs) in PRODUCTS.items():
            weight = torch.empty(outputs, inputs)
            fill_noise(weight)
            for name, dtype in DTYPES.items():
                linear = nn.Linear(inputs, outputs, bias=False, device="meta")
                linear.weight = nn.Parameter(weight.to(dtype))
                calls: dict[str, Callable[[Tensor], Tensor]] = {f"{name} plain": linear}
                if layer == "head":
                    calls = {f"{name} plain": partial(head, linear.weight)}
                if can_pack(dtype):
                    calls[f"{name} packed"] = PackedLinear(linear)
                for rows in (1, 4, 16, 128):
                    if clock.is_over():
                        return found
                    x = torch.randn(rows, inputs).to(dtype)
                    row = found.setdefault(f"{layer}, {rows} rows, {count} threads", {})
                    for label, call in calls.items():
                        row[label] = fastest_ms(partial(call, x))
    return found


def answers(threads: list[int], clock: Clock) -> Results:
    """Count the demo model's right answers, and those that are the same in both dtypes."""
    from nvila_core import NVILA, Engine, SamplingParams
    from nvila_core.demo import CHECKPOINT
    from nvila_core.demo.evaluate import TESTS, held_out
    from nvila_core.demo.sampling import FIRST_EVALUATION_SEED

    torch.set_num_threads(max(threads))
    models = {
        name: NVILA.from_pretrained(CHECKPOINT, dtype=dtype) for name, dtype in DTYPES.items()
    }
    model, expected, prompts = models["float32"], [], []
    for number, (form, kind) in enumerate(TESTS):
        if form == "still in one tile":  # shows what cannot be read there
            continue
        seed = FIRST_EVALUATION_SEED + number * 10**6
        for parts, question in held_out(form, kind, QUESTIONS, seed, model.config.processor.size):
            prompts.append(model.prepare(parts))
            expected.append(question.answer)
    texts: dict[str, list[str]] = {}
    found: Results = {}
    params = SamplingParams(max_tokens=64, temperature=0.0)
    for name, other in models.items():
        engine = Engine(other)
        began = time.perf_counter()
        handles = [engine.submit(prompt, params) for prompt in prompts]
        while engine.step():
            pass
        texts[name] = [handle.result().text for handle in handles]
        found[f"{name}, {max(threads)} threads"] = {
            "right": sum(a == b for a, b in zip(texts[name], expected, strict=True)),
            "of": len(expected),
            "seconds": time.perf_counter() - began,
        }
    same = sum(a == b for a, b in zip(*texts.values(), strict=True))
    found["the same text"] = {"": same, "of": len(expected)}
    return found


@torch.inference_mode()
def steps(
    load: Callable[[torch.dtype], Any], threads: list[int], clock: Clock, tiles: tuple[int, ...]
) -> Results:
    """Time decoding steps, chunks and tiles of a model.

    Args:
        load: returns the `NVILA` in a dtype.
        threads: numbers of threads.
        clock: says when to stop.
        tiles: tiles in a pass of the tower.
    """
    from nvila_core.models.packed_linear import can_pack, pack_linears
    from nvila_core.tuning.step_timer import StepTimer

    plain = patch("nvila_core.engine.engine.pack_linears", lambda module: 0)
    found: Results = {}
    for name, packed in VARIANTS:
        if clock.is_over() or (packed and not can_pack(DTYPES[name])):
            continue
        model = load(DTYPES[name])
        with nullcontext() if packed else plain:
            timer = StepTimer(model, POSITIONS)
        if packed:
            pack_linears(model.vision)
            pack_linears(model.projector)
        works = {f"decode, {n} rows": partial(timer.decode, n) for n in (1, 4, 16)}
        works["chunk of 128"] = partial(timer.prefill, 128)
        works |= {f"{n} tiles": partial(timer.tiles, n) for n in tiles}
        for work, measure in works.items():
            for count in threads:
                if clock.is_over():
                    return found
                torch.set_num_threads(count)
                row = found.setdefault(f"{work}, {count} threads", {})
                row[f"{name} {'packed' if packed else 'plain'}"] = 1000 * measure()
    return found


def demo(threads: list[int], clock: Clock) -> Results:
    """Time the steps of the demo model."""
    from nvila_core import NVILA
    from nvila_core.demo import CHECKPOINT

    def load(dtype: torch.dtype) -> NVILA:
        return NVILA.from_pretrained(CHECKPOINT, dtype=dtype)

    return steps(load, threads, clock, (1, 16))


def quarter_2b(threads: list[int], clock: Clock) -> Results:
    """Time the steps of a quarter of 2B: 7 of 28 decoder layers, 7 of 26 of the tower, the head."""
    from made import SHAPES, whole

    shape = replace(SHAPES["2b"], layers=7, vision_layers=8)
    return steps(lambda dtype: whole(shape, CPU, dtype), threads, clock, (2,))


PARTS = {"products": products, "2b": quarter_2b, "answers": answers, "demo": demo}


def main() -> None:
    """Run the parts, and print after each what it measured."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, action="append", help="repeatable; default: 2 and 8")
    parser.add_argument("--seconds", type=float, default=75, help="begin no measurement after that")
    parser.add_argument("--part", choices=PARTS, action="append", help="repeatable; default: all")
    parser.add_argument("--out", type=Path, help="write the results into this JSON file")
    args = parser.parse_args()
    threads, clock = args.threads or [2, 8], Clock(args.seconds)
    results = {"machine": machine()}
    show("machine", results["machine"], 0)
    for name in args.part or PARTS:
        began = time.perf_counter()
        if clock.is_over():
            print(f"\n## {name}: left out, the time is up", flush=True)
            continue
        results[name] = PARTS[name](threads, clock)
        show(name, results[name], time.perf_counter() - began)
    if args.out:
        args.out.write_text(json.dumps(results, indent=2))


def show(name: str, found: Results, seconds: float) -> None:
    """Print one part's results."""
    print(f"\n## {name} ({seconds:.0f} s)", flush=True)
    for label, row in found.items():
        cells = (f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in row.items())
        print(f"{label}: {', '.join(cells)}", flush=True)


if __name__ == "__main__":
    main()
