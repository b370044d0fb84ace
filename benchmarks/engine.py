"""Measure the engine beside transformers' own `generate`, with the same weights in one run.

    .venv/bin/python benchmarks/engine.py ratios [--scenario a --scenario d] [--dtype float32
        --dtype bfloat16] [--json]
    .venv/bin/python benchmarks/engine.py curves [--svg docs/engine-curves.svg] [--json]
    .venv/bin/python benchmarks/engine.py gpu [--shape 2b|8b|tiny] [--json]

`ratios` measures four typical workloads; the two sides take turns within each round, and the median
round is printed. `curves` measures how the cost grows with requests, frames and tiles. `gpu`
measures the share of a GPU's peaks that is used, and how many captioning streams a GPU carries.

`generate` answers one request at a time. A request is a question and the decoded pictures of a
clip; resizing them counts on both sides. Each answer has exactly the requested number of tokens.
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from loads import SIZES
from report import publish

from nvila_core.checkpoint.random_checkpoint import Shape


def shape_of(args: argparse.Namespace, default: str) -> Shape:
    """Return the sizes of the model."""
    shape = SIZES[args.shape or default]
    return shape if args.tile is None else replace(shape, image=args.tile)


def only_dtype(args: argparse.Namespace) -> str | None:
    """Return the dtype, where one is measured; None: the default."""
    return args.dtype[-1] if args.dtype else None


def clock(args: argparse.Namespace) -> Callable[[], float]:
    """Return the clock to measure with."""
    return time.process_time if args.cpu_time else time.perf_counter


def ratios(args: argparse.Namespace, folder: Path) -> tuple[dict[str, Any], list[str], list[Any]]:
    """Measure the four workloads in each dtype; return results, header and rows."""
    from engine_ratios import SCENARIOS, Bench, measure

    results, rows = {}, []
    for dtype in args.dtype or ["float32"]:
        bench = Bench(
            folder,
            shape_of(args, "small"),
            dtype,
            args.max_num_batched_tokens,
            args.answer,
            args.sample,
            clock(args),
        )
        found = measure(bench, args.scenario or list(SCENARIOS), args.rounds)
        rows += [
            [dtype, f"({key}) {r['what']}", r["alone_s"], r["engine_s"], r["ratio"], r["aim"]]
            for key, r in found.items()
        ]
        results[dtype] = {
            "scenarios": found,
            "equal_answers": f"{bench.equal} of {bench.compared}",
        }
    return results, ["dtype", "", "one at a time, s", "engine, s", "ratio", "aim"], rows


def curves(args: argparse.Namespace, folder: Path) -> tuple[dict[str, Any], list[str], list[Any]]:
    """Measure how the cost grows, and draw it; return results, header and rows."""
    from engine_curves import Curves, draw, measure

    shape, dtype = shape_of(args, "small"), only_dtype(args) or "float32"
    points = measure(Curves(folder, shape, dtype, args.answer, clock(args)), args.limit)
    if args.svg:
        args.svg.write_text(draw(points))
    names = ("axis", "value", "positions", "seconds", "per_second", "alone_per_second")
    rows = [[point[name] for name in names] for point in points]
    header = ["what grows", "to", "positions", "seconds", "requests/s", "one at a time/s"]
    return {"points": points}, header, rows


def gpu(args: argparse.Namespace, folder: Path) -> tuple[dict[str, Any], list[str], list[Any]]:
    """Measure shares of peak and streams; return results, header and rows."""
    from engine_gpu import measure

    dtype, shape = only_dtype(args), shape_of(args, "2b")
    found = measure(folder, shape, args.device, dtype, args.seconds, args.limit)
    rows = [[name, *entry.values()] for name, entry in found.items()]
    return {"gpu": found}, ["", "measured", "of", "share"], rows


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("part", choices=("ratios", "curves", "gpu"))
    parser.add_argument("--shape", choices=SIZES, help="default: small; 2b on a GPU")
    parser.add_argument("--tile", type=int, help="pixels of a tile's side; default: the shape's")
    parser.add_argument(
        "--max-num-batched-tokens",
        type=int,
        help="positions in a step of the engine; default: its own",
    )
    parser.add_argument(
        "--dtype",
        action="append",
        choices=("float32", "bfloat16", "float16"),
        help="default: float32; bfloat16 on a GPU; repeatable for `ratios`",
    )
    parser.add_argument(
        "--device", default="cuda", help="device of `gpu`; cpu makes sense only with --shape tiny"
    )
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--answer", type=int, default=100, help="tokens in a caption")
    parser.add_argument(
        "--sample", type=int, default=8, help="requests that `generate` is timed on"
    )
    parser.add_argument(
        "--cpu-time", action="store_true", help="measure CPU time; use with --threads 1"
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--scenario", action="append", choices=list("abcd"), help="repeatable")
    parser.add_argument("--limit", type=int, default=64, help="most requests, frames or streams")
    parser.add_argument(
        "--seconds", type=float, default=60, help="duration of a trial with n streams"
    )
    parser.add_argument("--svg", type=Path, help="draw the curves into this file")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    with tempfile.TemporaryDirectory() as directory:
        parts = {"ratios": ratios, "curves": curves, "gpu": gpu}
        results, header, rows = parts[args.part](args, Path(directory) / "checkpoint")
    arguments = {key: str(value) for key, value in vars(args).items() if value is not None}
    publish({"results": results, "arguments": arguments}, header, rows)


if __name__ == "__main__":
    main()
