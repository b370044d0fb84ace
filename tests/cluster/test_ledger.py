"""The ledger of a small cluster balances after random faults: `python -m tests.cluster` by hand,
and `make test-cluster` at each push."""

import json
import os
import signal
import subprocess
import sys
import time
import uuid
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import psutil
import pytest
import redis

from streamer import redis_keys
from streamer.domain.kinds import ResultKind
from streamer.domain.result import Result
from streamer.domain.timestamp import to_datetime
from tests.cluster.ledger import MAX_DOUBLE_READING, Ledger, overlaps
from tests.cluster.load import Published
from tests.cluster.network import what_is_missing
from tests.cluster.samples import Growth, lowest_of_minutes, slope

BALANCED = Ledger(accepted=9, answered=7, failed={"FRAMES_EXPIRED": 2}, recordings=3, captions=40)


def test_a_ledger_that_balances_has_no_faults() -> None:
    assert BALANCED.wrong() == []


@pytest.mark.parametrize(
    "wrong",
    [
        {"lost": 1},
        {"doubled": 1},
        {"unrecorded": 1},
        {"windows_missing": 1},
        {"windows_doubled": 1},
        {"captions_overlapping": 1},
        {"cameras_not_running": 1},
        {"longest_double_reading_s": MAX_DOUBLE_READING + 0.1},
        {"orphans": ["rq:job:ingest-str_1"]},
        {"deaths": {"recorder": [1]}},
        {"growth": {"api": [Growth("memory_mib", 30, 200.0, 400.0, 50.0, 5.0)]}},
    ],
    ids=lambda wrong: next(iter(wrong)),
)
def test_each_fault_is_named(wrong: dict[str, Any]) -> None:
    assert len(replace(BALANCED, **wrong).wrong()) == 1


def test_a_slow_machine_is_given_more_time() -> None:
    slow = replace(BALANCED, longest_double_reading_s=3 * MAX_DOUBLE_READING, patience=4.0)

    assert slow.wrong() == []
    # but nothing else is excused
    assert replace(slow, lost=1, doubled=1).wrong() == [
        "lost is 1",
        "doubled is 1",
    ]


def test_the_table_has_a_row_for_each_count() -> None:
    counts: dict[str, Any] = {
        each.name: number
        for number, each in enumerate(fields(Ledger), 1000)
        if each.type in (int, float) and each.name not in ("seed", "patience")
    }

    rows: dict[str, str] = dict(
        tuple(line.strip("| ").split(" | "))  # type: ignore[misc]
        for line in Ledger(seed=7, database="sqlite", **counts).table().splitlines()[2:]
    )

    assert {str(number) for number in counts.values()} <= set(rows.values())
    assert rows["starts that found no server, tried again"] == str(counts["failed_starts"])


@pytest.mark.parametrize(
    "growth",
    [
        Growth("threads", 10, 9.0, 9.0, 50.0, 5.0),
        Growth("threads", 60, 9.0, 9.0, 50.0, 30.0),
        Growth("threads", 60, 9.0, 9.0, 3.0, 0.1),
    ],
    ids=["too short to tell", "not beyond doubt", "little"],
)
def test_growth_counts_when_it_is_beyond_doubt(growth: Growth) -> None:
    assert replace(BALANCED, growth={"api": [growth]}).wrong() == []


def test_a_result_that_a_failover_took_back_is_not_doubled(redis_client: redis.Redis) -> None:
    published = Published()

    def publish(request_id: str) -> str:
        result = Result(
            request_id=request_id,
            kind=ResultKind.ANSWER,
            stream_id="str_1",
            stream_name="yard",
            prompt="What is there?",
            text="A car.",
        )
        entry: Any = redis_client.xadd(redis_keys.RESULTS, {"json": result.model_dump_json()})
        published.note(redis_client, entry.decode(), result)
        return str(entry.decode())

    publish("req_0")
    # given a result that the server does not have any more after a failover
    redis_client.xdel(redis_keys.RESULTS, publish("req_1"))
    # and one that it really has twice, and another whose first entry was trimmed
    publish("req_2")
    publish("req_1")
    publish("req_2")
    redis_client.xtrim(redis_keys.RESULTS, maxlen=2, approximate=False)
    publish("req_0")

    counts = {request_id: len(each) for request_id, each in published.results.items()}
    assert counts == {"req_0": 2, "req_1": 1, "req_2": 2}
    assert published.taken_back == 1


