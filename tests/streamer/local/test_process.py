import os
import signal
import subprocess
import sys

import psutil
import pytest

from streamer.local.process import spawn, stop

SLEEPER = [sys.executable, "-c", "import time; print('up', flush=True); time.sleep(60)"]
STUBBORN = [
    sys.executable,
    "-c",
    "import signal, subprocess, sys, time\n"
    "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
    "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])\n"
    "print(child.pid, flush=True)\n"
    "time.sleep(60)",
]
PARENT = """
import sys, time
from streamer.local.process import spawn
child = spawn([sys.executable, "-c", "import time; time.sleep(60)"])
print(child.pid, flush=True)
time.sleep(60)
"""


def gone(pid):
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def test_a_child_has_its_own_session_and_writes_to_a_private_log(tmp_path, eventually):
    log = tmp_path / "logs" / "child.log"
    process = spawn(SLEEPER, log=log)
    try:
        eventually(lambda: log.exists() and "up" in log.read_text())
        assert os.getsid(process.pid) == process.pid != os.getsid(0)
        assert log.stat().st_mode & 0o077 == 0
    finally:
        stop(process)


def test_stop_ends_a_polite_child_and_may_be_called_twice():
    process = spawn(SLEEPER)
    assert stop(process) == -signal.SIGTERM
    assert stop(process) == -signal.SIGTERM


def test_stop_kills_a_child_that_ignores_it_with_all_its_children(tmp_path, eventually):
    # given a child that ignores SIGTERM and has a child of its own
    log = tmp_path / "log"
    process = spawn(STUBBORN, log=log)
    eventually(lambda: log.read_text().strip())
    grandchild = int(log.read_text())
    # when it is stopped
    code = stop(process, timeout=0.3)
    # then both are gone
    assert code == -signal.SIGKILL
    eventually(lambda: gone(grandchild))


@pytest.mark.skipif(sys.platform != "linux", reason="PR_SET_PDEATHSIG is Linux's")
def test_a_child_dies_when_its_parent_is_killed(eventually):
    parent = subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE)
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    assert not gone(child)
    parent.kill()
    parent.wait()
    parent.stdout.close()
    eventually(lambda: gone(child))


def test_a_program_that_is_not_there_is_an_error():
    with pytest.raises(FileNotFoundError):
        spawn(["no-such-program-anywhere"])
