"""Report how much memory a checkpoint needs, without reading its tensors.

    python -m nvila_core.checkpoint.footprint PATH_OR_HUB_ID [--device auto] [--dtype auto]
        [--quantize int8] [--kv-cache-tokens N] [--memory-fraction F]

prints one JSON object. It downloads nothing: a repository of the hub is found if it is in the
cache. Run it in a separate process, because importing PyTorch takes seconds and may hang with a
broken driver.
"""

import argparse
import json
import math
import os
import re
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from nvila_core.checkpoint.hub import find_downloaded
from nvila_core.checkpoint.loader import Checkpoint
from nvila_core.checkpoint.weights import Weights
from nvila_core.errors import NVILAError
from nvila_core.models.device import choose_device, choose_dtype
from nvila_core.models.memory import size_engine
from nvila_core.models.quantize import Format, Precision, choose_precision, quantized_bytes
from nvila_core.quantization import QUANTIZATIONS


@dataclass(frozen=True)
class Footprint:
    """Memory that a model needs on its device, and memory of that device, in bytes.

    Attributes:
        torch: version of PyTorch.
        device, dtype, quantize: how the model would be loaded.
        gpu: name of the GPU; None on a CPU.
        weights: bytes of the weights.
        kv_cache, kv_cache_tokens: bytes and positions of the key-value cache.
        free, total: bytes of the device's memory.
    """

    torch: str
    device: str
    dtype: str
    quantize: str | None
    gpu: str | None
    weights: int
    kv_cache: int
    kv_cache_tokens: int
    free: int
    total: int

    @property
    def needed(self) -> int:
        """Bytes of the weights and the key-value cache together."""
        return self.weights + self.kv_cache


def measure_footprint(
    root: Path,
    device: str,
    dtype: str,
    kv_cache_tokens: int | None,
    quantize: str | None = None,
    share: float | None = None,
) -> Footprint:
    """Return the footprint of the checkpoint in the folder `root`.

    Args:
        root: folder of the checkpoint.
        device: "cpu", "cuda", "cuda:1", or "auto": a GPU if there is one.
        dtype: "float32", "float16", "bfloat16" or "auto".
        kv_cache_tokens: positions of the key-value cache; None: as many as suit the memory.
        quantize: "int8", "int4", "fp8" or "fp8-vision"; None: full precision.
        share: of a GPU's memory beside the weights for the cache; None: the default.

    Raises:
        CheckpointError: a file is missing or malformed.
        NVILAError: the device, dtype or quantization is not available on this machine.
    """
    place = choose_device(device)
    kind = choose_dtype(dtype, place)
    precision = choose_precision(quantize, place, kind)
    checkpoint = Checkpoint.open(root)
    formats = precision or Precision()
    weights = (
        stored_bytes(checkpoint.llm, kind, formats.language)
        + stored_bytes(checkpoint.vision, kind, formats.vision)
        + stored_bytes(checkpoint.projector, kind, formats.projector)
    )
    gpu = place.type == "cuda"
    free, total = free_memory(place)
    position_bytes = checkpoint.config.kv_size * kind.itemsize
    if kv_cache_tokens is None:
        size = size_engine(place.type, max(0, free - weights), position_bytes, share=share)
        kv_cache_tokens = size.kv_cache_tokens
    return Footprint(
        torch=torch.__version__,
        device=str(place),
        dtype=str(kind).removeprefix("torch."),
        quantize=quantize,
        gpu=torch.cuda.get_device_name(place) if gpu else None,
        weights=weights,
        kv_cache=position_bytes * kv_cache_tokens,
        kv_cache_tokens=kv_cache_tokens,
        free=free,
        total=total,
    )


def stored_bytes(weights: Weights, dtype: torch.dtype, kind: Format | None = None) -> int:
    """Return the bytes of tensors once `Weights.fill` has loaded them as `dtype` and `kind`."""
    total = 0
    for name, tensor in weights.tensors.items():
        # Inside the layers, every tensor of two dimensions is the weight of a linear layer.
        if kind and "layers." in name and len(tensor.shape) == 2:
            total += quantized_bytes(*tensor.shape, kind, dtype)
        else:
            total += math.prod(tensor.shape) * dtype.itemsize
    return total


def free_memory(device: torch.device) -> tuple[int, int]:
    """Return the free and the total bytes of a device's memory."""
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        return free, total
    return main_memory()


def main_memory() -> tuple[int, int]:
    """Return the available and the total bytes of this machine's main memory."""
    page = os.sysconf("SC_PAGE_SIZE")
    free = os.sysconf("SC_AVPHYS_PAGES") * page
    meminfo = Path("/proc/meminfo")
    if meminfo.is_file():  # unlike free memory, available memory includes caches
        found = re.search(r"^MemAvailable:\s+(\d+) kB", meminfo.read_text(), re.MULTILINE)
        free = int(found[1]) * 1024 if found else free
    return free, os.sysconf("SC_PHYS_PAGES") * page


def main(arguments: list[str] | None = None) -> int:
    """Print the footprint or `{"error": ...}` as JSON, and return the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m nvila_core.checkpoint.footprint",
        description="Report how much memory a checkpoint needs, as JSON.",
    )
    parser.add_argument("model", help="folder of the checkpoint, or repository on the hub")
    parser.add_argument("--device", default="auto", help="auto (default), cpu, cuda or cuda:1")
    parser.add_argument("--dtype", default="auto", help="auto, float32, float16 or bfloat16")
    parser.add_argument("--quantize", choices=QUANTIZATIONS, help="weights in fewer bits")
    parser.add_argument(
        "--kv-cache-tokens", type=int, help="positions of the key-value cache; default: by memory"
    )
    parser.add_argument("--memory-fraction", type=float, help="of a GPU's, for the cache")
    args = parser.parse_args(arguments)
    report: dict[str, Any]
    try:
        root = find_downloaded(args.model)
        if root is None:
            report = {"torch": torch.__version__, "missing": args.model}
        else:
            footprint = measure_footprint(
                root,
                args.device,
                args.dtype,
                args.kv_cache_tokens,
                args.quantize,
                args.memory_fraction,
            )
            report = {**asdict(footprint), "needed": footprint.needed}
    except NVILAError as error:
        report = {"torch": torch.__version__, "error": str(error)}
    print(json.dumps(report))
    return 1 if "error" in report else 0


if __name__ == "__main__":
    sys.exit(main())
