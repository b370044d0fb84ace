"""The gpu worker: `python -m workers.gpu [--burst]`. One model, one engine, many clips at once."""

import argparse
import sys
import threading
from typing import TYPE_CHECKING

import structlog

from streamer.connections import Connections
from streamer.errors import ErrorCode, StreamerError
from streamer.jobs import CLIP_JOB, CLIP_QUEUES
from streamer.settings import Settings
from workers import context, startup
from workers.clip import publish_failure
from workers.rq_worker import ThreadWorker

if TYPE_CHECKING:
    from nvila_core import NVILA

_log = structlog.get_logger(__name__)

DEMO = "demo"
"""The setting that names the checkpoint which the package ships."""


def serve(settings: Settings, stopping: threading.Event, burst: bool = False) -> None:
    """Load the model and answer clips until told to stop, or with `burst` until none is left.

    Raises StreamerError: Redis is not there, the checkpoint cannot be used, the engine died.
    """
    with Connections(settings) as connections:  # before the model: it fails in no time
        model = _load(settings)
        from nvila_core import Engine

        with Engine(model, settings.max_num_seqs, settings.kv_cache_tokens) as engine:
            own = context.WorkerContext(
                settings=settings,
                connections=connections,
                engine=engine,
                model_name=DEMO if settings.model == DEMO else model.name,
                stopping=stopping,
            )
            context.install(own)
            worker = ThreadWorker(
                CLIP_QUEUES,
                connections.main,
                slots=settings.worker_slots,
                functions={CLIP_JOB},
                stopping=stopping,
                lease=settings.lease,
                on_failed=publish_failure,
            )
            worker.work(
                burst=burst,
                on_ready=lambda: _log.info(
                    "ready",
                    worker=worker.name,
                    model=own.model_name,
                    device=str(model.device),
                    dtype=str(model.dtype).removeprefix("torch."),
                    slots=settings.worker_slots,
                ),
            )
            if own.failure is not None:
                raise StreamerError(ErrorCode.MODEL_FAILED, own.failure)


def _load(settings: Settings) -> "NVILA":
    from nvila_core import NVILA, NVILAError
    from nvila_core.demo import CHECKPOINT

    path = str(CHECKPOINT) if settings.model == DEMO else settings.model
    try:
        return NVILA.from_pretrained(path, device=settings.device, dtype=settings.dtype)
    except NVILAError as error:
        raise StreamerError(ErrorCode.MODEL_FAILED, str(error)) from error


def main() -> int:
    """Entry point; the exit code."""
    parser = argparse.ArgumentParser(prog="python -m workers.gpu", description=__doc__)
    parser.add_argument("--burst", action="store_true", help="end when the queues are empty")
    arguments = parser.parse_args()
    return startup.run(lambda settings, stopping: serve(settings, stopping, burst=arguments.burst))


if __name__ == "__main__":
    code = main()
    sys.stderr.flush()
    startup.leave(code)
