"""What a checkpoint needs of memory, told without reading its tensors or loading it.

    python -m nvila_core.checkpoint.footprint PATH_OR_HUB_ID [--device auto] [--dtype auto]
        [--quantize int8] [--kv-cache-tokens N]

prints one JSON object. Nothing is downloaded: a repository of the hub counts as found when it is in
the cache. A process of its own, because importing PyTorch takes seconds and may hang on a broken
driver.
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

from nvila_core.checkpoint.hub import WANTED
from nvila_core.checkpoint.loader import Checkpoint
from nvila_core.checkpoint.weights import Weights
from nvila_core.errors import CheckpointError, NVILAError
from nvila_core.models.device import choose_device, choose_dtype
from nvila_core.models.quantize import choose_precision, quantized_bytes


@dataclass(frozen=True)
class Footprint:
    """Bytes that a model takes where it would run, and what is free there."""

    torch: str
    device: str
    dtype: str
    quantize: str | None
    gpu: str | None
    weights: int
    kv_cache: int
    free: int
    total: int

    @property
    def needed(self) -> int:
        """Bytes of weights and key-value cache together."""
        return self.weights + self.kv_cache


def measure_footprint(
    root: Path, device: str, dtype: str, kv_cache_tokens: int, quantize: str | None = None
) -> Footprint:
    """The footprint of the checkpoint in the folder `root`.

    Raises:
        CheckpointError: a file is missing or malformed.
        NVILAError: the device, dtype or quantization is not to be had here.
    """
    place = choose_device(device)
    kind = choose_dtype(dtype, place)
    precision = choose_precision(quantize, place, kind)
    checkpoint = Checkpoint.open(root)
    weights = (
        stored_bytes(checkpoint.llm, kind, precision.language if precision else None)
        + stored_bytes(checkpoint.vision, kind, precision.vision if precision else None)
        + stored_bytes(checkpoint.projector, kind)
    )
    gpu = place.type == "cuda"
    free, total = torch.cuda.mem_get_info(place) if gpu else main_memory()
    return Footprint(
        torch=torch.__version__,
        device=str(place),
        dtype=str(kind).removeprefix("torch."),
        quantize=quantize,
        gpu=torch.cuda.get_device_name(place) if gpu else None,
        weights=weights,
        kv_cache=checkpoint.config.kv_size * kind.itemsize * kv_cache_tokens,
        free=free,
        total=total,
    )


def stored_bytes(weights: Weights, dtype: torch.dtype, bits: int | None = None) -> int:
    """Bytes of a part's tensors once they are loaded; `bits` is what `Weights.fill` is given."""
    total = 0
    for name, tensor in weights.tensors.items():
        # Inside layers, all that has two dimensions is the weight of a linear layer.
        if bits and ".layers." in name and len(tensor.shape) == 2:
            total += quantized_bytes(*tensor.shape, bits, dtype)
        else:
            total += math.prod(tensor.shape) * dtype.itemsize
    return total


def find_local(path_or_id: str) -> Path | None:
    """The folder of a checkpoint that is on this machine; None for one of the hub that is not.

    Raises:
        CheckpointError: it is neither a folder nor the name of a repository.
    """
    path = Path(path_or_id).expanduser()
    if path.is_dir():
        return path
    if path.exists() or not re.fullmatch(r"[\w.-]+/[\w.-]+", path_or_id):
        raise CheckpointError(path_or_id, "there is no such folder, so check the path of the model")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        return Path(snapshot_download(path_or_id, allow_patterns=WANTED, local_files_only=True))
    except LocalEntryNotFoundError:
        return None


def main_memory() -> tuple[int, int]:
    """Bytes that can be had and all bytes of this machine's memory."""
    page = os.sysconf("SC_PAGE_SIZE")
    free = os.sysconf("SC_AVPHYS_PAGES") * page
    meminfo = Path("/proc/meminfo")
    if meminfo.is_file():  # what can be had counts, caches included
        found = re.search(r"^MemAvailable:\s+(\d+) kB", meminfo.read_text(), re.MULTILINE)
        free = int(found[1]) * 1024 if found else free
    return free, os.sysconf("SC_PHYS_PAGES") * page


def main(arguments: list[str] | None = None) -> int:
    """Print the footprint, or `{"error": ...}`, as JSON; the exit code."""
    parser = argparse.ArgumentParser(prog="python -m nvila_core.checkpoint.footprint")
    parser.add_argument("model")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--quantize")
    parser.add_argument("--kv-cache-tokens", type=int, default=65536)
    given = parser.parse_args(arguments)
    told: dict[str, Any]
    try:
        root = find_local(given.model)
        if root is None:
            told = {"torch": torch.__version__, "missing": given.model}
        else:
            found = measure_footprint(
                root, given.device, given.dtype, given.kv_cache_tokens, given.quantize
            )
            told = {**asdict(found), "needed": found.needed}
    except NVILAError as error:
        told = {"torch": torch.__version__, "error": str(error)}
    print(json.dumps(told))
    return 1 if "error" in told else 0


if __name__ == "__main__":
    sys.exit(main())
