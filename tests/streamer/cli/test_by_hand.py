"""The programs started one by one, as on several machines, instead of by `streamer up`."""

import json
import re
import signal
from collections.abc import Callable
from pathlib import Path

import httpx
import psutil
import pytest

from streamer.local.process import spawn, stop
from streamer.settings import Settings
from tests.support.fork_server import spawn_python
from tests.support.installation import PROGRAM, clean_environment, run_cli
from tests.support.videos import write_video


def test_a_program_started_by_hand_becomes_the_worker(
    settings: Settings, tmp_path: Path, eventually: Callable[..., None]
) -> None:
    variables = {
        "STREAMER_REDIS_URL": settings.redis_url or "",
        "STREAMER_DATABASE_URL": f"sqlite:///{tmp_path / 'timeline.db'}",
    }
    log = tmp_path / "record.log"
    running = spawn_python(
        ["-m", "streamer.cli", "record"], env=clean_environment(**variables), log=log
    )
    try:
        eventually(lambda: '"ready"' in log.read_text(), timeout=200)
        process = psutil.Process(running.pid)
        assert process.children() == []
        assert process.cmdline()[1:] == ["-m", "workers.recorder"]
        running.send_signal(signal.SIGINT)
        assert running.wait(120) == 0, log.read_text()
        assert "Traceback" not in log.read_text()
    finally:
        stop(running)


@pytest.mark.slow
def test_programs_started_by_hand_do_the_same_job(
    settings: Settings, model_path: str, tmp_path: Path, eventually: Callable[..., None]
) -> None:
    variables = {
        "STREAMER_REDIS_URL": settings.redis_url or "",
        "STREAMER_DATABASE_URL": f"sqlite:///{tmp_path / 'timeline.db'}",
    }
    programs: dict[str, list[str]] = {
        "ingest": [],
        "worker": ["--model", model_path],
        "record": [],
        "serve": ["--port", "0"],
    }
    logs = {name: tmp_path / f"{name}.log" for name in programs}
    running = {
        name: spawn(
            [*PROGRAM, name, *arguments], env=clean_environment(**variables), log=logs[name]
        )
        for name, arguments in programs.items()
    }

    def log(name: str) -> str:
        return logs[name].read_text() if logs[name].is_file() else ""

    try:
        for name in programs:
            eventually(lambda name=name: '"ready"' in log(name), timeout=200, message=log(name))
            # the program became the worker, there is no parent in between
            assert not psutil.Process(running[name].pid).children(), name

        video = tmp_path / "clip.mp4"
        write_video(video, seconds=4.0)
        done = run_cli("analyze", str(video), "--window", "2", "--json", timeout=100.0, **variables)
        assert done.returncode == 0, done.stderr
        results = [json.loads(line) for line in done.stdout.splitlines()]
        assert [result["data"]["media_start"] for result in results] == [0.0, 2.0]

        found = re.search(r"http://127\.0\.0\.1:\d+", log("serve"))
        assert found
        with httpx.Client(base_url=found[0], timeout=30) as api:
            eventually(lambda: len(api.get("/v1/results").json()["results"]) == 2)
            assert api.get("/healthz").status_code == 200

        for name, number in (("serve", signal.SIGINT), ("worker", signal.SIGTERM)):
            running[name].send_signal(number)
        for name in ("ingest", "record"):
            running[name].send_signal(signal.SIGINT)
        for name, process in running.items():
            assert process.wait(120) == 0, log(name)
            assert "Traceback" not in log(name)
    finally:
        for process in running.values():
            stop(process)
