"""SupervisedProcess processes that end when they should: with their parent, or when told."""

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

_PR_SET_PDEATHSIG = 1
# Loaded here: between fork and exec nothing may be imported.
_libc = ctypes.CDLL(None) if sys.platform == "linux" else None


def _die_with(parent: int) -> None:
    """Runs in the child, before exec: ask the kernel for SIGTERM when the parent is gone."""
    if _libc is not None:
        _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
        if os.getppid() != parent:  # it died before prctl took hold
            os._exit(1)


def spawn(
    argv: Sequence[str | Path],
    *,
    env: Mapping[str, str] | None = None,
    log: Path | None = None,
    pass_fds: Sequence[int] = (),
) -> subprocess.Popen[bytes]:
    """Start `argv` in a session of its own, so that a Ctrl-C in the terminal reaches only us.

    On Linux the child gets SIGTERM when the *thread* that called this ends, however it ends: call
    it from the main thread, or from one that lives as long. `env` replaces the environment; `log`
    is appended to with the child's stdout and stderr (mode 0600), which it else shares with us.

    Raises OSError when the program cannot be started.
    """
    parent = os.getpid()
    with contextlib.ExitStack() as stack:
        output = None
        if log is not None:
            log.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
            output = stack.enter_context(os.fdopen(descriptor, "ab"))
        return subprocess.Popen(
            [os.fspath(part) for part in argv],
            env=dict(env) if env is not None else None,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT if output is not None else None,
            start_new_session=True,
            pass_fds=pass_fds,
            preexec_fn=lambda: _die_with(parent),
        )


def stop(process: subprocess.Popen[bytes], timeout: float = 5.0) -> int:
    """Ask `process` to end, wait `timeout` seconds, then kill it and all of its session.

    Returns its exit code (negative: the signal that ended it). Stopping twice is harmless.
    """
    if process.poll() is None:
        process.terminate()
    try:
        return process.wait(timeout)
    except subprocess.TimeoutExpired:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        return process.wait()
