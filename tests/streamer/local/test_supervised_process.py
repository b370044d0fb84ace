import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from streamer.local import process
from streamer.local import supervised_process as child_module
from streamer.local.supervised_process import SupervisedProcess

READY = 'import time; print(\'{"event": "ready", "url": "here"}\', flush=True); time.sleep(60)'


def make(tmp_path: Path, code: str) -> SupervisedProcess:
    return SupervisedProcess(
        "thing", [sys.executable, "-c", code], os.environ, tmp_path / "logs" / "thing.log"
    )


def test_it_is_ready_when_its_log_says_so(tmp_path: Path, eventually: Callable[..., None]) -> None:
    child = make(tmp_path, READY)
    assert not child.running
    child.start()
    try:
        eventually(child.check_ready)
        assert child.ready == {"event": "ready", "url": "here"}
        assert child.running
        assert child.restart_if_ended() is None
    finally:
        child.stop(5.0)
    assert not child.running
    assert child.pid is None


def test_half_a_line_is_not_read(tmp_path: Path, eventually: Callable[..., None]) -> None:
    child = make(
        tmp_path, "import time; print('{\"event\": \"rea', end='', flush=True); time.sleep(60)"
    )
    child.start()
    try:
        eventually(lambda: (tmp_path / "logs" / "thing.log").stat().st_size > 0)
        assert not child.check_ready()
    finally:
        child.stop(5.0)


def test_one_that_dies_is_started_again_after_growing_delays(
    tmp_path: Path, eventually: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(child_module, "MIN_DELAY", 0.05)
    child = make(tmp_path, "import sys; sys.exit('There is no model here.')")
    child.start()
    news: list[str] = []

    def restarted_three_times() -> bool:
        said = child.restart_if_ended()
        news.extend([said] if said else [])
        return len(news) == 3

    eventually(restarted_three_times)
    assert [sentence.split("it in ")[1] for sentence in news] == ["0.05 s.", "0.1 s.", "0.2 s."]
    assert all("exit code 1: There is no model here." in sentence for sentence in news)


def test_after_a_calm_time_the_delay_is_short_again(
    tmp_path: Path, eventually: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(child_module, "STABLE_SECONDS", -1.0)
    child = make(tmp_path, READY)
    for _ in range(2):
        child.start()
        eventually(child.check_ready)
        assert child.pid is not None
        os.kill(child.pid, signal.SIGKILL)
        eventually(lambda: not child.running)
        news = child.restart_if_ended()
        assert news is not None
        assert f"it in {child_module.MIN_DELAY:g} s" in news
        assert "-9" in news


def test_a_log_is_set_aside_while_its_program_runs(
    tmp_path: Path, eventually: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    # given a program that is ready, writes a log without end, and one earlier log
    monkeypatch.setattr(process, "MAX_LOG_BYTES", 2000)
    log, older = tmp_path / "logs" / "thing.log", tmp_path / "logs" / "thing.log.1"
    code = (
        'import itertools, time\nprint(\'{"event": "ready"}\', flush=True)\n'
        "for n in itertools.count(): print('line', n, flush=True); time.sleep(0.001)"
    )
    child = make(tmp_path, code)
    child.start()
    try:
        # before it is ready, its log is left alone
        eventually(lambda: log.stat().st_size > 3000)
        child.rotate_log()
        assert not older.exists()
        eventually(child.check_ready)
        for _ in range(3):
            # when the log is large
            eventually(lambda: log.stat().st_size > 3000)
            before = older.read_text() if older.exists() else ""
            child.rotate_log()
            # then it is moved aside for its owner only, and the program goes on with an empty one
            assert older.read_text() != before
            assert older.stat().st_mode & 0o777 == 0o600
            assert b"\0" not in log.read_bytes()
            eventually(lambda: child.last_message().startswith("line"))
            assert child.restart_if_ended() is None
    finally:
        child.stop(5.0)


def test_a_large_log_of_an_earlier_run_is_set_aside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process, "MAX_LOG_BYTES", 100)
    log = tmp_path / "logs" / "thing.log"
    log.parent.mkdir()
    log.write_text('{"event": "ready"}\n' * 20)
    child = make(tmp_path, "print('new')")
    child.start()
    deadline = time.monotonic() + 120
    while child.running and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not child.check_ready(), "what an earlier run said does not count"
    assert log.read_text() == "new\n"
    assert child.last_message() == "new"
