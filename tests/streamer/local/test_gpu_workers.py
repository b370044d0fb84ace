"""Test the supervisor of one model worker per GPU, with real processes that run short scripts."""

import json
import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
from typer.testing import CliRunner

from streamer.cli.app import app
from streamer.errors import ErrorCode, StreamerError
from streamer.local import gpu_workers
from streamer.local.gpu_workers import GpuWorkers, SickGpuReporter, worker_of_gpu
from streamer.local.supervised_process import SupervisedProcess
from streamer.settings import Settings
from streamer.sick_gpus import DEVICE_LOST, SickGpu, SickGpus
from tests.support.clocks import ManualClock

Eventually = Callable[..., None]

A, B = "GPU-aaaa", "GPU-bbbb"

# Ends as the file of its GPU says, otherwise runs until it is stopped.
SCRIPT = """
import json, os, pathlib, sys, time
gpu = os.environ["CUDA_VISIBLE_DEVICES"]
order = pathlib.Path(sys.argv[1], gpu)
end = order.read_text() if order.exists() else ""
if not end.startswith("at once"):
    print(json.dumps({"event": "ready", "device": os.environ["STREAMER_DEVICE"]}), flush=True)
if end:
    print(json.dumps({"event": "CUDA error: an illegal memory access"}), flush=True)
    sys.exit(int(end.split()[-1]))
time.sleep(600)
"""


class Rack:
    """GPUs whose workers end when the test says so, and a clock that the test moves."""

    def __init__(self, folder: Path, settings: Settings) -> None:
        self._folder, self._settings = folder, settings
        self.clock = ManualClock(1_000_000.0)
        self.lines: list[dict[str, Any]] = []
        self.processes: dict[str, SupervisedProcess] = {}
        self.workers = GpuWorkers(
            [A, B],
            self._make,
            relay=lambda line: self.lines.append(json.loads(line)),
            clock=self.clock,
        )

    def _make(self, gpu: str) -> SupervisedProcess:
        program = [sys.executable, "-c", SCRIPT, str(self._folder)]
        made = worker_of_gpu(self._settings, gpu, program, self.clock)
        self.processes[gpu] = made
        return made

    def order(self, gpu: str, end: str) -> None:
        """Let the next workers of a GPU end with this code, after they are ready or `at once`; with
        nothing, let them run."""
        (self._folder / gpu).write_text(end)

    def poll(self, seconds: float = 0.0) -> None:
        """Look after the workers, `seconds` later."""
        self.clock.now += seconds
        self.workers.poll()

    def started(self, gpu: str) -> int:
        """Return how often a worker of a GPU has been ready."""
        return sum(line["gpu"] == gpu and line["event"] == "ready" for line in self.lines)

    def gpus_out(self) -> list[str]:
        """Return the GPUs that are out of service."""
        return [sick.gpu for sick in self.workers.sick()]


@pytest.fixture
def rack(tmp_path: Path, settings: Settings) -> Rack:
    return Rack(tmp_path, settings)


@pytest.fixture
def running(rack: Rack, eventually: Eventually) -> Iterator[Rack]:
    """Both GPUs have a worker that is ready."""
    with rack.workers:
        eventually(lambda: rack.poll() or all(rack.started(gpu) == 1 for gpu in (A, B)))
        yield rack
    assert not any(process.running for process in rack.processes.values())


def end(rack: Rack, gpu: str, eventually: Eventually) -> None:
    """Kill the worker of a GPU."""
    pid = rack.processes[gpu].pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    eventually(lambda: not rack.processes[gpu].running)


def test_each_worker_sees_its_own_gpu_and_has_to_use_it(running: Rack) -> None:
    assert {line["gpu"] for line in running.lines} == {A, B}
    assert all(line["device"] == "cuda" for line in running.lines)
    # and a device that the settings name is kept
    chosen = running._settings.model_copy(update={"device": "cpu"})
    assert worker_of_gpu(chosen, A, []).environment["STREAMER_DEVICE"] == "cpu"


def test_a_worker_that_ends_is_started_again_after_growing_delays(
    running: Rack, eventually: Eventually
) -> None:
    for number, delay in enumerate((0.5, 1.0, 2.0)):
        end(running, A, eventually)
        running.poll()
        running.poll(0.9 * delay)
        assert not running.processes[A].running
        running.poll(0.2 * delay)
        eventually(lambda n=number: running.poll() or running.started(A) == n + 2)
    # and the other is left alone
    assert running.started(B) == 1
    assert running.gpus_out() == []


