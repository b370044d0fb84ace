"""Measure events to many listeners, and results to a webhook: delay and CPU time.

    .venv/bin/python benchmarks/events.py [--listeners 200] [--rate 20] [--seconds 20] [--json]

1. `streamer serve` runs as a process, and that many listeners read `GET /v1/events`, each over its
   own connection. Events of the size of a result are published at `--rate` a second. The delay of
   each is from just before it is published until a listener has its last byte.
2. A recorder runs as a process, with a webhook whose receiver is in this process. The delay of each
   result is from just before a model worker would publish it until the receiver has the message;
   what passes between a window's end and that is `benchmarks/latency.py`'s subject.

The CPU time of the processes comes from the operating system.
"""

import argparse
import asyncio
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psutil
from report import cpu_seconds, percentiles, publish

from streamer.domain.result import Result
from streamer.events import Events, EventType
from streamer.local.installation import child_environment
from streamer.local.redis_server import EmbeddedServer
from streamer.queues.results import Results
from streamer.service import Service
from streamer.settings import Settings

PAYLOAD = "x" * 1000
"""About what a result has beside its numbers."""


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--listeners", type=int, default=200)
    parser.add_argument("--rate", type=float, default=20.0, help="events a second")
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--results", type=int, default=100, help="results to the webhook")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with (
        tempfile.TemporaryDirectory() as folder,
        EmbeddedServer(Path(folder) / "redis", persistent=False, max_memory=512 << 20) as server,
    ):
        settings = Settings(
            redis_url=server.url,
            data_dir=Path(folder),
            api_port=0,
            webhook_hosts=["127.0.0.1"],
            log_level="warning",
        )
        with Service(settings) as client:
            listened = measure_listeners(client, options)
            posted = measure_webhook(client, options.results)
    rows = [
        ("listeners", listened["listeners"]),
        ("events a second", listened["events_per_second"]),
        ("deliveries a second", listened["deliveries_per_second"]),
        ("delay of an event, median, ms", listened["p50_ms"]),
        ("delay of an event, p95, ms", listened["p95_ms"]),
        ("CPU of the API a delivery, us", listened["cpu_us_per_delivery"]),
        ("delay of a webhook, median, ms", posted["p50_ms"]),
        ("delay of a webhook, p95, ms", posted["p95_ms"]),
        ("CPU of the recorder a webhook, ms", posted["cpu_ms_per_delivery"]),
    ]
    publish({"events": listened, "webhook": posted}, ("", "value"), rows)


@contextmanager
def program(settings: Settings, *arguments: str) -> Iterator[tuple[psutil.Process, str]]:
    """Run a program of the service; yield it, and its URL if it has one, once it is ready."""
    # `ready` is logged at the level info.
    environment = child_environment(settings.model_copy(update={"log_level": "info"}))
    with subprocess.Popen(
        [sys.executable, "-m", *arguments],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if '"ready"' in line:
                break
        else:
            raise SystemExit(f"{arguments[0]} ended before it was ready")
        rest = threading.Thread(target=lambda: list(process.stdout or ()), daemon=True)
        rest.start()
        try:
            yield psutil.Process(process.pid), json.loads(line).get("url", "")
        finally:
            process.terminate()
            process.wait()


def measure_listeners(client: Service, options: argparse.Namespace) -> dict[str, Any]:
    """Return how events reach listeners."""
    with program(client.settings, "streamer.cli", "serve") as (process, url):
        delays = asyncio.run(_listen_and_publish(client, process, url, options))
    cpu, took, values = delays
    p50, p95 = percentiles(values, 50, 95)
    return {
        "listeners": options.listeners,
        "events_per_second": len(values) / options.listeners / took,
        "deliveries_per_second": len(values) / took,
        "p50_ms": 1000 * p50,
        "p95_ms": 1000 * p95,
        "cpu_us_per_delivery": 1e6 * cpu / len(values),
    }


async def _listen_and_publish(
    client: Service, process: psutil.Process, url: str, options: argparse.Namespace
) -> tuple[float, float, list[float]]:
    events = Events(client.connections.main)
    count = max(1, round(options.rate * options.seconds))
    parts = urlsplit(url)
    ready = asyncio.Barrier(options.listeners + 1)

    async def listen() -> list[float]:
        reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
        writer.write(f"GET /v1/events HTTP/1.1\r\nHost: {parts.netloc}\r\n\r\n".encode())
        heard: list[float] = []
        while len(heard) < count:
            line = await reader.readline()
            if line.startswith(b'data: {"now"'):
                await ready.wait()
            elif line.startswith(b"data: "):
                heard.append(time.monotonic() - json.loads(line[6:])["data"]["at"])
        writer.close()
        return heard

    async def announce() -> tuple[float, float]:
        await ready.wait()
        used, began = cpu_seconds(process), time.monotonic()
        for number in range(count):
            await asyncio.sleep(max(0.0, began + number / options.rate - time.monotonic()))
            data = {"at": time.monotonic(), "text": PAYLOAD}
            await asyncio.to_thread(events.publish, EventType.RESULT_CREATED, data)
        return used, began

    listeners = [asyncio.create_task(listen()) for _ in range(options.listeners)]
    used, began = await announce()
    heard = await asyncio.gather(*listeners)
    took = time.monotonic() - began
    return cpu_seconds(process) - used, took, [delay for each in heard for delay in each]


def measure_webhook(client: Service, count: int) -> dict[str, Any]:
    """Return how results reach a webhook."""
    came: dict[str, float] = {}
    done = threading.Event()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            came[body["data"].get("request_id", "test")] = time.monotonic()
            self.send_response(204)
            self.end_headers()
            if len(came) == count + 1:
                done.set()

        def log_message(self, format: str, *args: object) -> None:
            """Log nothing."""

    receiver = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=receiver.serve_forever, daemon=True).start()
    results = Results(client.connections.main, client.settings)
    address = f"http://127.0.0.1:{receiver.server_port}/"
    webhook, _ = client.webhooks.create(address, types=["result.created"])
    sent: dict[str, float] = {}
    with program(client.settings, "workers.recorder") as (process, _):
        client.webhooks.test(webhook.id)  # the first message loads what the others need
        while client.webhooks.position() is None or not came:
            time.sleep(0.1)
        used = cpu_seconds(process)
        for number in range(count):
            result = Result(
                request_id=f"req_{os.getpid()}_{number}",
                kind="caption",
                stream_id="str_1",
                stream_name="yard",
                prompt="?",
                text=PAYLOAD,
            )
            sent[result.request_id] = time.monotonic()
            results.publish(result, owner_id="wch_1")
            time.sleep(0.1)
        if not done.wait(60):
            raise SystemExit(f"{count + 1 - len(came)} of {count} messages did not come")
        cpu = cpu_seconds(process) - used
    receiver.shutdown()
    p50, p95 = percentiles([came[each] - sent[each] for each in sent], 50, 95)
    return {
        "messages": count,
        "p50_ms": 1000 * p50,
        "p95_ms": 1000 * p95,
        "cpu_ms_per_delivery": 1000 * cpu / count,
    }


if __name__ == "__main__":
    main()
