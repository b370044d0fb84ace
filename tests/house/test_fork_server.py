"""Programs of the fork server behave as those of a fresh interpreter."""

import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.fork_server import run_python, spawn_python
from tests.support.installation import clean_environment

REPORT = """
import os, signal, sys, threading
print(sys.argv[1:], sys.orig_argv[1:], sys.path[0], __name__, os.getcwd())
print(os.environ["GIVEN"], "HOME" in os.environ, sys.stdin.read(), sys.stdout.isatty())
print(os.getsid(0) == os.getpid(), threading.active_count(), len(os.listdir("/proc/self/fd")))
print(signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM))
print("to stderr", file=sys.stderr)
"""

ENDS = {
    "pass": 0,
    "raise SystemExit(3)": 3,
    "raise OSError('disk')": 1,
    "import os, signal; os.kill(os.getpid(), signal.SIGKILL)": -signal.SIGKILL,
    "import os, signal; os.kill(os.getpid(), signal.SIGINT)": -signal.SIGINT,
    "import atexit; atexit.register(print, 'the end')": 0,
    "import threading; threading.Timer(0.1, print, ['late']).start()": 0,
}


def run_fresh(arguments: list[str], env: dict[str, str]) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, *arguments],
        env=env,
        capture_output=True,
        text=True,
        timeout=60,
        stdin=subprocess.DEVNULL,
        start_new_session=True,
    )


@pytest.mark.parametrize("form", ["file", "module", "code"])
def test_it_sees_what_a_fresh_program_sees(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str
) -> None:
    # given a program that reports all that it was given
    program = tmp_path / "report_all.py"
    program.write_text(REPORT)
    monkeypatch.chdir(tmp_path)
    forms = {"file": [str(program)], "module": ["-m", "report_all"], "code": ["-c", REPORT]}
    arguments = [*forms[form], "a b", "--c"]
    env = {"GIVEN": "this"}
    # when it is started in both ways
    fresh = run_fresh(arguments, clean_environment(**env))
    forked = run_python(arguments, env=clean_environment(**env))
    # then it reports the same
    assert fresh.returncode == 0, fresh.stderr
    assert (forked.returncode, forked.stdout, forked.stderr) == (0, fresh.stdout, "to stderr\n")


@pytest.mark.parametrize(("code", "returncode"), ENDS.items(), ids=str)
def test_it_ends_as_a_fresh_program_does(tmp_path: Path, code: str, returncode: int) -> None:
    program = tmp_path / "ends.py"
    program.write_text(code)

    forked = run_python([str(program)], env=clean_environment())

    assert forked.returncode == returncode, forked.stderr
    fresh = run_fresh([str(program)], clean_environment())
    assert fresh.returncode == returncode
    assert forked.stdout == fresh.stdout
    last = fresh.stderr.splitlines()[-1:]
    assert forked.stderr.splitlines()[-1:] == last


def test_it_gets_signals_and_can_be_waited_for(
    tmp_path: Path, eventually: Callable[..., None]
) -> None:
    program = tmp_path / "waits.py"
    program.write_text("import time; print('up', flush=True); time.sleep(100)")
    log = tmp_path / "log"

    waiting = spawn_python([str(program)], env=clean_environment(), log=log)

    eventually(lambda: log.read_text() == "up\n")
    assert waiting.poll() is None
    with pytest.raises(subprocess.TimeoutExpired):
        waiting.wait(0.01)
    waiting.terminate()
    assert waiting.wait(60) == -signal.SIGTERM
    assert waiting.poll() == -signal.SIGTERM
