"""Run one model worker for each GPU, and take a GPU out of service whose worker fails too often."""

import json
import socket
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import redis
import structlog

from streamer.clock import Clock, SystemClock
from streamer.errors import ErrorCode, StreamerError
from streamer.health.sick_gpus import DEVICE_LOST, REPORT_EVERY, SickGpu, SickGpus
from streamer.local.installation import STOP_SECONDS, child_environment
from streamer.local.supervised_process import SupervisedProcess, log_event
from streamer.redis_client.connections import Connections
from streamer.settings import ENV_PREFIX, Settings

MAX_DEATHS = 5
DEATH_WINDOW = 600.0
"""A GPU is out of service when its worker has ended MAX_DEATHS times within so many seconds."""

PAUSE = 900.0
"""Seconds until a GPU that is out of service is tried again."""

_log = structlog.get_logger(__name__)


@dataclass
class _GpuWorker:
    """The worker of a GPU.

    Attributes:
        deaths: when it ended lately, monotonic seconds.
        trial: until when, monotonic seconds, one more death is enough.
        sick: what is reported while the GPU is out of service.
    """

    gpu: str
    process: SupervisedProcess
    deaths: list[float] = field(default_factory=list)
    trial: float = float("-inf")
    sick: SickGpu | None = None


class GpuWorkers:
    """Model workers, one for each GPU, which are started again when they end.

    Use it from the main thread, as a context manager, and call `poll` a few times per second.

    Args:
        gpus: UUIDs or numbers.
        make: returns the program of a GPU, not yet started.
        relay: receives each line that a program logs, with its GPU.
        clock: the time.
    """

    def __init__(
        self,
        gpus: Sequence[str],
        make: Callable[[str], SupervisedProcess],
        *,
        relay: Callable[[str], None] = lambda _: None,
        clock: Clock | None = None,
    ) -> None:
        self._clock = clock or SystemClock()
        self._relay = relay
        self._workers = [_GpuWorker(gpu, make(gpu)) for gpu in gpus]

    def __enter__(self) -> "GpuWorkers":
        for worker in self._workers:
            worker.process.start()
        return self

    def __exit__(self, *_: object) -> None:
        for worker in self._workers:
            worker.process.ask_to_stop()
        deadline = self._clock.monotonic() + STOP_SECONDS
        for worker in self._workers:
            worker.process.stop(deadline - self._clock.monotonic())
            self._pass_on(worker)

    @property
    def gpus(self) -> list[str]:
        """The GPUs."""
        return [worker.gpu for worker in self._workers]

    def sick(self) -> list[SickGpu]:
        """Return the GPUs that are out of service. Any thread may ask."""
        return [worker.sick for worker in self._workers if worker.sick is not None]

    def poll(self) -> None:
        """Start workers again that have ended, each after a growing delay.

        Raises StreamerError if each worker has ended and none has ever been ready: another start
        would not help.
        """
        for worker in self._workers:
            news = worker.process.restart_if_ended()
            self._pass_on(worker)  # afterwards: a program logs before it ends
            if news is not None:
                self._note_death(worker, news)
            elif worker.sick and worker.process.ready and worker.process.running:
                worker.sick = None
                _log.info("gpu_in_service", gpu=worker.gpu)
            worker.process.rotate_log()
        if all(worker.deaths and not worker.process.was_ready for worker in self._workers):
            raise StreamerError(ErrorCode.MODEL_FAILED, self._workers[0].process.last_message())

    def _note_death(self, worker: _GpuWorker, news: str) -> None:
        now = self._clock.monotonic()
        worker.deaths = [at for at in worker.deaths if now - at < DEATH_WINDOW] + [now]
        lost = worker.process.exit_code == DEVICE_LOST
        if not lost and len(worker.deaths) < MAX_DEATHS and now >= worker.trial:
            _log.warning("worker_ended", gpu=worker.gpu, message=news)
            return
        worker.process.postpone(PAUSE)
        since = self._clock.time()
        worker.sick = SickGpu(
            host=socket.gethostname(),
            gpu=worker.gpu,
            reason=worker.process.last_message()[:500],
            since=since if worker.sick is None else worker.sick.since,
            retry_at=since + PAUSE,
        )
        worker.trial = now + PAUSE + DEATH_WINDOW
        _log.error(
            "gpu_out_of_service",
            gpu=worker.gpu,
            exit_code=worker.process.exit_code,
            reason=worker.sick.reason,
            advice=f"Check the GPU with `nvidia-smi` and the log for its errors; it is tried again "
            f"in {PAUSE / 60:.0f} minutes.",
        )

    def _pass_on(self, worker: _GpuWorker) -> None:
        for line in worker.process.new_lines():
            event = log_event(line)
            named = {"gpu": worker.gpu, **event} if event is not None else None
            self._relay(json.dumps(named) if named is not None else f"{worker.gpu}: {line}")


def worker_of_gpu(
    settings: Settings, gpu: str, program: Sequence[str], clock: Clock | None = None
) -> SupervisedProcess:
    """Return the model worker of a GPU, not yet started. Its log is in the data folder.

    It sees this GPU alone. A worker for which no device is chosen must have it, and does not run on
    the processor instead.
    """
    device = "cuda" if settings.device == "auto" else settings.device
    environment = child_environment(settings) | {
        "CUDA_VISIBLE_DEVICES": gpu,
        "CUDA_DEVICE_ORDER": "PCI_BUS_ID",  # the numbers of nvidia-smi
        f"{ENV_PREFIX}DEVICE": device,
    }
    log = settings.data_dir / "logs" / f"model-worker-{gpu.replace('/', '-').lower()}.log"
    return SupervisedProcess(f"model worker of GPU {gpu}", program, environment, log, clock)


class SickGpuReporter:
    """Reports in a thread which GPUs are out of service: a Redis that hangs delays no restart."""

    def __init__(self, settings: Settings, workers: GpuWorkers) -> None:
        self._settings = settings
        self._workers = workers
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="sick-gpus", daemon=True)

    def __enter__(self) -> "SickGpuReporter":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()

    def _run(self) -> None:
        reported = False
        while not self._ended.wait(REPORT_EVERY):
            sick = self._workers.sick()
            if not sick and not reported:
                continue
            try:
                with Connections(self._settings) as connections:
                    SickGpus(connections.main).report(
                        socket.gethostname(), self._workers.gpus, sick, connections.clock.time()
                    )
            except (redis.exceptions.RedisError, StreamerError) as error:
                _log.warning("sick_gpus_not_reported", reason=str(error))
            else:
                reported = bool(sick)
