"""Measure a start of the service, and what it holds while it has nothing to do.

    .venv/bin/python benchmarks/start.py [--rounds 3] [--idle 15] [--json]

1. `python -m workers.gpu` starts with the demo model: time and CPU time until it says `ready`.
2. `streamer up` starts with the demo model and no cameras: time until everything is ready. After
   `--idle` seconds, the memory of each of its programs (PSS: what they share is counted once) and
   the CPU time that they take.
"""

import argparse
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


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3, help="starts of a model worker")
    parser.add_argument("--idle", type=float, default=15.0, help="seconds that the service idles")
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
        memory: dict[str, float] = {}
        for process in family:
            line = " ".join(process.cmdline())
            name = next((name for part, name in NAMES.items() if part in line), "others")
            memory[name] = memory.get(name, 0.0) + process.memory_full_info().pss / 1e6
    return {
        "seconds": seconds,
        "cpu_seconds_per_minute": 60 * used / idle,
        "memory_mb": memory,
    }


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
