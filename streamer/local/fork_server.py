"""Start Python programs that share the memory of the modules which all of them import.

A process that does nothing else forks them: the fork server. It is a fork of `streamer up` from
before that has threads or open files, and has one thread itself. Each program becomes a child of
`streamer up`, as if that had started it: it outlives the fork server, and ends with `streamer up`.
Linux only.
"""

import contextlib
import os
import select
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from streamer.file_pages import LOOK_SECONDS, release_file_pages
from streamer.local.forked_program import (
    MAX_BYTES,
    Order,
    become_session,
    close_descriptors,
    import_shared,
    run_order,
    same_start,
)
from streamer.local.process import adopting_orphans, open_log, stop

START_SECONDS = 60.0
"""Seconds for which a program's start is waited for; the modules it needs are imported in them."""

TITLE = "streamer fork server"
"""What `ps` shows of the fork server."""


class CannotFork(Exception):  # noqa: N818 - the caller starts the program in another way
    """A program cannot be forked; the text says why."""


class ForkServer:
    """The fork server, as `streamer up` uses it. A context manager, which ends it.

    Use it from the thread that started it, which must outlive the programs.
    """

    def __init__(self, pid: int, requests: socket.socket) -> None:
        self._process = AdoptedProcess([TITLE], pid)
        self._requests = requests
        self._environment = dict(os.environ)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    def spawn(
        self,
        arguments: Sequence[str],
        *,
        env: Mapping[str, str],
        log: Path,
        imports: Sequence[str] = (),
    ) -> "subprocess.Popen[bytes]":
        """Start `python ARGUMENTS` as `streamer.local.process.spawn` does, its output in `log`.

        Args:
            arguments: `-m MODULE ...`, `-c CODE ...` or `FILE ...`.
            env: the environment.
            log: where its output goes; mode 0600.
            imports: modules to import before the fork: what the program will import.

        Raises CannotFork: nothing was started; OSError if the log cannot be written.
        """
        if not same_start(env, self._environment):
            raise CannotFork("variables of one are read only at the start of an interpreter")
        order = Order(list(arguments), dict(env), os.getcwd(), list(imports)).encode()
        if len(order) > MAX_BYTES:
            raise CannotFork("the environment of one is too large")
        with open_log(log) as output:
            try:
                answer = self._ask(order, output.fileno())
            except OSError as error:
                self.close()
                raise CannotFork(f"the fork server does not answer ({error})") from None
        if not answer:
            self.close()
            raise CannotFork("the fork server has ended")
        if not answer.isdigit():
            raise CannotFork(f"the fork server cannot fork: {answer.decode(errors='replace')}")
        return AdoptedProcess([sys.executable, *arguments], int(answer))

    def _ask(self, order: bytes, output: int) -> bytes:
        """Return the process id of the new program, or why there is none. Raises OSError."""
        status, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        status.settimeout(START_SECONDS)
        with status, adopting_orphans():
            with theirs, open(os.devnull) as nothing:
                descriptors = [nothing.fileno(), output, output, theirs.fileno()]
                socket.send_fds(self._requests, [order], descriptors)
            try:
                return status.recv(1024)
            except TimeoutError:  # what it has not forked by now, it shall not fork later
                self._process.kill()
                self._process.wait()
                return status.recv(1024)

    def close(self) -> None:
        """End it; the programs run on. A second call does nothing."""
        self._requests.close()
        stop(self._process)


