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
from streamer.health.sick_gpus import DEVICE_LOST, SickGpu, SickGpus
from streamer.local import gpu_workers
from streamer.local.gpu_workers import GpuWorkers, SickGpuReporter, worker_of_gpu
from streamer.local.supervised_process import SupervisedProcess
from streamer.settings import Settings
from tests.support.clocks import ManualClock
from tests.support.installation import Up, wait_gone

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
        self._folder, self.settings = folder, settings
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
        made = worker_of_gpu(self.settings, gpu, program, self.clock)
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
    chosen = running.settings.model_copy(update={"device": "cpu"})
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


# What `nvidia-smi -L` prints on a machine with two GPUs.
TWO = f"GPU 0: NVIDIA H100 (UUID: {A})\nGPU 1: NVIDIA H100 (UUID: {B})\n"

# Programs of the service beside the API, each of which is ready at once. What sees a GPU notes it.
STAND_IN = """
import json, os, time
print(json.dumps({"event": "ready", "gpu": os.environ.get("CUDA_VISIBLE_DEVICES")}), flush=True)
time.sleep(600)
"""


@pytest.fixture
def two_gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An `nvidia-smi` that lists two GPUs, on the PATH."""
    program = tmp_path / "bin" / "nvidia-smi"
    program.parent.mkdir()
    program.write_text(f"#!/bin/sh\ncat <<'END'\n{TWO}END\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


@pytest.mark.parametrize(
    ("command", "words"),
    [
        (["worker", "--burst"], "--gpus goes neither with --burst nor"),
        (["worker", "--backend", "openai", "--base-url", "http://x/v1"], "--gpus goes neither"),
        (["up", "--workers", "2"], "--gpus goes neither with --workers nor"),
        (["up", "--backend", "openai", "--base-url", "http://x/v1"], "--gpus goes neither with"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_gpus_of_what_has_none_are_refused(
    command: list[str], words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STREAMER_DATA_DIR", str(tmp_path / "data"))
    said = CliRunner().invoke(app, [*command, "--gpus", "0", "--model", "demo"])
    assert said.exit_code != 0
    assert words in " ".join(f"{said.exception} {said.output}".split())


@pytest.mark.usefixtures("two_gpus")
@pytest.mark.parametrize("command", ["worker", "up"])
def test_a_gpu_that_is_not_there_is_refused_before_anything_starts(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STREAMER_DATA_DIR", str(tmp_path / "data"))
    said = CliRunner().invoke(app, [command, "--gpus", "0,2", "--model", "demo"])
    assert said.exit_code != 0
    words = " ".join(f"{said.exception} {said.output}".split())
    assert "There is no GPU 2: `nvidia-smi -L` lists 0, 1." in words
    assert not (tmp_path / "data").exists()


@pytest.mark.usefixtures("two_gpus")
def test_doctor_says_how_to_use_all_gpus(settings: Settings) -> None:
    from streamer.doctor.machine import gpus

    (found,) = gpus(settings)
    assert (found.name, found.state) == ("GPUs", "ok")
    assert found.message.startswith("2 GPUs, of which a model worker uses one")
    assert "`streamer up --gpus all`" in found.message
    # and nothing where no model runs here
    assert list(gpus(settings.model_copy(update={"backend": "openai"}))) == []


@pytest.mark.slow
@pytest.mark.usefixtures("two_gpus")
def test_up_runs_a_model_worker_on_each_gpu(tmp_path: Path, eventually: Eventually) -> None:
    # given the real `streamer up` and its API, and other programs that are ready at once
    folder = tmp_path / "programs" / "workers"
    folder.mkdir(parents=True)
    for module in ("gpu", "ingest", "recorder"):
        (folder / f"{module}.py").write_text(STAND_IN)
    (folder / "__init__.py").write_text("")
    paths = os.pathsep.join([str(folder.parent), str(Path(__file__).parents[3])])
    up = Up(
        tmp_path / "data",
        *("--model", "demo", "--gpus", "all"),
        fresh=True,
        PYTHONPATH=paths,
        PYTHONSAFEPATH="1",  # or the folder in which the tests run comes first
    )
    try:
        up.wait_ready()
        # then one supervisor runs two model workers, each of which sees its own GPU
        eventually(lambda: len(up.find("workers.gpu")) == 2)
        assert {each.environ()["CUDA_VISIBLE_DEVICES"] for each in up.find("workers.gpu")} == {A, B}
        assert {each.environ()["STREAMER_DEVICE"] for each in up.find("workers.gpu")} == {"cuda"}
        (supervisor,) = up.find("--gpus")
        shown = " ".join(supervisor.cmdline()).strip()  # a title, which ends in blanks
        assert shown.endswith(f"worker --gpus {A},{B}")
        # and starts one again that dies
        killed = up.find("workers.gpu")[0]
        killed.kill()
        eventually(lambda: len(set(up.find("workers.gpu")) - {killed}) == 2)
        # and nothing is left when `up` ends
        children = up.descendants()
        assert up.interrupt() == 0
        wait_gone(children)
    finally:
        up.stop()
