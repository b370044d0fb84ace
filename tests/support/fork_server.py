"""Start Python programs of tests quickly: most of their processor time would go into imports.

`spawn_python` and `run_python` start real processes, forked from one that has imported what the
program needs (tests/support/programs/fork_server.py). What only a fresh interpreter shows, such as
how long a start takes or what it imports, needs `streamer.local.process.spawn`.
"""

import contextlib
import os
import select
import shlex
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from streamer.local.forked_program import Order, same_start
from streamer.local.process import spawn

ROOT = Path(__file__).parents[2]

_SERVICE = (
    "alembic.command",
    "httpx",
    "streamer.api.server",
    "streamer.cli.app",
    "streamer.service",
    "streamer.terminal",
    "streamer.timeline.results",
    "tests.support.fork_server",
    "workers.ingest.__main__",
    "workers.recorder.__main__",
)
_MODEL = (
    "nvila_core.model",
    "nvila_core.engine.engine",
    "transformers.models.qwen2.tokenization_qwen2",
)
_NEED_MODEL = (
    *("workers.gpu", "nvila_core", "tests.support.programs.broken_gpu"),
    *("caption_video.py", "many_questions.py"),
)
"""Programs that need `_MODEL` too begin with one of these."""

_IMPORTED_TESTS = "tests.support.programs.imported_tests"

_seconds_of_programs = 0.0


def seconds_of_programs() -> float:
    """Return the processor time of the programs of this process that have ended, in seconds."""
    return _seconds_of_programs


