"""Measure what weights in 8 and 4 bits save, cost and change, beside full precision.

    .venv/bin/python benchmarks/quantization.py [--hidden 768] [--rounds 5] [--dtype float32]
        [--device cpu] [--questions 20] [--golden FOLDER] [--cpu-time] [--mode fp8] [--json]

Memory and speed: a random NVILA-Lite of about 100 million parameters is loaded in one process for
each mode. The processes take turns, so that a busy machine slows all of them; the table has the
median of the ratios to full precision in each round. `--cpu-time` uses one thread and measures CPU
time, for machines that run other programs.

Agreement: the share of next tokens that stay the same when the model is shown the answer of the
full-precision model, on the demo checkpoint's held-out questions, and on the recorded prompts of
the original (`--golden`, or NVILA_GOLDEN). Accuracy: the share of right answers of the demo model.

On a CPU fp8 is emulated with the same rounding, which shows what it changes, and not what it costs;
`--mode` names the formats to measure, and with fp8 alone only agreement is measured.
"""

import argparse
import json
import multiprocessing
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median
from typing import Any

from report import publish

from nvila_core.quantization import QUANTIZATIONS

MODES = ("none", "int8", "int4")
PREFILL, DECODED = 512, 8
BATCHES = (1, 8)
CLIPS, STILLS = ("caption", "count", "colour", "direction"), ("caption", "exists")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--hidden", type=int, default=768, help="width of the random model")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--questions", type=int, default=20, help="questions of each kind")
    parser.add_argument("--golden", default=os.environ.get("NVILA_GOLDEN"))
    parser.add_argument("--cpu-time", action="store_true", help="measure CPU time with one thread")
    parser.add_argument("--mode", action="append", choices=QUANTIZATIONS, help="repeatable")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    modes = ["none", *(options.mode or MODES[1:])]
    costed = [mode for mode in modes if not mode.startswith("fp8") or options.device != "cpu"]
    costs = measure(options, costed) if costed != ["none"] else {}
    found = {mode: {**costs.get(mode, {}), **agreement(mode, options)} for mode in modes}
    names = list(found["none"])
    rows = [[name, *(found[mode].get(name, "-") for mode in modes)] for name in names]
    result = {
        "benchmark": "quantization",
        "dtype": options.dtype,
        "device": options.device,
        **found,
    }
    publish(result, ["", "full precision", *modes[1:]], rows)


def measure(options: argparse.Namespace, modes: list[str]) -> dict[str, dict[str, Any]]:
    """Measure memory, and speed as a ratio to full precision, of a random model."""
    from nvila_core.checkpoint.random_checkpoint import Shape, write_checkpoint

    shape = Shape(
        hidden=options.hidden,
        layers=12,
        heads=options.hidden // 64,
        kv_heads=options.hidden // 384 or 1,
        inner=options.hidden * 4 // 64 * 64,
        vision_hidden=384,
        vision_layers=7,
        vision_heads=6,
        vision_inner=1536,
        image=448,
    )
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as directory:
        folder = write_checkpoint(Path(directory) / "model", shape, shard_bytes=2**26)
        workers = {}
        for mode in modes:
            ours, theirs = context.Pipe()
            arguments = (theirs, folder, mode, options)
            process = context.Process(target=work, args=arguments, daemon=True)
            process.start()
            theirs.close()  # so that recv fails when the worker dies
            workers[mode] = (process, ours)
        found = {mode: ours.recv() for mode, (_, ours) in workers.items()}
        rounds = [one_round(workers) for _ in range(options.rounds)]
        for process, ours in workers.values():
            ours.send("end")
            process.join()
    for mode in modes:
        for task in rounds[0][mode]:
            ratios = [times["none"][task] / times[mode][task] for times in rounds]
            found[mode][f"{task}, times as fast"] = median(ratios)
    return found


def one_round(workers: dict[str, Any]) -> dict[str, dict[str, float]]:
    """Return the seconds of every task with every model; they take turns at each task."""
    times: dict[str, dict[str, float]] = {mode: {} for mode in workers}
    for task in ("tower", "prefill", *(f"decode of {n}" for n in BATCHES)):
        for mode, (_, ours) in workers.items():
            ours.send(task)
            times[mode][task] = ours.recv()
    return times


def work(pipe: Connection, folder: Path, mode: str, options: argparse.Namespace) -> None:
    """Load a model, then run the tasks that come through `pipe`; runs in its own process."""
    import torch

    from nvila_core import NVILA, Engine
    from nvila_core.models.quantize import weight_bytes

    device, clock = options.device, time.perf_counter
    if options.cpu_time:
        torch.set_num_threads(1)
        clock = time.process_time
    before = peak_memory(device)
    quantize = None if mode == "none" else mode
    model = NVILA.from_pretrained(folder, device=device, dtype=options.dtype, quantize=quantize)
    peak = peak_memory(device) - before
    pipe.send(
        {
            "language model, MB": weight_bytes(model.language) / 1e6,
            "vision tower, MB": weight_bytes(model.vision) / 1e6,
            "peak while loading, MB": peak / 1e6,
        }
    )
    torch.manual_seed(0)
    side = model.config.processor.size
    embeds = torch.randn(PREFILL, model.language.hidden_size, device=device, dtype=model.dtype)
    tiles = torch.randn(2, 3, side, side)
    engine = Engine(model, max_num_seqs=max(BATCHES), kv_cache_tokens=4096)
    while (task := pipe.recv()) != "end":
        if task.startswith("decode"):
            pipe.send(decode(engine, int(task.rpartition(" ")[2]), clock))
            continue
        began = clock()
        with torch.inference_mode():
            model.vision(tiles) if task == "tower" else model.language.hidden_states(embeds)
        if device.startswith("cuda"):
            torch.cuda.synchronize()
        pipe.send(clock() - began)


