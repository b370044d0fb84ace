"""End what a process has left behind."""

import contextlib
import os
import signal
import subprocess

import psutil


def kill_session(process: "subprocess.Popen[bytes]") -> None:
    """Kill the rest of the session of `process`, which has ended and has been waited for.

    While a member of the session lives, no new process gets the number of its leader. So a process
    that has this number is a stranger, and nothing of the session is left.
    """
    if not psutil.pid_exists(process.pid):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
