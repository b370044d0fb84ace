"""Count what a decode step asks of a GPU that need not be there; print a table.

    python -m tests.support.programs.count_launches [--rows 1 8 ...]

Steps run without a CUDA graph, at the true sizes of NVILA-Lite, with 9,800 positions a row.
"""

import argparse
import tempfile
import warnings
from typing import get_args

import torch

from nvila_core import NVILA
from nvila_core.checkpoint.random_checkpoint import write_checkpoint
from nvila_core.models.quantize import Format
from tests.support.fake_cuda import fake_cuda
from tests.support.fake_steps import SHAPES, make_runner, scheduled

POSITIONS = 9800


def counts(model: NVILA, shape: str, kind: Format | None, rows: int) -> tuple[int, ...]:
    """Return launches, copies to the GPU, copies back, and waits of one step."""
    with fake_cuda() as cuda:
        items = [scheduled(model, POSITIONS, POSITIONS - 1, 1) for _ in range(rows)]
        runner = make_runner(shape, torch.bfloat16, kind, graphs=False)
        cuda.reset()
        runner.forward(items)
        return cuda.launches.total(), cuda.copies_in, cuda.copies_out, cuda.waits


def main() -> None:
    """Count and print."""
    parser = argparse.ArgumentParser(prog="python -m tests.support.programs.count_launches")
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 8, 32, 64, 128, 256])
    chosen = parser.parse_args().rows
    warnings.filterwarnings("ignore", "Accessing the data pointer of FakeTensor")
    kinds = (None, *get_args(Format))
    with tempfile.TemporaryDirectory() as folder:
        model = NVILA.from_pretrained(write_checkpoint(f"{folder}/tiny"))
    print("| launches, copies in, out, waits |", *(f" {kind or 'bfloat16'} |" for kind in kinds))
    print("|---|" + "---:|" * len(kinds))
    for shape in SHAPES:
        for rows in chosen:
            found = (", ".join(map(str, counts(model, shape, kind, rows))) for kind in kinds)
            print(f"| {shape}, {rows} rows |", *(f" {one} |" for one in found), flush=True)


if __name__ == "__main__":
    main()
