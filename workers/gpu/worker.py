"""Answer clip jobs with one model and one engine that batches all of them."""

import faulthandler
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

import structlog

from nvila_core.errors import NVILAError, first_line
from streamer.errors import ErrorCode, StreamerError
from streamer.file_pages import release_when_idle
from streamer.logging_setup import log_ready
from streamer.questions.surveys import MAX_OPEN_SURVEYS, release_ended
from streamer.queues.jobs import CHAT_JOB, CLIP_JOB, SURVEY_JOB
from streamer.queues.models import QUERIES, queue_name, queues_of_worker
from streamer.redis_client.connections import Connections, log_lacks
from streamer.redis_client.record_version import join_records
from streamer.settings import Settings
from workers import context
from workers.gpu.chat_job import answer_chat
from workers.gpu.clip_job import answer_clip, publish_failure, publish_lost
from workers.gpu.engine_backend import EngineBackend
from workers.gpu.inference import out_of_memory
from workers.gpu.loading import Loading
from workers.gpu.survey_job import answer_survey
from workers.gpu.warm_up import warm_up
from workers.gpu.watchdog import Watchdog
from workers.process import restart
from workers.rq.thread_worker import ThreadWorker

if TYPE_CHECKING:
    from nvila_core import NVILA, Engine
    from nvila_core.models.memory import EngineSize

_log = structlog.get_logger(__name__)

DEMO = "demo"
"""Value of the setting `model` that names the checkpoint in the package."""

_MAX_STOP = 1.0  # seconds for the engine's last step


def serve_clips(settings: Settings, stopping: threading.Event, burst: bool = False) -> None:
    """Load the model and answer clips until `stopping` is set or, with `burst`, until none is left.

    Raises:
        StreamerError: Redis does not answer, or the checkpoint cannot be used.
        NeedsRestart: the device or the engine broke down. All jobs have been put back.
    """
    # before the model, because it fails fast
    with (
        Connections(settings, patient=True) as connections,
        Loading(connections.main, settings.lease) as loading,
    ):
        join_records(connections.main)
        log_lacks(connections)
        own = context.WorkerContext(
            settings=settings,
            connections=connections,
            stopping=stopping,
            clock=connections.clock,
        )
        context.install(own)
        if settings.backend == "openai":
            from workers.remote.backend import RemoteBackend
            from workers.remote.server import DEFAULT_SLOTS

            with RemoteBackend(settings, own.clock) as remote:
                own.backend = remote
                slots = settings.worker_slots or DEFAULT_SLOTS
                _serve(own, loading, settings.model, remote.facts, slots, remote.closed, burst)
            return
        engine = load_engine(settings)
        own.engine, own.backend = engine, EngineBackend(engine, settings)
        model = engine.model
        name = DEMO if settings.model == DEMO else model.name
        slots = _size(settings, model, engine.kv_cache_tokens).worker_slots
        facts = {"device": str(model.device), "dtype": str(model.dtype).removeprefix("torch.")}
        with _running(engine, own):
            warm_up(own, engine)
            signalled = _serve(own, loading, name, facts, slots, lambda: False, burst)
        if own.failure is not None:
            restart.restore_default_signals()
            if not signalled:
                raise restart.NeedsRestart(own.failure)


def _serve(
    own: context.WorkerContext,
    loading: Loading,
    name: str,
    facts: Mapping[str, str],
    slots: int,
    defer: Callable[[], bool],
    burst: bool,
) -> bool:
    """Run the clip jobs of the model `name` in `slots` threads; return whether a signal ended it.

    `facts` are logged once it is ready. No job is taken while `defer` returns True.
    """
    settings, connections = own.settings, own.connections
    own.model_name = model = queue_name(name)
    default = settings.default_model in (None, model)
    models = own.jobs.served

    def sweep() -> None:
        models.note(model)
        own.lost_requests.sweep()
        release_ended(connections.main, own.jobs, own.streams, own.windows)

    worker = ThreadWorker(
        queues_of_worker(model, default=default),
        connections.main,
        slots=slots,
        kept_threads=slots,
        tier=2 if default else 1,
        kind=QUERIES,
        functions={CLIP_JOB: answer_clip, CHAT_JOB: answer_chat, SURVEY_JOB: answer_survey},
        stopping=own.stopping,
        lease=settings.lease,
        on_failed=publish_failure,
        on_missing=publish_lost,
        sweep=sweep,
        defer=defer,
        resting=2 * MAX_OPEN_SURVEYS,
        outage=connections.outage,
        clock=own.clock,
        measure=lambda: {
            **own.model.stats(),
            "model": model,
            "default": int(default),
            "clock_offset_seconds": connections.clock.offset,
        },
    )
    own.worker_name = worker.name

    def ready() -> None:
        loading.end()
        models.note(model)
        log_ready(worker=worker.name, model=model, **facts, slots=slots)
        release_when_idle()

    worker.work(burst=burst, on_ready=ready)
    return worker.signalled