class AdoptedProcess(subprocess.Popen[bytes]):
    """A child of this process that it did not start itself."""

    def __init__(self, arguments: Sequence[str], pid: int) -> None:
        self._child_created = False  # for Popen: nothing to clean up
        self.args = list(arguments)
        self.pid = pid
        self.returncode: Any = None
        self.stdin = self.stdout = self.stderr = None
        self._reaping = threading.Lock()

    def poll(self) -> int | None:
        """Return the exit code, or None while it runs."""
        with self._reaping:
            if self.returncode is None:
                try:
                    pid, status = os.waitpid(self.pid, os.WNOHANG)
                except ChildProcessError:  # the system reaps children: SIGCHLD is ignored
                    pid, status = self.pid, 0
                if pid:
                    self.returncode = os.waitstatus_to_exitcode(status)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Return the exit code when it has ended; raise TimeoutExpired after `timeout` seconds."""
        until = None if timeout is None else time.monotonic() + timeout
        while (code := self.poll()) is None:
            left = 1.0 if until is None else until - time.monotonic()
            if left <= 0:
                raise subprocess.TimeoutExpired(self.args, timeout or 0.0)
            time.sleep(min(0.01, left))
        return code


def start_fork_server() -> "ForkServer | Callable[[], None]":
    """Fork this process: return the fork server and, in the new process, what it is to do once all
    that the caller has begun is undone.

    Raises CannotFork where a fork is not safe.
    """
    if sys.platform != "linux":
        raise CannotFork("only Linux can fork a program safely")
    if (
        sys.orig_argv[1:2]
        and sys.orig_argv[1].startswith("-")
        and sys.orig_argv[1] not in ("-m", "-c")
    ):
        raise CannotFork("the interpreter has options of its own")
    try:
        import_shared(())
        _require_one_thread()
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 2 * MAX_BYTES)
        for stream in (sys.stdout, sys.stderr):
            if stream is not None:
                stream.flush()
        supervisor = os.getpid()
        pid = os.fork()
    except (OSError, RuntimeError) as error:
        raise CannotFork(str(error)) from None
    if pid:
        theirs.close()
        return ForkServer(pid, ours)
    ours.close()
    return lambda: _serve(theirs, supervisor)


def _require_one_thread() -> None:
    """Raise RuntimeError if there are others: a fork copies the thread that forks alone, and what
    others have locked would stay locked."""
    if (threads := len(os.listdir("/proc/self/task"))) > 1:
        raise RuntimeError(f"{threads} threads run in the process to fork")


def _serve(requests: socket.socket, supervisor: int) -> None:
    """Fork programs until `requests` is closed; in the process of each, run it."""
    from setproctitle import setproctitle

    with open(os.devnull, "r+") as nothing:
        become_session([nothing.fileno(), nothing.fileno()], supervisor)
    setproctitle(TITLE)
    for name in [name for name in sys.modules if f"{name}.".startswith("streamer.cli.")]:
        del sys.modules[name]  # they hold the options of `streamer up`
    if (order := _fork_programs(requests, supervisor)) is not None:
        run_order(order)


def _fork_programs(requests: socket.socket, supervisor: int) -> Order | None:
    """Return None once `requests` is closed and, in the process of each program, its order."""
    while True:
        if not select.select([requests], [], [], LOOK_SECONDS)[0]:
            release_file_pages()  # it is idle until the next message
        message, descriptors, *_ = socket.recv_fds(requests, MAX_BYTES, 4)
        if not message:
            return None
        *streams, last = descriptors
        forked = False
        with socket.socket(fileno=last) as status, contextlib.suppress(BrokenPipeError):
            try:
                order = Order.decode(message)
                import_shared(order.imports)
                _require_one_thread()
                forked = _fork_orphan()
            except Exception as error:  # what an import raises may be anything
                status.send(str(error).encode()[:1000])
            if forked:
                become_session(streams, supervisor)
                status.send(str(os.getpid()).encode())
                requests.close()
        for stream in streams:
            os.close(stream)
        if forked:
            close_descriptors()
            return order


def _fork_orphan() -> bool:
    """Fork by way of a process that ends, so that `streamer up` adopts the new one. Return True in
    the new process and False in this one. Raises OSError."""
    if (between := os.fork()) == 0:
        with contextlib.suppress(OSError):
            if os.fork() == 0:
                return True
            os._exit(0)
        os._exit(1)
    _, status = os.waitpid(between, 0)
    if status:
        raise OSError("the system has no room for another process")
    return False
