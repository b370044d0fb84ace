"""The model's layers through torch.compile: its small operations between matrix products in one.

    python -m nvila_core.tuning.compiled PATH [--device cpu] [--dtype auto] [--quantize int8]
        [--threads N]

prints what a small request takes without and with it, seconds, as one JSON object: a process of its
own, because compilers take as long as they like and cannot be interrupted.
"""

import argparse
import json
import shutil
import sys
from itertools import chain

import numpy as np
import torch
from torch import nn

from nvila_core.engine.engine import BLOCK_SIZE, Engine
from nvila_core.errors import NVILAError, first_line
from nvila_core.generation.sampling import SamplingParams
from nvila_core.media.video import Video
from nvila_core.model import NVILA
from nvila_core.models.packed_linear import PackedLinear, pack_linears


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
    layers = model.language.model.layers
    pack_linears(layers)  # the engine does so too, when it would be too late
    parts = [
        *chain.from_iterable((x.input_layernorm, x.post_attention_layernorm) for x in layers),
        *(layer.mlp for layer in layers if not packed(layer.mlp)),
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


def packed(module: nn.Module) -> bool:
    """Whether weights inside lie in oneDNN's order: the compiler cannot look into those."""
    return any(isinstance(part, PackedLinear) for part in module.modules())


def run_once(model: NVILA) -> None:
    """Answer one question, then two at once: one and several rows, read and generated, and tiles.

    By an engine, because whatever it does later must have been compiled by then.
    """
    size = model.config.vision.image_size
    pictures = [np.full((size, size, 3), shade, np.uint8) for shade in (0, 90, 180)]
    prompts = [
        model.prepare([Video(some), "?"], num_video_frames=len(some))
        for some in (pictures[:1], pictures[1:])
    ]
    room = sum(prompt.num_tokens + 4 * BLOCK_SIZE for prompt in prompts)
    engine = Engine(model, len(prompts), room, tile_cache_bytes=0)
    params = SamplingParams(max_tokens=3, ignore_eos=True)
    for together in (prompts[:1], prompts):
        handles = [engine.submit(prompt, params) for prompt in together]
        while engine.step():
            pass
        for handle in handles:
            handle.result()


def main(arguments: list[str] | None = None) -> int:
    """Print `{"plain", "compiled"}`, or `{"error"}`; the exit code."""
    from nvila_core.tuning.step_timer import Load, StepTimer

    parser = argparse.ArgumentParser(prog="python -m nvila_core.tuning.compiled")
    parser.add_argument("model")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--quantize")
    parser.add_argument("--threads", type=int)
    given = parser.parse_args(arguments)
    if given.threads:
        torch.set_num_threads(given.threads)
    told: dict[str, float | str]
    try:
        model = NVILA.from_pretrained(
            given.model, given.device, given.dtype, quantize=given.quantize
        )
        timer = StepTimer(model, 4096)
        sizes = (2, 64, min(4, timer.max_sequences()))
        plain = timer.request(Load(), *sizes)
        compile_layers(model)
        told = {"plain": plain, "compiled": timer.request(Load(), *sizes)}
    except NVILAError as error:
        told = {"error": str(error)}
    print(json.dumps(told))
    return 1 if "error" in told else 0


if __name__ == "__main__":
    sys.exit(main())
