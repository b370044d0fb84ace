"""Measure the CPU time of everything except the model, per clip.

    .venv/bin/python benchmarks/overhead.py [--clips 60] [--size 640x480] [--frames 4]
        [--watches 1] [--model demo] [--json]

There are two phases with the real parts and a real server. Each runs alone in this process, so that
its CPU time is the process's:

1. Ingest: a recording is decoded, sampled, measured, compressed, stored and cut into clip requests.
   The time of a bare PyAV loop over the same file, measured right after, is subtracted: decoding
   belongs to the stream, not to the clip.
2. Model worker: the worker's own slots and engine answer the same requests through RQ. With one
   PyTorch thread the model runs in the engine's thread only; the CPU time of that thread is
   subtracted. So is the time of `Engine.submit` (plan, tiles, tokens, hashes of the tiles),
   measured by the clocks of the threads that call it, and the worker's start and end. The engine
   knows the clips from the round before, so its row says little.

JPEGs are opened once for all `--watches` of the stream, so with several each clip has a part of
that time: it is that of opening one, times the number that the worker opened. The last row is the
same for the tiles of NVILA-Lite, which are larger than those of the demo model.

There are two servers, as `streamer up` has them: one for jobs, on disk, and one for frames, both
behind Unix sockets. Their CPU time comes from Linux.
"""

import argparse
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any
from unittest.mock import patch

import av
import cv2
import torch
from footage import write_street
from report import publish

from nvila_core import NVILA, Engine
from nvila_core.demo import CHECKPOINT
from streamer.domain.sampling import Sampling
from streamer.frames.jpeg import from_jpeg
from streamer.local.redis_server import EmbeddedServer
from streamer.logging_setup import configure_logging
from streamer.media.source import recording_threads
from streamer.queues.jobs import CLIP_JOB
from streamer.queues.models import CLIP_QUEUES
from streamer.redis_client.connections import Connections
from streamer.service import CAPTION_PROMPT, Service
from streamer.settings import Settings
from workers import context
from workers.gpu.clip_job import answer_clip, publish_failure
from workers.gpu.engine_backend import EngineBackend
from workers.gpu.opened_frames import OpenedFrames
from workers.ingest.job import run_stream
from workers.rq.thread_worker import ThreadWorker

SEED = 2_000_000_107
VIDEO_FPS = 10
NVILA_TILE = 448
"""Pixels of the side of a tile of NVILA-Lite."""

LABELS = {
    "ingest_ms": "ingest, less decoding",
    "worker_ms": "model worker, less the model",
    "worker_jpeg_ms": "- of it opening JPEGs",
    "redis_ms": "redis",
    "decode_ms": "(decoding)",
    "prepare_ms": "(model: preparing prompts)",
    "hash_ms": "(model: handing them to the engine)",
    "engine_ms": "(model: engine, clips in its cache)",
    "nvila_jpeg_ms": f"(opening JPEGs for tiles of {NVILA_TILE} pixels)",
}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clips", type=int, default=60, help="clips in a round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--size", default="640x480", help="width and height of the video")
    parser.add_argument("--frames", type=int, default=4, help="frames of a clip: 1 to 10")
    parser.add_argument("--watches", type=int, default=1, help="watches of the stream")
    parser.add_argument("--model", default="demo", help="demo, a folder, or a Hugging Face id")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)  # as the ingest worker does
    configure_logging("error")
    width, height = (int(side) for side in options.size.split("x"))
    with tempfile.TemporaryDirectory() as directory:
        video = Path(directory) / "street.mp4"
        # one clip a second: many clips from a short video
        write_street(video, SEED, options.clips, VIDEO_FPS, (width, height))
        folders = Path(directory)
        with (
            EmbeddedServer(folders / "redis", persistent=True, max_memory=None) as jobs,
            EmbeddedServer(folders / "frames", persistent=False, max_memory=None) as frames,
        ):
            rounds = measure(jobs, frames, video, options)
    parts = {name: median(one[name] for one in rounds) for name in rounds[0]}
    rows = [[LABELS[name], value] for name, value in parts.items()]
    given = {"size": options.size, "frames": options.frames, "watches": options.watches}
    column = f"{options.size}, {options.frames} frames"
    if options.watches > 1:
        column += f", {options.watches} watches"
    publish({"benchmark": "overhead", **given, **parts}, ["CPU milliseconds a clip", column], rows)


def measure(
    jobs: EmbeddedServer, frames: EmbeddedServer, video: Path, options: argparse.Namespace
) -> list[dict[str, float]]:
    """Return CPU milliseconds per clip by part, for each round."""
    settings = Settings(
        redis_url=jobs.local_url,
        frames_redis_url=frames.local_url,
        data_dir=video.parent,
        max_file_clips=1_000_000,
    )
    path = CHECKPOINT if options.model == "demo" else options.model
    model = NVILA.from_pretrained(str(path), device="cpu", dtype="float32")
    with Connections(settings) as connections, Service(settings) as client, Engine(model) as engine:
        backend = EngineBackend(engine, settings)
        context.install(
            context.WorkerContext(
                settings, connections, engine, model_name=options.model, backend=backend
            )
        )
        done = [
            one_round(client, connections, engine, backend.frames, (jobs, frames), video, options)
            for _ in range(options.rounds + 1)
        ]
    return done[1:]  # the first round warms up


