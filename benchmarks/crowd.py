"""Measure what many clients at once cost the API: those that wait for answers, those that search.

    .venv/bin/python benchmarks/crowd.py [--clients 200] [--seconds 30] [--searches 16]
        [--rows 200000] [--json]

`streamer serve` runs as a process, and no worker does. CPU time comes from the operating system.

1. `--clients` clients wait, each for the answer to a question of its own, with one request
   (`GET /v1/queries/{id}?wait=60`). CPU time of the API's process and of Valkey during `--seconds`,
   beside that of as many seconds before, when none waits. Then the questions are cancelled, and
   every client must get the end of its question.
2. `--searches` clients search the timeline at once, each for other words or within another range:
   an SQLite file with the results of benchmarks/timeline.py. Seconds until the last has its answer,
   and CPU time of the API's process. The first round, in which the file is read, does not count.
"""

import argparse
import asyncio
import http.client
import json
import random
import statistics
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from datetime import timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import psutil
from api import attach, free_port, serving
from report import cpu_seconds, publish
from timeline import SEED, START, fill

from nvila_core.resolution.policy import Measures
from streamer.domain.timestamp import rfc3339
from streamer.local.redis_server import EmbeddedServer
from streamer.service import Service
from streamer.settings import Settings
from streamer.timeline.results import Timeline

WORDS = ("cars", "giraffe", '"red bus"', "gir*", "person gate", "elephant", "door", '"two cars"')


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clients", type=int, default=200, help="clients that wait")
    parser.add_argument("--seconds", type=float, default=30.0, help="for which they wait: below 55")
    parser.add_argument("--searches", type=int, default=16, help="clients that search at once")
    parser.add_argument("--rounds", type=int, default=5, help="rounds of searches")
    parser.add_argument("--rows", type=int, default=200_000, help="results in the timeline")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with ExitStack() as running:
        folder = Path(running.enter_context(tempfile.TemporaryDirectory()))
        server = running.enter_context(
            EmbeddedServer(folder / "redis", persistent=False, max_memory=None)
        )
        settings = Settings(redis_url=server.url, data_dir=folder, max_queries=10_000)
        timeline = Timeline(settings.timeline_url, upgrade=True)
        fill(timeline, options.rows)
        timeline.close()
        port = free_port()
        api = running.enter_context(serving(port, "-m", "streamer.cli", "serve", settings=settings))
        client = running.enter_context(Service(settings))
        processes = {"api": api, "valkey": psutil.Process(server.pid)}
        idle = busy(processes, options.seconds)
        waiting = wait_together(client, port, processes, options)
        searched = search_together(port, api, options)
    found = {"idle": idle, "waiting": waiting, "searching": searched}
    clients = f"{options.clients} clients wait"
    searches = f"{options.searches} searches at once, {options.rows} results"
    publish(
        found,
        ("", "value"),
        [
            ("no client waits: cores of the API", idle["api"]),
            (f"{clients}: cores of the API", waiting["api"]),
            (f"{clients}: cores of Valkey", waiting["valkey"]),
            (f"{searches}: seconds until the last is answered", searched["seconds"]),
            (f"{searches}: CPU seconds of the API", searched["cpu"]),
        ],
    )


def busy(processes: dict[str, psutil.Process], seconds: float) -> dict[str, float]:
    """Return how much of a core each process uses during the next `seconds`."""
    before = {name: cpu_seconds(process) for name, process in processes.items()}
    began = time.monotonic()
    time.sleep(seconds)
    passed = time.monotonic() - began
    return {
        name: (cpu_seconds(process) - before[name]) / passed for name, process in processes.items()
    }


def wait_together(
    client: Service, port: int, processes: dict[str, psutil.Process], options: argparse.Namespace
) -> dict[str, float]:
    """Return how much of a core each process uses while clients wait."""
    attach(client, "yard")
    stream, now = client.stream("yard"), time.time()
    client.frames.put(stream.id, bytes(1000), Measures(640, 480, change=0.1), time=now, pts=0.0)
    queries = [
        client.ask(f"Who is number {n}?", "yard", stale_ok=True).id for n in range(options.clients)
    ]
    connected = threading.Barrier(2)
    answers: list[dict[str, Any]] = []

    def wait() -> None:
        answers.extend(asyncio.run(_answers(port, queries, connected)))

    clients = threading.Thread(target=wait)
    clients.start()
    connected.wait()
    time.sleep(2.0)  # until all requests have been read
    used = busy(processes, options.seconds)
    for query in queries:
        client.cancel(query)
    clients.join()
    if [answer["id"] for answer in answers if answer["result"]] != queries:
        raise SystemExit("A client got no answer.")
    return used


async def _answers(port: int, queries: list[str], sent: threading.Barrier) -> list[dict[str, Any]]:
    """Wait for the answers to queries, each over a connection of its own."""
    connections = []
    for query in queries:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        path = f"/v1/queries/{query}?wait=60"
        writer.write(
            f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode()
        )
        connections.append((reader, writer))
    await asyncio.to_thread(sent.wait)
    found = []
    for reader, writer in connections:
        head, _, body = (await reader.read()).partition(b"\r\n\r\n")
        writer.close()
        if not head.startswith(b"HTTP/1.1 200"):
            raise SystemExit(head.decode())
        found.append(json.loads(body))
    return found


def search_together(
    port: int, api: psutil.Process, options: argparse.Namespace
) -> dict[str, float]:
    """Return the medians of what the searches of a round take together."""
    dice = random.Random(SEED)
    seconds, cpu = [], []
    with ThreadPoolExecutor(options.searches) as pool:
        for _ in range(options.rounds + 1):
            paths = [search(dice, number, options.rows) for number in range(options.searches)]
            before, began = cpu_seconds(api), time.monotonic()
            for _ in pool.map(lambda path: ask(port, path), paths):
                pass
            seconds.append(time.monotonic() - began)
            cpu.append(cpu_seconds(api) - before)
    return {"seconds": statistics.median(seconds[1:]), "cpu": statistics.median(cpu[1:])}


def search(dice: random.Random, number: int, rows: int) -> str:
    """Return the path of a search: half of them are about an hour."""
    wanted = {"q": WORDS[number % len(WORDS)]}
    if number // len(WORDS) % 2:
        since = START + timedelta(seconds=dice.uniform(0, rows / 10))
        wanted |= {"since": rfc3339(since), "until": rfc3339(since + timedelta(hours=1))}
    return f"/v1/results?{urlencode(wanted)}"


def ask(port: int, path: str) -> None:
    """Send a request and read its answer."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
    connection.request("GET", path)
    answer = connection.getresponse()
    body = answer.read()
    connection.close()
    if answer.status != 200:
        raise SystemExit(f"{path}: {answer.status} {body.decode()}")


if __name__ == "__main__":
    main()
