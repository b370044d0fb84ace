"""Measure a start of the service, and what it holds while it has nothing to do.

    .venv/bin/python benchmarks/start.py [--rounds 3] [--idle 60] [--json]

1. `python -m workers.gpu` starts with the demo model: time and CPU time until it says `ready`.
2. `streamer up` starts with the demo model and no cameras: time until everything is ready. After
   `--idle` seconds, the memory of each of its programs (PSS: what they share is counted once) and
   the CPU time that they take. Then it is asked about pictures, and idles again.

Nothing else may use PyTorch on this machine: the memory that programs share would count less.
"""

import argparse
import base64
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import cv2
import numpy as np
import psutil
from report import cpu_seconds, publish

from streamer.local.installation import child_environment
from streamer.local.redis_server import EmbeddedServer
from streamer.settings import Settings

NAMES = {
    "valkey-server": "Valkey",
    "workers.ingest": "ingest worker",
    "workers.gpu": "model worker",
    "workers.recorder": "recorder",
    "streamer.cli serve": "API",
    "streamer.cli up": "`streamer up`",
    "streamer fork server": "fork server",
}
"""Programs by what their command lines contain."""

READY = r"(?s)The model is ready|^(?!.*The model is loading).*Press Ctrl-C"
"""What `streamer up` prints when everything is ready, the model too."""

QUESTIONS = 11


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3, help="starts of a model worker")
    parser.add_argument("--idle", type=float, default=60.0, help="seconds that the service idles")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        worker = measure_worker(Path(folder) / "worker", options.rounds)
        service = measure_service(Path(folder) / "service", options.idle)
    rows = [
        ("model worker: seconds until it is ready", worker["seconds"]),
        ("model worker: CPU seconds until it is ready", worker["cpu_seconds"]),
        ("`streamer up`: seconds until the model is ready", service["seconds"]),
        ("idle: CPU seconds a minute", service["cpu_seconds_per_minute"]),
        ("idle: memory, MB", sum(service["memory_mb"].values())),
        *((f"idle: memory of {name}, MB", mb) for name, mb in service["memory_mb"].items()),
        ("milliseconds until the first answer after it", service["answers_ms"][0]),
        ("until each of the next, median", statistics.median(service["answers_ms"][1:])),
        ("minor page faults of model worker for the first", service["faults_of_answers"][0]),
        ("for each of the next, median", statistics.median(service["faults_of_answers"][1:])),
        ("idle again: memory, MB", sum(service["memory_again_mb"].values())),
        ("idle again: memory of model worker, MB", service["memory_again_mb"]["model worker"]),
    ]
    publish({"worker": worker, "service": service}, ("", "value"), rows)


def measure_worker(folder: Path, rounds: int) -> dict[str, float]:
    """Return the medians of what a model worker takes until it is ready."""
    seconds, cpu = [], []
    with EmbeddedServer(folder / "redis", persistent=False, max_memory=256 << 20) as server:
        settings = Settings(redis_url=server.url, data_dir=folder, model="demo", log_level="info")
        for _ in range(rounds):
            began = time.monotonic()
            with program("-m", "workers.gpu", settings=settings, until='"ready"') as process:
                seconds.append(time.monotonic() - began)
                cpu.append(cpu_seconds(process))
    return {"seconds": statistics.median(seconds), "cpu_seconds": statistics.median(cpu)}


def measure_service(folder: Path, idle: float) -> dict[str, Any]:
    """Return what a `streamer up` takes to start, and then holds."""
    settings = Settings(data_dir=folder, model="demo", api_port=0)
    began = time.monotonic()
    arguments = ("-m", "streamer.cli", "up", "--data-dir", str(folder), "--port", "0")
    with program(*arguments, settings=settings, until=READY) as up:
        seconds = time.monotonic() - began
        family = [up, *up.children(recursive=True)]
        before = sum(map(cpu_seconds, family))
        time.sleep(idle)
        used = sum(map(cpu_seconds, family)) - before
        memory = memory_of(family)
        url = json.loads((folder / "run.json").read_text())["api_url"]
        (worker,) = (each for each in family if "workers.gpu" in " ".join(each.cmdline()))
        answers, faults = [], []
        for number in range(QUESTIONS):
            had = minor_faults(worker)
            answers.append(milliseconds_to_answer(url, number))
            faults.append(minor_faults(worker) - had)
        time.sleep(idle)
        again = memory_of(family)
    return {
        "seconds": seconds,
        "cpu_seconds_per_minute": 60 * used / idle,
        "memory_mb": memory,
        "answers_ms": answers,
        "faults_of_answers": faults,
        "memory_again_mb": again,
    }


def memory_of(family: list[psutil.Process]) -> dict[str, float]:
    """Return the memory of programs by their names, megabytes."""
    memory: dict[str, float] = {}
    for process in family:
        line = " ".join(process.cmdline())
        name = next((name for part, name in NAMES.items() if part in line), "others")
        memory[name] = memory.get(name, 0.0) + process.memory_full_info().pss / 1e6
    return memory


def minor_faults(process: psutil.Process) -> int:
    """Return how often a process had to wait until a page was mapped that was in memory."""
    stat = Path(f"/proc/{process.pid}/stat").read_text()
    return int(stat.rpartition(")")[2].split()[7])


def milliseconds_to_answer(url: str, number: int) -> float:
    """Ask the API at `url` about a picture that it has not seen yet; return how long it takes."""
    noise = np.random.default_rng(number).integers(0, 256, (448, 448, 3), np.uint8)
    jpeg = base64.b64encode(cv2.imencode(".jpg", noise)[1].tobytes()).decode()
    content = [
        {"type": "text", "text": "What is there?"},
        {"type": "image_url", "image_url": {"url": f"data:image/jpeg;base64,{jpeg}"}},
    ]
    asked = {"model": "demo", "messages": [{"role": "user", "content": content}], "max_tokens": 8}
    request = Request(
        f"{url}/v1/chat/completions",
        json.dumps(asked).encode(),
        {"Content-Type": "application/json"},
    )
    began = time.monotonic()
    with urlopen(request, timeout=60) as response:
        response.read()
    return 1000 * (time.monotonic() - began)


@contextmanager
def program(*arguments: str, settings: Settings, until: str) -> Iterator[psutil.Process]:
    """Run a Python program; yield it once it has printed a line that matches `until`."""
    output = settings.data_dir.parent / "output.log"
    with output.open("wb") as file:
        process = subprocess.Popen(
            [sys.executable, *arguments],
            env={**child_environment(settings), "PYTHONUNBUFFERED": "1"},
            stdout=file,
            stderr=subprocess.STDOUT,
        )
    try:
        while not re.search(until, output.read_text(errors="replace")):
            if process.poll() is not None:
                raise SystemExit(output.read_text(errors="replace"))
            time.sleep(0.01)
        yield psutil.Process(process.pid)
    finally:
        process.terminate()
        process.wait()


if __name__ == "__main__":
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    main()