def one_round(
    client: Service,
    connections: Connections,
    engine: Engine,
    opened: OpenedFrames,
    servers: Sequence[EmbeddedServer],
    video: Path,
    options: argparse.Namespace,
) -> dict[str, float]:
    """Ingest the video, answer its clips, detach it; return milliseconds per clip."""
    model = engine.model
    last_id = client.queue.last_id()
    served = cpu_of(servers)
    stream = client.attach(
        str(video),
        sampling=Sampling(fps=options.frames),
        watches=[
            client.watch(CAPTION_PROMPT + n * "!", window=1.0, max_frames=options.frames)
            for n in range(options.watches)
        ],
        probe=False,
    )
    ingest = cpu(lambda: run_stream(stream.id))
    decode = cpu(lambda: bare_decode(video))
    clips = client.registry.status(stream.id).counters.clips
    engine_thread = next(t for t in threading.enumerate() if t.name == "nvila-engine")
    assert engine_thread.ident is not None
    clock = time.pthread_getcpuclockid(engine_thread.ident)
    before, opened_before = time.clock_gettime(clock), opened.opened
    with timed(model, "prepare") as prepared, timed(engine, "submit") as submitted:
        whole = cpu(lambda: answer_all(connections, client.settings))
    computed = time.clock_gettime(clock) - before
    # an empty run is its start and end
    whole -= cpu(lambda: answer_all(connections, client.settings))
    results = [result for _, result in client.queue.read(last_id, 1.0)]
    served = cpu_of(servers) - served
    wrong = [result.error for result in results if result.error is not None]
    if wrong or clips == 0:
        raise SystemExit(wrong[0].message if wrong else "The video gave no clip.")
    share = (opened.opened - opened_before) / client.frames.count(stream.id) / clips
    tile = model.config.processor.size
    jpegs = share * cpu(lambda: open_jpegs(client, stream.id, tile))
    nvila_jpegs = share * cpu(lambda: open_jpegs(client, stream.id, NVILA_TILE))
    client.detach(stream.id)
    seconds = {
        "ingest_ms": (ingest - decode) / clips,
        "worker_ms": (whole - computed - sum(submitted)) / clips,
        "worker_jpeg_ms": jpegs,
        "redis_ms": served / clips,
        "decode_ms": decode / clips,
        "prepare_ms": sum(prepared) / clips,
        "hash_ms": (sum(submitted) - sum(prepared)) / clips,
        "engine_ms": computed / clips,
        "nvila_jpeg_ms": nvila_jpegs,
    }
    return {name: 1000 * value for name, value in seconds.items()}


def answer_all(connections: Connections, settings: Settings) -> None:
    """Answer all waiting clips, as `python -m workers.gpu --burst` does with a loaded model."""
    slots = settings.worker_slots or 16
    ThreadWorker(
        CLIP_QUEUES,
        connections.main,
        slots=slots,
        kept_threads=slots,
        functions={CLIP_JOB: answer_clip},
        stopping=threading.Event(),
        lease=settings.lease,
        on_failed=publish_failure,
    ).work(burst=True)


def open_jpegs(client: Service, stream_id: str, tile: int) -> None:
    """Open the stored frames as RGB pictures, large enough for one tile."""
    refs = client.frames.newest(stream_id, client.frames.count(stream_id))
    for ref, jpeg in zip(refs, client.frames.load(refs), strict=True):
        from_jpeg(jpeg, ref.width, ref.height, enough=(tile, tile))


@contextmanager
def timed(owner: Any, method: str) -> Iterator[list[float]]:
    """Collect the CPU seconds of each call of a method of `owner`, in any thread."""
    spent: list[float] = []
    call = getattr(owner, method)

    def measured(*args: Any, **options: Any) -> Any:
        began = time.thread_time()
        try:
            return call(*args, **options)
        finally:
            spent.append(time.thread_time() - began)

    with patch.object(owner, method, measured):
        yield spent


def bare_decode(video: Path) -> None:
    """Decode every frame, in as many threads as the ingest worker does, and discard it."""
    with av.open(str(video)) as container:
        stream = container.streams.video[0]
        stream.thread_type, stream.thread_count = "AUTO", recording_threads()
        for _ in container.decode(stream):
            pass


def cpu(run: Callable[[], Any]) -> float:
    """Run it; return the CPU seconds of all threads of this process."""
    before = time.process_time()
    run()
    return time.process_time() - before


def cpu_of(servers: Sequence[EmbeddedServer]) -> float:
    """Return the CPU seconds that the servers have used so far, by the clocks of Linux: the sums
    that /proc shows have hundredths of a second."""
    pids = [server.pid for server in servers if server.pid is not None]
    return sum(time.clock_gettime(~pid << 3 | 2) for pid in pids)  # as clock_getcpuclockid does


if __name__ == "__main__":
    main()