def test_captions_that_overlap_are_told() -> None:
    spans = {"req_1": (0.0, 4.0), "req_2": (3.97, 8.0), "req_3": (7.5, 12.0), "req_4": (12.0, 16.0)}
    captions = [
        Result(
            request_id=request_id,
            kind=ResultKind.CAPTION,
            stream_id="str_1",
            stream_name="yard",
            prompt="What is there?",
            start=to_datetime(start),
            end=to_datetime(end),
            frame_times=[to_datetime(start + 1), to_datetime(start + 2)],
            created_at=to_datetime(end + 0.5),
        )
        for request_id, (start, end) in spans.items()
    ]
    (told,) = overlaps(captions)
    assert told == (
        "req_2 3.970 to 8.000, frames of 4.970, 5.970, answered at 8.500; "
        "req_3 7.500 to 12.000, frames of 8.500, 9.500, answered at 12.500"
    )


def test_a_restart_is_no_growth() -> None:
    before = [(float(at), 0.0, 500.0 + at / 60) for at in range(0, 600, 60)]
    after = [(float(at), 0.0, 100.0 + at / 60) for at in range(700, 1300, 60)]

    per_hour, error = slope([before, after])

    assert per_hour == pytest.approx(60)
    assert error == pytest.approx(0, abs=1e-6)


def test_a_camera_more_is_no_growth() -> None:
    cameras = [2.0, 2.0, 3.0, 2.0, 5.0, 9.0, 9.0, 8.0]
    samples = [
        (60.0 * minute, count, 100.0 + 20 * count + minute) for minute, count in enumerate(cameras)
    ]

    per_hour, error = slope([samples])

    assert per_hour == pytest.approx(60)
    assert error == pytest.approx(0, abs=1e-6)


def test_of_a_minute_the_lowest_counts_and_one_that_has_begun_does_not() -> None:
    values = [(10.0, 7.0), (40.0, 5.0), (69.0, 90.0), (70.0, 6.0), (110.0, 8.0), (131.0, 1.0)]
    samples = [(at, at, value) for at, value in values]

    assert lowest_of_minutes(samples) == [(10.0, 10.0, 5.0), (70.0, 70.0, 6.0)]


@pytest.mark.soak
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(("seed", "database"), [(1, "postgresql"), (2, "sqlite")])
def test_nothing_is_lost_or_done_twice(seed: int, database: str) -> None:
    missing = what_is_missing()
    if missing is not None:
        pytest.skip(missing)
    command = [sys.executable, "-m", "tests.cluster", "--seed", str(seed), "--minutes", "2"]
    command += ["--database", database]

    done = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True)

    assert done.returncode == 0, done.stdout + done.stderr
    ledger = json.loads(done.stdout.splitlines()[-1])
    assert ledger["accepted"] > 20, ledger
    assert ledger["recordings"] > 2, ledger
    assert ledger["captions"] > 20, ledger


NETWORK = '''
import socket, subprocess, sys, time
from tests.cluster.network import Host, can_lose, enter, make_switch

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
if can_lose():
    hosts[1].lose()
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


ENDLESS = """
import subprocess, sys, time
from tests.cluster.network import enter

if (code := enter("endless", sys.argv[1:])) is not None:
    sys.exit(code)
# One that forgets its parent, as a program does that changes its user.
asleep = "import sys, time; print(flush=True); time.sleep(3600)"
child = [sys.executable, "-c", asleep, sys.argv[1]]
subprocess.Popen(["setpriv", "--reuid=65534", "--clear-groups", *child], start_new_session=True)
time.sleep(3600)
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_everything_ends_with_the_program(tmp_path: Path, number: signal.Signals) -> None:
    missing = what_is_missing()
    if missing is not None:
        pytest.skip(missing)
    (tmp_path / "endless.py").write_text(ENDLESS)
    path = os.pathsep.join([str(Path(__file__).parents[2]), str(tmp_path)])
    mark = uuid.uuid4().hex
    program = subprocess.Popen(
        [sys.executable, "-m", "endless", mark],
        env=os.environ | {"PYTHONPATH": path},
        stdout=subprocess.PIPE,
    )
    assert program.stdout is not None
    assert program.stdout.readline() == b"\n"  # the child runs
    assert len(_marked(mark)) > 1

    program.send_signal(number)
    program.wait(60)

    deadline = time.monotonic() + 60
    while _marked(mark):
        assert time.monotonic() < deadline, _marked(mark)
        time.sleep(0.05)


def _marked(mark: str) -> list[list[str]]:
    every = psutil.process_iter(["cmdline", "status"])
    return [
        each.info["cmdline"]
        for each in every
        if mark in (each.info["cmdline"] or []) and each.info["status"] != psutil.STATUS_ZOMBIE
    ]