class Forked(subprocess.Popen[bytes]):
    """A process of the fork server, used as if it were a child of this one."""

    def __init__(self, arguments: Sequence[str], pid: int, status: socket.socket) -> None:
        self._child_created = False  # another process reaps it
        self.args = [sys.executable, *arguments]
        self.pid = pid
        self.returncode: Any = None
        self.stdin = self.stdout = self.stderr = None
        self._status = status

    def poll(self) -> int | None:
        """Return the exit code, or None while it runs."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.wait(0)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Return the exit code when it has ended; raise TimeoutExpired after `timeout` seconds."""
        if self.returncode is None:
            if not select.select([self._status], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired(self.args, timeout or 0.0)
            code, seconds = self._status.recv(64).split()
            self._status.close()
            self.returncode = int(code)
            global _seconds_of_programs
            _seconds_of_programs += float(seconds)
        return self.returncode


class ForkServer:
    """The process that programs are forked from. All test processes of a run share one, so that
    it imports once: the first of them, or the process that distributes the tests, starts it.
    """

    def __init__(self) -> None:
        self.address: str | None = None
        """Path of its socket; None before it is started."""
        self._process: subprocess.Popen[bytes] | None = None
        self._end: socket.socket | None = None
        self._requests: socket.socket | None = None

    def can_start(self, env: Mapping[str, str]) -> bool:
        """Return whether a program would find everything as a fresh interpreter does."""
        paths = ("PYTHONPATH",)  # nothing that programs import lies there
        given, own = ({k: v for k, v in e.items() if k not in paths} for e in (env, os.environ))
        return same_start(given, own)

    def spawn(
        self, arguments: Sequence[str], *, env: Mapping[str, str], stdout: int, stderr: int
    ) -> Forked:
        """Start `python ARGUMENTS`, with two open descriptors for its output; it reads nothing."""
        program = arguments[1] if arguments[0] in ("-m", "-c") else Path(arguments[0]).name
        needs_model = (
            program.startswith(_NEED_MODEL)
            or (arguments[0] == "-c" and "nvila_core" in program)
            or list(arguments[1:3]) == ["streamer.cli", "up"]  # which forks its model worker
        )
        imports = [*_SERVICE, *(_MODEL if needs_model else ())]
        order = Order([os.fspath(part) for part in arguments], dict(env), os.getcwd(), imports)
        status, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs, open(os.devnull) as nothing:
            descriptors = [nothing.fileno(), stdout, stderr, theirs.fileno()]
            socket.send_fds(self._connection(), [order.encode()], descriptors)
        pid = status.recv(32)
        assert pid, "the fork server has ended: its messages are on stderr"
        return Forked(arguments, int(pid), status)

    def start(self) -> str:
        """Start the process, unless it runs; return the path of its socket."""
        if self.address is None:
            self.address = f"{tempfile.mkdtemp(prefix='fork-server-')}/socket"
            self._end, theirs = socket.socketpair()
            module = "tests.support.programs.fork_server"
            with theirs, socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
                listener.bind(self.address)
                listener.listen()
                descriptors = [theirs.fileno(), listener.fileno()]
                self._process = subprocess.Popen(
                    [sys.executable, "-m", module, *map(str, descriptors)],
                    cwd=ROOT,
                    stdin=subprocess.DEVNULL,
                    pass_fds=descriptors,
                    start_new_session=True,
                )
        return self.address

    def _connection(self) -> socket.socket:
        if self._requests is None:
            self._requests = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            self._requests.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
            self._requests.connect(self.start())
        return self._requests

    def close(self) -> None:
        """End the server if this process started it; programs that still run get SIGTERM."""
        if self._requests is not None:
            self._requests.close()
        if self._process is not None and self._end is not None and self.address is not None:
            self._end.close()
            self._process.wait()
            shutil.rmtree(Path(self.address).parent)


_server = ForkServer()


def pytest_configure(config: pytest.Config) -> None:
    """Use the server of the process that distributes the tests, if there is one."""
    _server.address = getattr(config, "workerinput", {}).get("fork_server")


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    """Start the server that the test processes of pytest-xdist share."""
    node.workerinput["fork_server"] = _server.start()


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_setupnodes(config: pytest.Config, specs: list[Any]) -> None:
    """Fork the test processes too, so that the tests are imported once.

    Those whose coverage is measured are fresh interpreters.
    """
    if getattr(config.option, "cov_source", None):
        return
    address = f"{Path(_server.start()).parent}/tests"
    importer = _server.spawn(
        ["-m", _IMPORTED_TESTS, address, "-m", config.option.markexpr, *config.args],
        env=os.environ,
        stdout=2,
        stderr=2,
    )
    while not os.path.exists(address):
        with contextlib.suppress(subprocess.TimeoutExpired):
            raise RuntimeError(f"The tests could not be imported: {importer.wait(0.05)}.")
    program = ROOT / "tests/support/programs/forked_interpreter.py"
    command = [sys.executable, "-I", "-S", program, address]
    for spec in specs:
        spec.python = shlex.join(map(str, command))


@pytest.hookimpl(trylast=True)  # after pytest-xdist has ended its processes
def pytest_sessionfinish() -> None:
    """End the server that this process started."""
    _server.close()


def spawn_python(
    arguments: Sequence[str], *, env: Mapping[str, str], log: Path
) -> subprocess.Popen[bytes]:
    """Start `python ARGUMENTS` as `streamer.local.process.spawn` does, its output in `log`."""
    if not _server.can_start(env):
        return spawn([sys.executable, *arguments], env=env, log=log)
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as output:
        return _server.spawn(arguments, env=env, stdout=output.fileno(), stderr=output.fileno())


def spawn_program(
    argv: Sequence[str | Path], *, env: Mapping[str, str], log: Path
) -> subprocess.Popen[bytes]:
    """Start a Python program of an installation: in place of `streamer.local.process.spawn`."""
    assert argv[0] == sys.executable
    return spawn_python([str(part) for part in argv[1:]], env=env, log=log)


@pytest.fixture
def forked_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let an installation in this process fork its programs, which saves their imports."""
    monkeypatch.setattr("streamer.local.supervised_process.spawn", spawn_program)


def run_python(
    arguments: Sequence[str], *, env: Mapping[str, str], timeout: float = 200.0
) -> "subprocess.CompletedProcess[str]":
    """Run `python ARGUMENTS` to its end; it reads nothing, and its output is captured."""
    if not _server.can_start(env):
        return subprocess.run(
            [sys.executable, *arguments],
            env=dict(env),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout,
        )
    with tempfile.TemporaryFile() as stdout, tempfile.TemporaryFile() as stderr:
        process = _server.spawn(arguments, env=env, stdout=stdout.fileno(), stderr=stderr.fileno())
        try:
            process.wait(timeout)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise
        texts = []
        for file in (stdout, stderr):
            file.seek(0)
            texts.append(file.read().decode())
        return subprocess.CompletedProcess(process.args, process.returncode, *texts)
