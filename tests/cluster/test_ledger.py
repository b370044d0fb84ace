"""The ledger of a small cluster balances after random faults: `python -m tests.cluster` by hand."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.ledger import MAX_DOUBLE_READING, Ledger
from tests.cluster.network import what_is_missing

BALANCED = Ledger(accepted=9, answered=7, failed={"FRAMES_EXPIRED": 2}, recordings=3, captions=40)


def test_a_ledger_that_balances_has_no_faults() -> None:
    assert BALANCED.faults() == []


@pytest.mark.parametrize(
    "wrong",
    [
        {"lost": 1},
        {"doubled": 1},
        {"unrecorded": 1},
        {"windows_missing": 1},
        {"windows_doubled": 1},
        {"cameras_not_running": 1},
        {"longest_double_reading_s": MAX_DOUBLE_READING + 0.1},
        {"orphans": ["rq:job:ingest-str_1"]},
        {"deaths": {"recorder": [1]}},
    ],
    ids=lambda wrong: next(iter(wrong)),
)
def test_each_fault_is_named(wrong: dict[str, Any]) -> None:
    assert len(replace(BALANCED, **wrong).faults()) == 1


@pytest.mark.soak
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("seed", [1, 2])
def test_nothing_is_lost_or_done_twice(seed: int) -> None:
    missing = what_is_missing()
    if missing is not None:
        pytest.skip(missing)
    command = [sys.executable, "-m", "tests.cluster", "--seed", str(seed), "--minutes", "2"]

    done = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True)

    assert done.returncode == 0, done.stdout + done.stderr
    ledger = json.loads(done.stdout.splitlines()[-1])
    assert ledger["accepted"] > 20, ledger
    assert ledger["recordings"] > 2, ledger
    assert ledger["captions"] > 20, ledger


NETWORK = '''
import socket, subprocess, sys, time
from tests.cluster.network import Host, enter, make_switch

if (code := enter("hosts_of_a_test", [])) is not None:
    sys.exit(code)
make_switch()
hosts = [Host("one", 1), Host("two", 2)]
serve = """import socket
server = socket.create_server(("", 99))
while True:
    server.accept()[0].send(b"hi")"""
servers = [subprocess.Popen(host.command([sys.executable, "-c", serve])) for host in hosts]


def answers(host):
    try:
        with socket.create_connection((host.address, 99), 1) as connection:
            connection.settimeout(1)
            return connection.recv(2) == b"hi"
    except OSError:
        return False


def eventually(condition):
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


for host in hosts:
    eventually(lambda: answers(host))
hosts[0].cut()
assert not answers(hosts[0])
assert answers(hosts[1])
hosts[0].mend()
eventually(lambda: answers(hosts[0]))
hosts[1].slow_down()
eventually(lambda: answers(hosts[1]))
hosts[1].mend()
assert answers(hosts[1])
for server in servers:
    server.kill()
'''


def test_hosts_have_cables_that_can_be_cut_and_mended(tmp_path: Path) -> None:
    missing = what_is_missing()
    if missing is not None:
        pytest.skip(missing)
    (tmp_path / "hosts_of_a_test.py").write_text(NETWORK)
    path = os.pathsep.join([str(Path(__file__).parents[2]), str(tmp_path)])
    command = [sys.executable, "-m", "hosts_of_a_test"]

    done = subprocess.run(
        command, env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True
    )

    assert done.returncode == 0, done.stderr
    assert not Path("/run/netns/one").exists()  # nothing is left on this machine
