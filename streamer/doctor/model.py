"""Check that the model is there, readable, and fits into the memory of its device."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterable
from typing import Any

from streamer.doctor.check import Check, check, format_size
from streamer.errors import StreamerError
from streamer.settings import Settings


def model(settings: Settings, deadline: float, python: str = sys.executable) -> Iterable[Check]:
    """Check the model in a child process of `python` until `deadline` (monotonic seconds).

    PyTorch takes seconds to start, and may hang or crash. A model elsewhere is looked for in the
    list of its server.
    """
    if settings.backend == "openai":
        yield _elsewhere(settings, max(0.1, deadline - time.monotonic()))
        return
    from nvila_core.demo import CHECKPOINT
    from nvila_core.model_packages import ModelNotInstalled, require_model_packages

    try:
        require_model_packages()
    except ModelNotInstalled as error:
        yield check("model", "fail", str(error))
        return
    path = str(CHECKPOINT) if settings.model == "demo" else settings.model
    command = [python, "-m", "nvila_core.checkpoint.footprint", path]
    command += ["--device", settings.device, "--dtype", settings.dtype]
    if settings.kv_cache_tokens is not None:
        command += ["--kv-cache-tokens", str(settings.kv_cache_tokens)]
    command += ["--memory-fraction", str(settings.gpu_memory_fraction)]
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
            "less busy; if it happens again, check the GPU's driver.",
        )
        return
    try:
        found: dict[str, Any] = json.loads(run.stdout)
    except ValueError:
        last = (run.stderr.strip().splitlines() or ["no output"])[-1]
        message = f"PyTorch does not work ({last}): install the project again."
        yield check("model", "fail", message)
        return
    yield judge(settings.model, found)


def _elsewhere(settings: Settings, within: float) -> Check:
    from streamer.model_server import ModelServer, listed_name

    server = ModelServer(settings)
    try:
        listed = server.models(within)
    except StreamerError as error:
        return check("model", "fail", error.message)
    if not listed:
        return check("model", "warn", f"{server.url} works, but does not list its models.")
    if listed_name(settings.model, listed) is None:
        return check("model", "warn", server.lacks(settings.model, list(listed)).message)
    return check("model", "ok", f"{settings.model} is served at {server.url}.")


def judge(name: str, found: dict[str, Any]) -> Check:
    """Judge the report of `nvila_core.checkpoint.footprint` on the model `name`."""
    if "error" in found:
        return check("model", "fail", str(found["error"]))
    if "missing" in found:
        if os.environ.get("HF_HUB_OFFLINE", "").lower() in {"1", "true", "yes", "on"}:
            message = f"{name} is not on this machine: unset HF_HUB_OFFLINE to allow the download."
            return check("model", "fail", message)
        return check(
            "model",
            "warn",
            f"{name} is not on this machine yet: `streamer worker` downloads it when it starts.",
        )
    needed, free = int(found["needed"]), int(found["free"])
    place = found["gpu"] or ("main memory" if found["device"] == "cpu" else found["device"])
    numbers = " and ".join(filter(None, (found["quantize"], found["dtype"])))
    report = (
        f"{name} in {numbers} on {place}: {format_size(found['weights'])} of weights and "
        f"{format_size(found['kv_cache'])} of key-value cache ({found['kv_cache_tokens']} tokens), "
        f"{format_size(free)} of {format_size(found['total'])} free"
    )
    if needed > int(found["total"]):
        fewer = "" if found["quantize"] == "int4" else ", set quantize to int4"
        what = f"choose a smaller model{fewer}, or lower kv_cache_tokens"
        return check("model", "fail", f"{report}: it does not fit, so {what}.")
    if needed > free:
        return check("model", "warn", f"{report}: it fits only if other programs free memory.")
    return check("model", "ok", f"{report}.")