def decode(engine: Any, count: int, clock: Callable[[], float]) -> float:
    """Return the seconds for DECODED more tokens of each of `count` answers."""
    from nvila_core import SamplingParams

    params = SamplingParams(max_tokens=DECODED + 1, ignore_eos=True)
    for _ in range(count):
        engine.submit(["Describe the scene."], params)
    while engine.stats()["running"] < count or engine.stats()["waiting"]:
        engine.step()  # the prompts, and the first tokens
    began = clock()
    while engine.step():
        pass
    return clock() - began


def peak_memory(device: str) -> int:
    """Return the most bytes that this process has held so far, on its GPU or in main memory."""
    import torch

    if device.startswith("cuda"):
        return int(torch.cuda.max_memory_allocated())
    lines = Path("/proc/self/status").read_text().splitlines()
    # VmHWM also counts mapped pages, such as full-precision weights in the dtype on disk
    return 1024 * int(next(line for line in lines if line.startswith("VmHWM")).split()[1])


def agreement(mode: str, options: argparse.Namespace) -> dict[str, float]:
    """Return how often the next token stays the same, and how often the demo answers right."""
    from nvila_core import NVILA
    from nvila_core.demo import CHECKPOINT

    place: dict[str, Any] = {"device": options.device, "dtype": options.dtype}
    full = NVILA.from_pretrained(CHECKPOINT, **place)
    model = load(CHECKPOINT, mode, options)
    same, right = [], []
    for parts, answer in demo_questions(full.config.tile_side, options.questions):
        prompt = full.prepare(parts)
        same += compare(full, model, prompt)
        right.append(model.generate(prompt).text == answer)
    found = {
        "same next token, demo, %": 100 * sum(same) / len(same),
        "demo answers right, %": 100 * sum(right) / len(right),
    }
    if options.golden:
        same = []
        for folder, parts in golden_prompts(Path(options.golden)):
            full = NVILA.from_pretrained(folder, **place)
            model = load(folder, mode, options)
            same += compare(full, model, full.prepare(parts))
        found["same next token, golden, %"] = 100 * sum(same) / len(same)
    return found


def load(folder: Path, mode: str, options: argparse.Namespace) -> Any:
    """Return a model in a format; a CPU emulates FP8, which `from_pretrained` refuses there."""
    import torch

    from nvila_core import NVILA
    from nvila_core.checkpoint.loader import Checkpoint
    from nvila_core.models.quantize import Precision

    if options.device != "cpu" or not mode.startswith("fp8"):
        quantize = None if mode == "none" else mode
        return NVILA.from_pretrained(
            folder, device=options.device, dtype=options.dtype, quantize=quantize
        )
    precision = Precision("fp8" if mode == "fp8" else None, "fp8", "fp8")
    checkpoint = Checkpoint.open(folder)
    dtype = getattr(torch, options.dtype)
    vision, projector, language = checkpoint.load(dtype, torch.device("cpu"), precision)
    return NVILA(checkpoint.config, checkpoint.tokenizer, vision, projector, language)


def compare(full: Any, model: Any, prompt: Any) -> list[bool]:
    """Return, for each token of `full`'s answer, whether `model` would draw the same one next."""
    import torch

    from nvila_core import SamplingParams

    answer = full.generate(prompt, SamplingParams(max_tokens=48)).token_ids
    embeds = torch.cat([model.embed(prompt), model.language.embed(answer[:-1])])
    hidden = model.language.hidden_states(embeds)[-len(answer) :]
    guesses = model.language.logits(hidden, len(model.tokenizer)).argmax(-1).tolist()
    return [a == b for a, b in zip(guesses, answer, strict=True)]


def demo_questions(tile: int, count: int) -> Iterator[tuple[list[Any], str]]:
    """Yield prompts and right answers about scenes that training never used."""
    from nvila_core.demo.evaluate import held_out
    from nvila_core.demo.sampling import FIRST_EVALUATION_SEED

    looks = [("clip", kind) for kind in CLIPS] + [("tiled still", kind) for kind in STILLS]
    for number, (look, kind) in enumerate(looks):
        first = FIRST_EVALUATION_SEED + number * 10**6
        for parts, question in held_out(look, kind, count, first, tile):
            yield parts, question.answer


def golden_prompts(golden: Path) -> Iterator[tuple[Path, list[Any]]]:
    """Yield the recorded prompts, each with its checkpoint."""
    from PIL import Image
    from safetensors.torch import load_file

    from nvila_core import Video

    manifest = json.loads((golden / "manifest.json").read_text())
    pixels = load_file(golden / "inputs/pixels.safetensors")
    for name, record in manifest["cases"].items():
        case = name.split("__")[1]
        recipe = next(
            parts
            for names, parts in manifest["prompts"].items()
            for known in names.split("|")
            if case == known or (known.endswith("*") and case.startswith(known[:-1]))
        )
        parts: list[Any] = []
        for part in recipe:
            if part.startswith("inputs:"):
                parts.append(Image.fromarray(pixels[part.removeprefix("inputs:")].numpy()))
            elif part.startswith("video:"):
                parts.append(Video.from_path(golden / "inputs/clip_frames"))
            else:
                parts.append(part)
        yield golden / "checkpoints" / record["checkpoint"], parts


if __name__ == "__main__":
    main()
