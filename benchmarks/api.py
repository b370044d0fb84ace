"""Measure what the API adds to a request: beside a bare FastAPI route, over kept connections.

    .venv/bin/python benchmarks/api.py [--requests 2000] [--rounds 5] [--streams 1] [--json]

A program with one bare FastAPI route and `streamer serve` run as processes on the same machine, and
one client asks both in turn, round by round, so that both see the same load of the machine. Each
request waits for the answer to the one before it. CPU time comes from the operating system. With
`--streams` of more than one, lists of so many streams and `/metrics` are asked for too, and the
command `streamer streams` is run `--rounds` times: less what Python takes to start and end.
"""

import argparse
import http.client
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil
from report import cpu_seconds, publish

from streamer.domain.stream import StreamCounters, StreamSpec, StreamState, StreamStatus
from streamer.domain.timestamp import utc_now
from streamer.domain.watch import Watch
from streamer.local.installation import child_environment
from streamer.local.redis_server import EmbeddedServer
from streamer.service import Service
from streamer.settings import Settings

BARE = """
import socket, sys, uvicorn
from fastapi import FastAPI

app = FastAPI()

@app.get("/healthz")
async def healthz() -> dict[str, str]:
    return {"status": "ok"}

listener = socket.create_server(("127.0.0.1", int(sys.argv[1])))
listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
uvicorn.Server(uvicorn.Config(app, log_config=None, access_log=False)).run([listener])
"""


@dataclass
class Route:
    """A route, and what its requests took: seconds in all, and seconds of CPU, of each round."""

    name: str
    port: int
    process: psutil.Process
    path: str
    seconds: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)

    def ask(self, requests: int) -> None:
        """Send requests over one connection."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        for _ in range(10):
            self._ask_once(connection)
        before, began = cpu_seconds(self.process), time.perf_counter()
        for _ in range(requests):
            self._ask_once(connection)
        self.seconds.append((time.perf_counter() - began) / requests)
        self.cpu.append((cpu_seconds(self.process) - before) / requests)
        connection.close()

    def _ask_once(self, connection: http.client.HTTPConnection) -> None:
        connection.request("GET", self.path)
        answer = connection.getresponse()
        answer.read()
        if answer.status != 200:
            raise SystemExit(f"{self.name}: {answer.status}")


def run_program(*arguments: str, settings: Settings) -> tuple[float, float]:
    """Run a Python program to its end; return its seconds and its CPU seconds."""
    began = time.perf_counter()
    with subprocess.Popen(
        [sys.executable, *arguments],
        env=child_environment(settings),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as program:
        _, status, used = os.wait4(program.pid, 0)
        program.returncode = os.waitstatus_to_exitcode(status)
    if program.returncode:
        raise SystemExit(f"{arguments} failed")
    return time.perf_counter() - began, used.ru_utime + used.ru_stime


def measure_commands(settings: Settings, rounds: int) -> dict[str, dict[str, float]]:
    """Return what listing the streams in a terminal takes beyond Python's own start and end."""
    commands = {
        f"streamer streams{option}": ("-m", "streamer.cli", "streams", *option.split())
        for option in ("", " --all", " --json", " yard")
    }
    lists = {"python": ("-c", "pass"), **commands}
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in lists}
    for _ in range(rounds):
        for name, arguments in lists.items():
            taken[name].append(run_program(*arguments, settings=settings))

    def middle(name: str, column: int) -> float:
        return statistics.median(each[column] for each in taken[name])

    return {
        name: {
            part: round(1e3 * (middle(name, column) - middle("python", column)), 3)
            for column, part in enumerate(("ms", "cpu_ms"))
        }
        for name in commands
    }


def free_port() -> int:
    """Return a port on which nothing listens."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


@contextmanager
def serving(port: int, *command: str, settings: Settings) -> Iterator[psutil.Process]:
    """Run a server, and yield its process once it answers."""
    environment = child_environment(settings.model_copy(update={"api_port": port}))
    with subprocess.Popen(
        [sys.executable, *command],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as program:
        try:
            while True:
                with suppress(OSError), socket.create_connection(("127.0.0.1", port)):
                    break
                if program.poll() is not None:
                    raise SystemExit(f"{command} ended before it was ready")
                time.sleep(0.05)
            yield psutil.Process(program.pid)
        finally:
            program.terminate()
            program.wait()


def attach(client: Service, name: str) -> None:
    """Attach a camera that has just reported."""
    watches = [Watch(prompt="Describe the scene in one sentence.")]
    spec = StreamSpec(name=name, url="rtsp://camera.example/main", live=True, watches=watches)
    client.registry.create(spec, spec.url)
    counters = StreamCounters(packets=90_000, bytes=2 << 28, decoded=3600, sampled=3600, clips=360)
    counters = counters.model_copy(update={"width": 1920, "height": 1080, "codec": "h264"})
    now = utc_now()
    status = StreamStatus(state=StreamState.RUNNING, reported_at=now, worker="ingest-1")
    status = status.model_copy(update={"last_frame_at": now, "counters": counters})
    client.registry.save_status(spec.id, status)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--requests", type=int, default=2000, help="requests of a round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--streams", type=int, default=1, help="streams that are attached")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with ExitStack() as running:
        folder = Path(running.enter_context(tempfile.TemporaryDirectory()))
        server = running.enter_context(
            EmbeddedServer(folder / "redis", persistent=False, max_memory=None)
        )
        settings = Settings(redis_url=server.url, data_dir=folder)
        with Service(settings) as client:
            attach(client, "yard")
            for number in range(1, options.streams):
                attach(client, f"camera-{number}")
        ports = free_port(), free_port()
        bare = running.enter_context(
            serving(ports[0], "-c", BARE, str(ports[0]), settings=settings)
        )
        own = running.enter_context(
            serving(ports[1], "-m", "streamer.cli", "serve", settings=settings)
        )
        routes = [
            Route("a bare route", ports[0], bare, "/healthz"),
            Route("GET /healthz", ports[1], own, "/healthz"),
            Route("GET /v1/session", ports[1], own, "/v1/session"),
            Route("GET /v1/streams/yard", ports[1], own, "/v1/streams/yard"),
        ]
        if options.streams > 1:
            paths = ("/v1/streams?limit=100", "/v1/streams?limit=1000", "/metrics")
            routes += [Route(f"GET {path}", ports[1], own, path) for path in paths]
        for _ in range(options.rounds):
            for route in routes:
                route.ask(options.requests)
        commands = measure_commands(settings, options.rounds) if options.streams > 1 else {}
    found: dict[str, dict[str, float | None]] = {
        route.name: {
            "ms": round(1e3 * statistics.median(route.seconds), 3),
            "cpu_ms": round(1e3 * statistics.median(route.cpu), 3),
            "ratio": _ratio(route.seconds, routes[0].seconds),
            "cpu_ratio": _ratio(route.cpu, routes[0].cpu),
        }
        for route in routes
    }
    rows = [
        (name, each["ms"], each["cpu_ms"], each["ratio"], each["cpu_ratio"])
        for name, each in found.items()
    ]
    rows += [(name, each["ms"], each["cpu_ms"], None, None) for name, each in commands.items()]
    publish(found | commands, ("", "ms", "ms of CPU", "times a bare route", "its CPU"), rows)


def _ratio(ours: list[float], bare: list[float]) -> float | None:
    """Return the median of the ratios of the rounds; None if a round of the bare route was too
    short for the system's clock of CPU time."""
    if 0 in bare:
        return None
    return round(statistics.median(a / b for a, b in zip(ours, bare, strict=True)), 2)


if __name__ == "__main__":
    main()