def test_a_gpu_that_fails_too_often_is_out_of_service_for_a_while_and_the_others_go_on(
    running: Rack, eventually: Eventually
) -> None:
    # given a GPU whose worker ends each time it has begun
    running.order(A, "1")
    end(running, A, eventually)
    # when it is started again and again
    eventually(lambda: running.poll(1.0) or running.gpus_out() == [A])
    # then it was given five chances, and its error is known
    assert running.started(A) == gpu_workers.MAX_DEATHS
    (sick,) = running.workers.sick()
    assert sick.reason == "CUDA error: an illegal memory access"
    # and is not tried before the pause is over, while the other GPU works
    running.poll(gpu_workers.PAUSE - 60)
    assert not running.processes[A].running
    assert running.processes[B].running
    # and one more failure then is enough
    running.order(A, "at once 1")
    running.poll(61)
    eventually(lambda: running.poll() or running.workers.sick()[0].retry_at > sick.retry_at)
    assert running.workers.sick()[0].since == sick.since
    # until it works again
    running.order(A, "")
    running.poll(gpu_workers.PAUSE)
    eventually(lambda: running.poll() or running.gpus_out() == [])
    assert running.processes[A].running
    # and a single failure later is forgiven
    running.poll(gpu_workers.DEATH_WINDOW)
    end(running, A, eventually)
    running.poll()
    assert running.gpus_out() == []


def test_a_gpu_whose_worker_has_given_up_is_out_of_service_at_once(
    running: Rack, eventually: Eventually
) -> None:
    running.order(A, str(DEVICE_LOST))
    end(running, A, eventually)
    running.poll()
    assert running.gpus_out() == []
    eventually(lambda: running.poll(0.1) or running.gpus_out() == [A])
    assert running.started(A) == 2


def test_deaths_that_are_far_apart_are_forgiven(running: Rack, eventually: Eventually) -> None:
    for number in range(gpu_workers.MAX_DEATHS + 1):
        end(running, A, eventually)
        running.poll()
        running.poll(gpu_workers.DEATH_WINDOW / 2)
        eventually(lambda n=number: running.poll() or running.started(A) == n + 2)
    assert running.gpus_out() == []


def test_one_gpu_that_is_sick_from_the_start_does_not_keep_the_others_from_working(
    rack: Rack, eventually: Eventually
) -> None:
    rack.order(A, "at once 1")
    with rack.workers:
        eventually(lambda: rack.poll(1.0) or (rack.gpus_out() == [A] and rack.started(B) == 1))


def test_if_no_worker_can_start_the_program_ends_with_the_reason(
    rack: Rack, eventually: Eventually
) -> None:
    for gpu in (A, B):
        rack.order(gpu, "at once 1")
    with rack.workers, pytest.raises(StreamerError, match="illegal memory access") as refusal:
        eventually(lambda: rack.poll(0.01))
    assert refusal.value.code is ErrorCode.MODEL_FAILED


def test_doctor_and_metrics_name_a_gpu_that_is_out_of_service(
    settings: Settings,
    redis_client: redis.Redis,
    api: Any,
    eventually: Eventually,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from streamer.doctor.redis_server import servers

    # given a supervisor with a GPU that is out of service
    monkeypatch.setattr(gpu_workers, "REPORT_EVERY", 0.05)
    now = redis_client.time()[0]
    out = [SickGpu("rack-1", A, "CUDA error: unknown", now, now + 900)]

    class Supervisor:
        gpus = (A, B)

        def sick(self) -> list[SickGpu]:
            return out

    with SickGpuReporter(settings, Supervisor()):  # type: ignore[arg-type]
        eventually(lambda: SickGpus(redis_client).read(now) == out)
        # then it is shown where people look
        found = [check for check in servers(settings) if check.name == f"GPU {A}"]
        assert [check.state for check in found] == ["warn"]
        assert "CUDA error: unknown" in found[0].message
        assert "streamer_gpus_out_of_service 1.0" in api.get("/metrics").text
        # and no longer when it works again
        out = []
        eventually(lambda: SickGpus(redis_client).read(now) == [])
    assert "streamer_gpus_out_of_service 0.0" in api.get("/metrics").text


def test_what_a_supervisor_has_said_counts_no_more_once_it_is_gone(
    redis_client: redis.Redis,
) -> None:
    sick = [SickGpu("rack-1", gpu, "lost", 50.0, 900.0) for gpu in (A, B)]
    reports = SickGpus(redis_client)
    reports.report("rack-1", [A], sick[:1], now=100.0)
    reports.report("rack-1", [B], sick[1:], now=120.0)

    assert reports.read(now=121.0) == sick
    assert reports.read(now=140.0) == sick[1:]
    assert reports.read(now=200.0) == []


@pytest.mark.parametrize(
    "also", [["--burst"], ["--backend", "openai", "--base-url", "http://x/v1"]]
)
def test_gpus_of_what_has_none_are_refused(also: list[str]) -> None:
    said = CliRunner().invoke(app, ["worker", "--gpus", "0", "--model", "demo", *also])
    assert said.exit_code != 0
    assert "--gpus goes neither with" in " ".join(f"{said.exception} {said.output}".split())
