"""Count what the steps of the engine ask of a GPU, on a machine that has none.

    .venv/bin/python benchmarks/launches.py [--shape 2B --shape 8B] [--json]

The tensors have shapes and a device but no numbers (tests/support/fake_cuda.py), at the true sizes
of NVILA-Lite in bfloat16. Decode steps have 8 rows after 9,800 positions each; the chunk has 2,048
positions after 8,192. "PyTorch's groups" is what runs where the Triton kernels do not.
"""

import argparse
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

import torch
from report import publish

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from nvila_core import NVILA, SamplingParams
from nvila_core.checkpoint.random_checkpoint import write_checkpoint
from nvila_core.engine.grouped_attention import GroupedAttention
from nvila_core.models.kernels import Switch
from tests.support.fake_cuda import fake_cuda
from tests.support.fake_steps import SHAPES, make_runner, scheduled

ROWS, POSITIONS = 8, 9800
GREEDY = SamplingParams()
SAMPLED = SamplingParams(temperature=0.7, top_p=0.8, seed=1)
LIKELY = SamplingParams(temperature=0.7, top_p=0.8, seed=1, logprobs=2)
STEPS: dict[str, tuple[SamplingParams, bool, bool, bool]] = {
    "decode, PyTorch's groups": (GREEDY, False, False, True),
    "decode, kernels": (GREEDY, False, True, True),
    "decode, by graph": (GREEDY, True, True, True),
    "decode, by graph, sampled": (SAMPLED, True, True, True),
    "decode, by graph, sampled, logprobs=2": (LIKELY, True, True, True),
    "chunk, PyTorch's groups": (GREEDY, False, False, False),
    "chunk, kernels": (GREEDY, False, True, False),
}
"""By name: how tokens are drawn, whether a graph runs, whether the kernels do, and whether the step
decodes."""


def count(model: NVILA, shape: str, step: str) -> dict[str, int]:
    """Return what one step asks of the device, after one that captures its graph."""
    params, by_graph, kernels, decodes = STEPS[step]
    with fake_cuda() as cuda:
        if decodes:
            items = [scheduled(model, POSITIONS, POSITIONS - 1, 1, params) for _ in range(ROWS)]
        else:
            items = [scheduled(model, 10_240, 8192, 2048, params)]
        Switch.disabled = not kernels
        runner = make_runner(shape, torch.bfloat16, graphs=by_graph)
        if not kernels:
            runner.attention = GroupedAttention(
                runner.attention.cache, SHAPES[shape].num_attention_heads
            )
        if by_graph:
            runner.forward(items)
        cuda.reset()
        runner.forward(items)
        return {
            "launches": cuda.launches.total(),
            "copies in": cuda.copies_in,
            "copies out": cuda.copies_out,
            "waits": cuda.waits,
            "bytes in": cuda.bytes_in,
            "bytes out": cuda.bytes_out,
            "largest array of the host, bytes": cuda.host_bytes,
        }


def main() -> None:
    """Count and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", action="append", choices=SHAPES, help="repeatable; default: all")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    warnings.filterwarnings("ignore", "Accessing the data pointer of FakeTensor")
    with tempfile.TemporaryDirectory() as folder:
        model = NVILA.from_pretrained(write_checkpoint(Path(folder) / "tiny"))
    found: dict[str, dict[str, Any]] = {}
    for shape in args.shape or SHAPES:
        for step in STEPS:
            found[f"{shape}: {step}"] = count(model, shape, step)
    header = ["step", *next(iter(found.values()))]
    publish({"results": found}, header, [[name, *row.values()] for name, row in found.items()])


if __name__ == "__main__":
    main()
