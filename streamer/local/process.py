"""Start and stop child processes, which end with their parent."""

import contextlib
import ctypes
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import BinaryIO

MAX_LOG_BYTES = 4 << 20
"""Bytes beyond which a log is moved aside; there is one older log beside each."""

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
# Loaded here, because nothing may be imported between fork and exec.
_libc = ctypes.CDLL(None) if sys.platform == "linux" else None


def end_with_parent(parent: int) -> None:
    """Ask the kernel, in a child of `parent`, to send SIGTERM when the parent ends."""
    if _libc is not None:
        _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
        if os.getppid() != parent:  # the parent ended before prctl took effect
            os._exit(1)


@contextlib.contextmanager
def adopting_orphans() -> Iterator[None]:
    """Become the parent of descendants whose own parent ends meanwhile. Linux only.

    Raises OSError.
    """
    if _libc is None or _libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        raise OSError("the system lets no process adopt others")
    try:
        yield
    finally:
        _libc.prctl(_PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0)


def open_log(log: Path) -> BinaryIO:
    """Open a log to append to it; create it for its owner only."""
    log.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    return os.fdopen(descriptor, "ab")


def spawn(
    argv: Sequence[str | Path],
    *,
    env: Mapping[str, str] | None = None,
    log: Path | None = None,
    pass_fds: Sequence[int] = (),
) -> subprocess.Popen[bytes]:
    """Start `argv` in its own session, so that Ctrl-C in the terminal reaches only this process.

    On Linux, the child gets SIGTERM when the *thread* that called this ends for any reason: call
    it from the main thread, or from one that lives as long. `env` replaces the environment. The
    child's stdout and stderr are appended to `log` (mode 0600), or go where this process's go.

    Raises OSError if the program cannot be started.
    """
    parent = os.getpid()
    with contextlib.ExitStack() as stack:
        output = stack.enter_context(open_log(log)) if log is not None else None
        return subprocess.Popen(
            [os.fspath(part) for part in argv],
            env=dict(env) if env is not None else None,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT if output is not None else None,
            start_new_session=True,
            pass_fds=pass_fds,
            preexec_fn=lambda: end_with_parent(parent),
        )


def rotate_log(log: Path) -> bool:
    """Keep the size of a log that a running program appends to within bounds: beyond
    `MAX_LOG_BYTES` copy it to `.log.1` and empty it. Return whether that was done.

    A line that is written in between is lost.
    """
    with contextlib.suppress(OSError):  # the disk is full, or the log is not there yet
        if log.stat().st_size > MAX_LOG_BYTES:
            shutil.copy(log, log.with_suffix(".log.1"))  # with its mode
            os.truncate(log, 0)
            return True
    return False


def stop(process: subprocess.Popen[bytes], timeout: float = 5.0) -> int:
    """Send SIGTERM to `process`; after `timeout` seconds, kill it and its whole session.

    Returns its exit code (negative: the signal that ended it). A second call does nothing.
    """
    if process.poll() is None:
        process.terminate()
    try:
        return process.wait(timeout)
    except subprocess.TimeoutExpired:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.kill()  # in case it has no session of its own
        return process.wait()
