"""Find the NVIDIA GPUs of this machine, and the ones among them that a user names."""

import re
import subprocess
from collections.abc import Callable, Mapping

from streamer.errors import ErrorCode, StreamerError

ALL = "all"
"""What a user writes for all GPUs."""

MAX_GPUS = 64

_VISIBLE = "CUDA_VISIBLE_DEVICES"

_TIMEOUT = 30.0
"""Seconds that `nvidia-smi` may take: its driver may have to be loaded."""

_NAME = re.compile(r"\d{1,3}|(GPU|MIG)-[0-9A-Za-z/-]{1,100}")

_GPU_LINE = re.compile(r"GPU (\d+): .*\(UUID: (GPU-[^)]+)\)")
_PART_LINE = re.compile(r"\s+MIG .*\(UUID: (MIG-[^)]+)\)")


def read_list() -> str:
    """Return what `nvidia-smi -L` prints: each GPU with its UUID, and the parts of those that are
    divided (MIG). Raises OSError or subprocess.SubprocessError if it cannot."""
    done = subprocess.run(
        ["nvidia-smi", "-L"], capture_output=True, text=True, timeout=_TIMEOUT, check=True
    )
    return done.stdout


def parse_list(text: str) -> dict[str, list[str]]:
    """Return the number of each GPU in the output of `nvidia-smi -L`, and what it can be used as:
    its UUID, or those of its parts if it is divided."""
    found: dict[str, list[str]] = {}
    whole: dict[str, str] = {}
    number = ""
    for line in text.splitlines():
        if gpu := _GPU_LINE.match(line):
            number, whole[gpu[1]] = gpu[1], gpu[2]
            found[number] = []
        elif (part := _PART_LINE.match(line)) and number:
            found[number].append(part[1])
    return {number: parts or [whole[number]] for number, parts in found.items()}


def choose_gpus(
    wanted: str, environment: Mapping[str, str], read: Callable[[], str] = read_list
) -> list[str]:
    """Return the GPUs that `wanted` names, as CUDA_VISIBLE_DEVICES takes them.

    `wanted` is `all`, or numbers and UUIDs of GPUs or of their parts (MIG), separated by commas.
    `all` are those in the CUDA_VISIBLE_DEVICES of `environment`, if it is set, else those that
    `nvidia-smi` lists. A number becomes the UUID of its GPU where `nvidia-smi` tells it: numbers
    change when a GPU fails.

    Raises StreamerError(INVALID_REQUEST).
    """
    if wanted.strip() == ALL and environment.get(_VISIBLE):
        wanted = environment[_VISIBLE]
    listed, trouble = _listed(read)
    if wanted.strip() == ALL:
        gpus = [name for parts in listed.values() for name in parts]
        if not gpus:
            raise StreamerError(
                ErrorCode.INVALID_REQUEST,
                f"No NVIDIA GPU was found ({trouble}): check the driver with `nvidia-smi`, name "
                "the GPUs (--gpus 0,1), or leave out --gpus to run one model worker.",
            )
    else:
        names = [name.strip() for name in wanted.split(",") if name.strip()]
        wrong = next((name for name in names if not _NAME.fullmatch(name)), None)
        if wrong is not None or not names:
            raise StreamerError(
                ErrorCode.INVALID_REQUEST,
                f"'{(wrong or wanted)[:80]}' names no GPU: write `all`, numbers such as 0,1, or "
                "UUIDs as `nvidia-smi -L` lists them.",
            )
        missing = next((n for n in names if listed and n.isdigit() and n not in listed), None)
        if missing is not None:
            raise StreamerError(
                ErrorCode.INVALID_REQUEST,
                f"There is no GPU {missing}: `nvidia-smi -L` lists {', '.join(listed)}.",
            )
        gpus = [gpu for name in names for gpu in listed.get(name, [name])]
    if len(set(gpus)) < len(gpus):
        raise StreamerError(
            ErrorCode.INVALID_REQUEST, "A GPU is named twice: name each once, in --gpus."
        )
    if len(gpus) > MAX_GPUS:
        raise StreamerError(
            ErrorCode.INVALID_REQUEST,
            f"{len(gpus)} GPUs are more than {MAX_GPUS}: start another `streamer worker` for the "
            "others.",
        )
    return gpus


def _listed(read: Callable[[], str]) -> tuple[dict[str, list[str]], str]:
    """Return the GPUs that `nvidia-smi` lists, and why if there are none."""
    try:
        return parse_list(read()), "`nvidia-smi -L` lists none"
    except FileNotFoundError:
        return {}, "there is no `nvidia-smi`"
    except (OSError, subprocess.SubprocessError) as error:
        return {}, f"`nvidia-smi -L` failed: {type(error).__name__}"
