"""Compile the model's layers with torch.compile, which fuses operations between matrix products.

    python -m nvila_core.tuning.compiled PATH [--device cpu] [--dtype auto] [--quantize int8]
        [--threads N]

prints the seconds that a small request takes without and with compilation, as one JSON object. The
tuner runs it in a separate process, because compilation can take long and cannot be interrupted.
"""

import argparse
import json
import shutil
import sys
from itertools import chain
from typing import cast

import numpy as np
import torch
from torch import nn

from nvila_core.engine.engine import BLOCK_SIZE, Engine
from nvila_core.errors import NVILAError, first_line
from nvila_core.generation.sampling import SamplingParams
from nvila_core.media.video import Video
from nvila_core.model import NVILA
from nvila_core.models.packed_linear import PackedLinear, TransposedLinear, pack_linears
from nvila_core.models.qwen2 import DecoderLayer
from nvila_core.models.vision_tower import EncoderLayer


def compile_layers(model: NVILA) -> None:
    """Compile the row-wise parts of the layers of both models, for any number of rows.

    Attention is not compiled: it reads the cache through tables that differ at every step.
    Compilation takes minutes on a slow machine. It is complete when this function returns, so no
    request has to wait for it.

    Raises:
        NVILAError: there is no compiler, or it cannot compile this model.
    """
    cuda = model.device.type == "cuda"
    if not cuda and not any(map(shutil.which, ("c++", "g++", "clang++"))):
        raise NVILAError(
            "torch.compile needs a C++ compiler: install g++ or clang++, or set compile to false."
        )
    layers = cast(list[DecoderLayer], list(model.language.model.layers))
    # before compiling; the engine would only do it afterwards
    pack_linears(model.language.model.layers)
    parts = [
        *chain.from_iterable((x.input_layernorm, x.post_attention_layernorm) for x in layers),
        *(layer.mlp for layer in layers if not packed(layer.mlp)),
        *(layer.mlp for layer in cast(list[EncoderLayer], list(model.vision.encoder.layers))),
    ]
    try:
        for part in parts:
            part.compile(dynamic=True)
        run_once(model)
    except Exception as error:  # the compilers raise many kinds of errors
        for part in parts:
            part._compiled_call_impl = None
        raise NVILAError(
            f"torch.compile cannot compile this model ({first_line(error)}): set compile to false."
        ) from error


def packed(module: nn.Module) -> bool:
    """Return whether a module has weights in another layout; the compiler cannot see oneDNN's."""
    return any(isinstance(part, PackedLinear | TransposedLinear) for part in module.modules())


def run_once(model: NVILA) -> None:
    """Answer one question, then two at once, to run prefill and decode with one and several rows.

    An engine runs them, so that everything it will do later is compiled.
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
    """Print `{"plain", "compiled"}` in seconds, or `{"error"}`, and return the exit code."""
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
    report: dict[str, float | str]
    try:
        model = NVILA.from_pretrained(
            given.model, given.device, given.dtype, quantize=given.quantize
        )
        timer = StepTimer(model, 4096)
        sizes = (2, 64, min(4, timer.max_sequences()))
        plain = timer.request(Load(), *sizes)
        compile_layers(model)
        report = {"plain": plain, "compiled": timer.request(Load(), *sizes)}
    except NVILAError as error:
        report = {"error": str(error)}
    print(json.dumps(report))
    return 1 if "error" in report else 0


if __name__ == "__main__":
    sys.exit(main())