@contextmanager
def _running(engine: "Engine", own: context.WorkerContext) -> Iterator[None]:
    """Run the engine in its thread, with a watchdog. At the end it has a moment to stop, but is not
    waited for: the process ends, and with it what the engine holds."""

    def stuck(seconds: float) -> None:
        faulthandler.dump_traceback(all_threads=True)  # shows in the log where it hangs
        own.fail(
            f"a step of the engine has not ended within {seconds:g} s: the device hangs, or this "
            "machine is so slow that step_timeout must be raised"
        )

    watchdog = Watchdog(engine.stats, own.settings.step_timeout, stuck)
    engine.start()
    watchdog.start()
    try:
        yield
    finally:
        watchdog.stop()
        stopper = threading.Thread(target=engine.stop, name="stop-engine", daemon=True)
        stopper.start()
        stopper.join(_MAX_STOP)


def load_engine(settings: Settings) -> "Engine":
    """Load the model that the settings name and return its engine.

    Raises StreamerError(MODEL_FAILED | OUT_OF_MEMORY).
    """
    from nvila_core.checkpoint.hub import find_checkpoint
    from nvila_core.demo import CHECKPOINT
    from nvila_core.json_fields import Fields
    from nvila_core.model_packages import require_model_packages

    path = str(CHECKPOINT) if settings.model == DEMO else settings.model
    try:
        require_model_packages()
        # Report a bad path before PyTorch is imported, which takes seconds.
        Fields.read(find_checkpoint(path) / "config.json")

        import torch

        from nvila_core import NVILA, Engine
        from nvila_core.tuning.compiled import compile_layers

        if settings.threads is not None:
            torch.set_num_threads(settings.threads)
        model = NVILA.from_pretrained(
            path,
            device=settings.device,
            dtype=settings.dtype,
            quantize=settings.quantize,
        )
        if settings.compile:
            try:
                compile_layers(model)
            except NVILAError as error:  # the model is unchanged
                _log.warning("not_compiled", reason=str(error))
        size = _size(settings, model, settings.kv_cache_tokens)
        _log.info(
            "engine_sized",
            kv_cache_tokens=size.kv_cache_tokens,
            max_num_seqs=size.max_num_seqs,
            why=size.reason,
        )
        return Engine(
            model,
            size.max_num_seqs,
            size.kv_cache_tokens,
            max_num_batched_tokens=settings.max_num_batched_tokens,
            step_tiles=settings.step_tiles,
            tile_cache_bytes=settings.tile_cache_bytes,
            tile_tolerance=settings.tile_tolerance,
        )
    except NVILAError as error:
        raise StreamerError(ErrorCode.MODEL_FAILED, str(error)) from error
    except (RuntimeError, MemoryError) as error:
        raise _cannot_load(settings, error) from error


def _size(settings: Settings, model: "NVILA", kv_cache_tokens: int | None) -> "EngineSize":
    """Return the size of the engine by the settings, and by the memory beside the loaded model."""
    from nvila_core.checkpoint.footprint import free_memory
    from nvila_core.models.memory import size_engine

    return size_engine(
        model.device.type,
        free_memory(model.device)[0],
        model.config.kv_size * model.dtype.itemsize,
        share=settings.gpu_memory_fraction if model.device.type == "cuda" else None,
        kv_cache_tokens=kv_cache_tokens,
        max_num_seqs=settings.max_num_seqs,
        worker_slots=settings.worker_slots,
    )


def _cannot_load(settings: Settings, error: Exception) -> StreamerError:
    if out_of_memory(error):
        return StreamerError(
            ErrorCode.OUT_OF_MEMORY,
            f"The model {settings.model} does not fit into the memory of the device "
            f"'{settings.device}': choose a smaller model, another dtype or another device.",
        )
    return StreamerError(
        ErrorCode.MODEL_FAILED,
        f"The device '{settings.device}' cannot run the model {settings.model} "
        f"({first_line(error)}): check it with `streamer doctor`.",
    )
