"""Count what the steps of the engine ask of a GPU, on a machine that has none.

    .venv/bin/python benchmarks/launches.py [--shape 2B --shape 8B] [--rows 8] [--json]

The tensors have shapes and a device but no numbers (tests/support/fake_cuda.py), at the true sizes
of NVILA-Lite, in bfloat16 where no other format of the weights is named. Decode steps have 9,800
positions before each row; the chunk has 2,048 positions after 8,192. "PyTorch's groups" is what
runs where the Triton kernels do not.
"""

import argparse
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any, NamedTuple, get_args

import torch
from report import publish

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from nvila_core import NVILA, SamplingParams
from nvila_core.checkpoint.random_checkpoint import write_checkpoint
from nvila_core.engine.grouped_attention import GroupedAttention
from nvila_core.models.kernels import Switch
from nvila_core.models.quantize import Format
from tests.support.fake_cuda import fake_cuda
from tests.support.fake_steps import SHAPES, make_runner, scheduled

POSITIONS = 9800
GREEDY = SamplingParams()
SAMPLED = SamplingParams(temperature=0.7, top_p=0.8, seed=1)
LIKELY = SamplingParams(temperature=0.7, top_p=0.8, seed=1, logprobs=2)


class Step(NamedTuple):
    """What a step does.

    Attributes:
        params: how tokens are drawn.
        graph: whether a CUDA graph runs it.
        kernels: whether the Triton kernels run.
        decodes: whether its rows decode; else it is a chunk of a prompt.
        kind: format of the weights; None: bfloat16.
    """

    params: SamplingParams = GREEDY
    graph: bool = False
    kernels: bool = True
    decodes: bool = True
    kind: Format | None = None


STEPS = {
    "decode, PyTorch's groups": Step(kernels=False),
    "decode, kernels": Step(),
    **{f"decode, kernels, {kind}": Step(kind=kind) for kind in get_args(Format)},
    "decode, by graph": Step(graph=True),
    "decode, by graph, sampled": Step(SAMPLED, graph=True),
    "decode, by graph, sampled, logprobs=2": Step(LIKELY, graph=True),
    "chunk, PyTorch's groups": Step(kernels=False, decodes=False),
    "chunk, kernels": Step(decodes=False),
}


def count(model: NVILA, shape: str, step: Step, rows: int) -> dict[str, int]:
    """Return what one step asks of the device, after one that captures its graph.

    Args:
        model: prepares the prompts.
        shape: size of the language model that runs the step.
        step: what it does.
        rows: of a step that decodes.
    """
    with fake_cuda() as cuda:
        if step.decodes:
            items = [
                scheduled(model, POSITIONS, POSITIONS - 1, 1, step.params) for _ in range(rows)
            ]
        else:
            items = [scheduled(model, 10_240, 8192, 2048, step.params)]
        Switch.disabled = not step.kernels
        runner = make_runner(shape, torch.bfloat16, step.kind, graphs=step.graph)
        if not step.kernels:
            runner.attention = GroupedAttention(
                runner.attention.cache, SHAPES[shape].num_attention_heads
            )
        if step.graph:
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
    parser.add_argument("--rows", type=int, default=8, help="rows of a decode step")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    warnings.filterwarnings("ignore", "Accessing the data pointer of FakeTensor")
    with tempfile.TemporaryDirectory() as folder:
        model = NVILA.from_pretrained(write_checkpoint(Path(folder) / "tiny"))
    found: dict[str, dict[str, Any]] = {}
    for shape in args.shape or SHAPES:
        for name, step in STEPS.items():
            found[f"{shape}: {name}"] = count(model, shape, step, args.rows)
    header = ["step", *next(iter(found.values()))]
    publish({"results": found}, header, [[name, *row.values()] for name, row in found.items()])


if __name__ == "__main__":
    main()
