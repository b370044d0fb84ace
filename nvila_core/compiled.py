"""The model's layers through torch.compile: its small operations between matrix products in one.

    python -m nvila_core.compiled PATH [--device cpu] [--dtype auto] [--threads N]

prints what a small request takes without and with it, seconds, as one JSON object: a process of its
own, because compilers take as long as they like and cannot be interrupted.
"""

import argparse
import json
import shutil
import sys
from itertools import chain

import torch

from .errors import NVILAError, first_line
from .model import NVILA

ROWS = (1, 2, 24)
"""Sizes that are run once: one row is compiled apart from several."""


def compile_layers(model: NVILA) -> None:
    """Compile what the layers of tower and language model do to rows, for any number of rows.

    Attention stays as it is: it reads the cache by tables that differ at every step. It takes
    minutes on a slow machine and is done before this returns, so that no request pays for it.

    Raises:
        NVILAError: there is no compiler, or it cannot compile this model.
    """
    cuda = model.device.type == "cuda"
    if not cuda and not any(map(shutil.which, ("c++", "g++", "clang++"))):
        raise NVILAError(
            "torch.compile needs a C++ compiler (g++ or clang++): install one, or set compile to "
            "false."
        )
    parts = [
        *chain.from_iterable(
            (layer.mlp, layer.input_layernorm, layer.post_attention_layernorm)
            for layer in model.language.model.layers
        ),
        *(layer.mlp for layer in model.vision.encoder.layers),
    ]
    try:
        for part in parts:
            part.compile(dynamic=True)
        run_once(model)
    except Exception as error:  # compilers fail in every way there is
        for part in parts:
            part._compiled_call_impl = None
        raise NVILAError(
            f"torch.compile cannot compile this model here ({first_line(error)}): set compile to "
            "false."
        ) from error


@torch.inference_mode()
def run_once(model: NVILA) -> None:
    """Run tower and language model at sizes of every kind, which is when they are compiled."""
    size = model.config.vision.image_size
    for tiles in (1, 2):
        model.vision(torch.zeros(tiles, 3, size, size))
    for rows in ROWS:
        model.language.hidden(model.language.embed([0] * rows))


def main(arguments: list[str] | None = None) -> int:
    """Print `{"plain", "compiled"}`, or `{"error"}`; the exit code."""
    from .gauges import Gauges, Load

    parser = argparse.ArgumentParser(prog="python -m nvila_core.compiled")
    parser.add_argument("model")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--threads", type=int)
    given = parser.parse_args(arguments)
    if given.threads:
        torch.set_num_threads(given.threads)
    told: dict[str, float | str]
    try:
        model = NVILA.from_pretrained(given.model, given.device, given.dtype)
        gauges = Gauges(model, 4096)
        sizes = (2, 64, min(4, gauges.most_sequences()))
        plain = gauges.request(Load(), *sizes)
        compile_layers(model)
        told = {"plain": plain, "compiled": gauges.request(Load(), *sizes)}
    except NVILAError as error:
        told = {"error": str(error)}
    print(json.dumps(told))
    return 1 if "error" in told else 0


if __name__ == "__main__":
    sys.exit(main())
