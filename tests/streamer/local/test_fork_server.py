"""Programs that `streamer up` forks are what fresh interpreters would be, and share memory."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from streamer.local.process import spawn
from tests.support.installation import clean_environment, shared_bytes, wait_gone

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux forks programs safely")

ROOT = Path(__file__).parents[3]
SLEEPS = ["-c", "import time; print('up', flush=True); time.sleep(600)"]
REPORT = """
import os, signal, sys, threading
print(sys.argv, sys.orig_argv[1:], sys.path[0], __name__, os.getcwd())
print(sorted(os.environ.items()), sys.stdin.read(), sys.stdout.line_buffering)
print(os.getsid(0) == os.getpid(), os.getppid(), threading.active_count())
print(len(os.listdir("/proc/self/fd")), os.stat(1).st_mode & 0o777)
print([signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)])
print("to stderr", file=sys.stderr)
"""


class Parent:
    """A program that starts others with a fork server, as `streamer up` does."""

    def __init__(self, folder: Path, *, start_seconds: float = 600.0) -> None:
        self.folder = folder
        self.env = clean_environment(PYTHONPATH=str(ROOT))
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.support.programs.forking", str(start_seconds)],
            cwd=folder,
            env=self.env,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._started = 0

    def tell(self, **told: Any) -> dict[str, Any]:
        """Tell it something; return what it says."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps(told) + "\n")
        self.process.stdin.flush()
        said: dict[str, Any] = json.loads(self.process.stdout.readline())
        return said

    def start(self, arguments: list[str], *imports: str, **env: str) -> dict[str, Any]:
        """Let it start a program, whose log is then `self.log`; return what it says."""
        self._started += 1
        self.log = self.folder / f"program-{self._started}.log"
        return self.tell(
            spawn=arguments, env={**self.env, **env}, log=str(self.log), imports=imports
        )

    def wait(self, pid: int) -> int:
        """Return how a program ended."""
        code: int = self.tell(wait=pid)["done"]
        return code

    @property
    def server(self) -> psutil.Process:
        """Its fork server."""
        return psutil.Process(self.tell()["done"])

    def close(self) -> None:
        """End it."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.close()
        self.process.wait()
        self.process.stdout.close()


@pytest.fixture
def parent(tmp_path: Path) -> Iterator[Parent]:
    """A program that starts others."""
    parent = Parent(tmp_path)
    yield parent
    parent.close()


@pytest.mark.parametrize("form", ["file", "module", "code"])
def test_a_program_sees_what_a_fresh_interpreter_sees(
    tmp_path: Path, parent: Parent, monkeypatch: pytest.MonkeyPatch, form: str
) -> None:
    # given a program that reports all that it was given
    (tmp_path / "report_all.py").write_text(REPORT)
    forms = {
        "file": [str(tmp_path / "report_all.py")],
        "module": ["-m", "report_all"],
        "code": ["-c", REPORT],
    }
    arguments = [*forms[form], "a b", "--c"]
    # when it is forked, and started as an interpreter of its own by this process
    started = parent.start(arguments, GIVEN="this")
    assert parent.wait(started["done"]) == 0, parent.log.read_text()
    monkeypatch.chdir(tmp_path)
    fresh_log = tmp_path / "fresh.log"
    fresh = spawn([sys.executable, *arguments], env={**parent.env, "GIVEN": "this"}, log=fresh_log)
    assert fresh.wait() == 0
    # then both report the same; each is a child of what started it
    told = parent.log.read_text().replace(f" {parent.process.pid} ", f" {os.getpid()} ")
    assert told == fresh_log.read_text()


def test_a_signal_that_is_ignored_stays_ignored(tmp_path: Path) -> None:
    # given a service that was started with `nohup`
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        parent = Parent(tmp_path)
    finally:
        signal.signal(signal.SIGHUP, before)
    # when it forks a program, then this ignores hang-ups too
    code = "import signal; print(signal.getsignal(signal.SIGHUP).name)"
    assert parent.wait(parent.start(["-c", code])["done"]) == 0
    assert parent.log.read_text() == "SIG_IGN\n"
    parent.close()


@pytest.mark.parametrize(
    ("code", "ends"),
    [
        ("pass", 0),
        ("raise SystemExit(3)", 3),
        ("raise OSError('disk')", 1),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", -signal.SIGKILL),
        ("import os; os._exit(7)", 7),
    ],
)
def test_its_parent_learns_how_it_ended(parent: Parent, code: str, ends: int) -> None:
    assert parent.wait(parent.start(["-c", code])["done"]) == ends


def test_it_is_a_child_that_shares_memory_and_shows_its_name(
    parent: Parent, eventually: Callable[..., None]
) -> None:
    # when a program is forked whose modules are imported before
    pid = parent.start(["-m", "tests.support.programs.sleeper", "a-camera"], "redis")["done"]
    program = psutil.Process(pid)
    eventually(lambda: "up" in parent.log.read_text())
    # then `ps` shows it as a child of its parent, by its own name
    assert program.ppid() == parent.process.pid
    assert program.name() == Path(sys.executable).name
    shown = " ".join(program.cmdline()).strip()
    assert shown == f"{sys.executable} -m tests.support.programs.sleeper a-camera"
    # and it has not imported them again
    assert shared_bytes(pid) > 4 << 20
    # and it has a log of its own, private to the user
    assert parent.log.stat().st_mode & 0o777 == 0o600
    # and it ends at a signal, while those beside it run on
    beside = parent.start(SLEEPS)["done"]
    program.terminate()
    assert parent.wait(pid) == -signal.SIGTERM
    assert psutil.Process(beside).is_running()
    assert "TimeoutExpired" in parent.tell(wait=beside, timeout=0.01)


def test_an_idle_fork_server_gives_back_the_pages_of_libraries(
    parent: Parent, eventually: Callable[..., None]
) -> None:
    # given one that has imported and forked
    assert parent.wait(parent.start(["-c", "pass"], "redis")["done"]) == 0
    server = parent.server
    before = server.memory_info().shared
    # when no request comes, then it unmaps them
    eventually(lambda: server.memory_info().shared < before / 2)
    # and it forks as before
    assert parent.wait(parent.start(["-c", "import redis"])["done"]) == 0


def test_a_variable_that_is_read_at_the_start_needs_a_fresh_interpreter(parent: Parent) -> None:
    for name in ("PYTHONHASHSEED", "LD_PRELOAD", "MALLOC_ARENA_MAX"):
        refused = parent.start(SLEEPS, **{name: "1"})
        assert "read only at the start" in refused["CannotFork"]
        assert not parent.log.exists()
    assert parent.wait(parent.start(["-c", "pass"], OTHER="1")["done"]) == 0


def test_what_cannot_be_imported_before_is_not_forked(parent: Parent) -> None:
    refused = parent.start(SLEEPS, "no_such_module")
    assert "no_such_module" in refused["CannotFork"]
    assert parent.wait(parent.start(["-c", "pass"])["done"]) == 0


def test_programs_outlive_a_fork_server_that_is_killed(parent: Parent) -> None:
    # given a program, and its fork server killed
    pid = parent.start(SLEEPS)["done"]
    server = parent.server
    server.kill()
    # when the next program is started, then it cannot be forked
    assert "fork server" in parent.start(SLEEPS)["CannotFork"]
    wait_gone([server])
    # and the first runs on, and its parent still learns how it ended
    program = psutil.Process(pid)
    assert program.is_running()
    assert program.ppid() == parent.process.pid
    program.kill()
    assert parent.wait(pid) == -signal.SIGKILL


def test_a_fork_server_that_hangs_is_ended_and_forks_nothing_later(tmp_path: Path) -> None:
    # given a fork server that does not run
    parent = Parent(tmp_path, start_seconds=0.5)
    server = parent.server
    server.suspend()
    # when a program is started
    refused = parent.start(SLEEPS)
    # then it is given up after a while, with its fork server
    assert "CannotFork" in refused
    wait_gone([server])
    assert parent.log.read_text() == ""
    assert psutil.Process(parent.process.pid).children() == []
    parent.close()


def test_all_end_with_the_parent(parent: Parent, eventually: Callable[..., None]) -> None:
    pid = parent.start(SLEEPS)["done"]
    eventually(lambda: "up" in parent.log.read_text())
    family = [parent.server, psutil.Process(pid)]
    parent.process.kill()
    wait_gone(family)


def test_a_process_with_threads_is_not_forked() -> None:
    code = (
        "import threading\nfrom streamer.local import fork_server\n"
        "threading.Thread(target=threading.Event().wait, daemon=True).start()\n"
        "try: fork_server.start_fork_server()\n"
        "except fork_server.CannotFork as error: print(error)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=100
    )
    assert "2 threads run" in done.stdout, done.stderr
