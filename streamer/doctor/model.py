"""The model: found, readable, and small enough for where it would run."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterable
from typing import Any

from streamer.doctor.check import Check, check, size
from streamer.settings import Settings


def model(settings: Settings, deadline: float) -> Iterable[Check]:
    """Let a program look at it until `deadline` (monotonic): PyTorch takes seconds to start."""
    from nvila_core.demo import CHECKPOINT

    path = str(CHECKPOINT) if settings.model == "demo" else settings.model
    command = [sys.executable, "-m", "nvila_core.checkpoint.footprint", path]
    command += ["--device", settings.device, "--dtype", settings.dtype]
    command += ["--kv-cache-tokens", str(settings.kv_cache_tokens)]
    command += ["--quantize", settings.quantize] if settings.quantize else []
    try:
        run = subprocess.run(
            command,
            capture_output=True,
            text=True,
            timeout=max(0.1, deadline - time.monotonic()),
            stdin=subprocess.DEVNULL,
        )
    except subprocess.TimeoutExpired:
        yield check(
            "model",
            "warn",
            "PyTorch did not start and read the checkpoint in time: try again when the machine is "
            "less busy, and look at the GPU's driver if it stays so.",
        )
        return
    try:
        found: dict[str, Any] = json.loads(run.stdout)
    except ValueError:
        last = (run.stderr.strip().splitlines() or ["it said nothing"])[-1]
        message = f"PyTorch cannot be used ({last}): install the project again."
        yield check("model", "fail", message)
        return
    yield judge(settings.model, found)


def judge(name: str, found: dict[str, Any]) -> Check:
    """What `nvila_core.checkpoint.footprint` told of the model `name`."""
    if "error" in found:
        return check("model", "fail", str(found["error"]))
    if "missing" in found:
        if os.environ.get("HF_HUB_OFFLINE", "").lower() in {"1", "true", "yes", "on"}:
            message = f"{name} is not on this machine, and HF_HUB_OFFLINE forbids to fetch it."
            return check("model", "fail", message)
        return check(
            "model",
            "warn",
            f"{name} is not on this machine yet: `streamer worker` downloads it when it starts.",
        )
    needed, free = int(found["needed"]), int(found["free"])
    place = found["gpu"] or ("main memory" if found["device"] == "cpu" else found["device"])
    numbers = " and ".join(filter(None, (found["quantize"], found["dtype"])))
    said = (
        f"{name} in {numbers} on {place}: {size(found['weights'])} of weights and "
        f"{size(found['kv_cache'])} of key-value cache, {size(free)} of "
        f"{size(found['total'])} free"
    )
    if needed > int(found["total"]):
        fewer = "" if found["quantize"] == "int4" else ", set quantize to int4"
        what = f"choose a smaller model{fewer}, or lower kv_cache_tokens"
        return check("model", "fail", f"{said}: it does not fit, so {what}.")
    if needed > free:
        return check("model", "warn", f"{said}: it fits only when others make room.")
    return check("model", "ok", f"{said}.")
