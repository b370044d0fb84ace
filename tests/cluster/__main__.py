"""Run a small cluster under faults and print its ledger.

    sudo .venv/bin/python -m tests.cluster [--seed 1] [--minutes 3] [--drills 1] [--streams 3]
        [--every 4] [--database postgresql|sqlite] [--patience 1]

Redis with a replica and three Sentinels, a server of frames, PostgreSQL, two ingest workers, three
model workers, a recorder and an API have a host each: a network namespace with an address and a
cable of its own. With SQLite, the recorder and the API share a file. Cameras are read, questions
are asked and recordings are analyzed meanwhile. First each kind of fault happens alone, `--drills`
times, and the program measures how long it takes until everything works again. Then faults happen
at random for `--minutes`, several at a time; every five minutes all of them end, and everything
must work again. In the end the ledger must balance: one result for everything that was accepted,
each window of a recording asked about once, every camera running, nothing left of detached streams,
no program that died by itself, and none that grows. Growth is judged where faults happen for more
than half an hour: then no fault ends one program of each kind. The exit code is 1 if the ledger
does not balance. The model is a tiny one with random weights. On a slow machine let `--patience`
make all limits of time longer.

It takes root, iproute2, util-linux and PostgreSQL. For packets that are lost and delayed it takes
netem in the kernel; nftables loses some as well. For clocks that are set it takes a C compiler. It
says what is missing. Everything that it starts and stores in memory ends with it, however it ends.
"""

import argparse
import sys
import time
import traceback
from contextlib import ExitStack
from pathlib import Path

from tests.cluster.network import SCRATCH, can_lose, enter, knows_netem, what_is_missing

_START_TIMEOUT = 180.0
_TICK = 0.1
_SPELL = 300.0
"""Seconds of random faults after which all of them end for a moment."""


def run(folder: Path, options: argparse.Namespace) -> int:
    """Run a cluster with its data in `folder`; print its ledger and return the exit code."""
    from tests.cluster.faults import Faults, Recovery
    from tests.cluster.ledger import MAX_RECOVERY, Balance
    from tests.cluster.load import Load
    from tests.cluster.machines import LASTING, Cluster
    from tests.cluster.samples import JUDGED_AFTER, Samples, table

    with ExitStack() as stack:
        cluster = stack.enter_context(Cluster(folder, options.database))
        cluster.wait_until_ready(_START_TIMEOUT * options.patience)
        load = stack.enter_context(
            Load(cluster, folder, options.seed, cameras=options.streams, questions=2.0)
        )
        lasting = LASTING if options.minutes > JUDGED_AFTER else ()
        faults = Faults(cluster, load, options.seed, options.every, lasting=lasting)
        stack.callback(faults.calm)
        recovery = Recovery(cluster, load, 2 * MAX_RECOVERY * options.patience)
        balance = Balance(cluster, load, options.patience)
        recovery.measure("none, for comparison")
        for fault in faults.kinds * options.drills:
            faults.drill(fault)
            recovery.measure(fault.name)
        samples = stack.enter_context(Samples(cluster, load, folder))
        end = time.monotonic() + 60 * options.minutes
        while (left := end - time.monotonic()) > 0:
            until = time.monotonic() + min(left, _SPELL)
            while time.monotonic() < until:
                for part in (cluster, load, faults):
                    part.tick()
                time.sleep(_TICK)
            faults.calm()
            balance.count_cameras()
            recovery.measure("several at once")
            print(f"{sum(faults.counts.values())} faults; {balance.so_far()}", flush=True)
        ledger, growth = balance.ledger, samples.growth()
        ledger.database, ledger.seed = options.database, options.seed
        ledger.faults, ledger.recovery = dict(sorted(faults.counts.items())), recovery.summary()
        ledger.growth = growth
        print(recovery)
        print(table(growth))
        print(f"{sum(ledger.faults.values())} faults: {ledger.faults}")
        for lack in _lacks(cluster.clocks):
            print(f"SKIPPED: {lack}", flush=True)
        load.pause()
        wrong = [f"not working again after: {name}" for name in recovery.slow]
        try:
            balance.draw_up()
        except Exception as error:  # what is known by then is printed all the same
            traceback.print_exc()
            wrong.append(f"the ledger is not complete: {error!r}")
        wrong += ledger.wrong()
        print(ledger.table())
        print(ledger, flush=True)
        for line in wrong:
            print(f"WRONG: {line}", file=sys.stderr, flush=True)
    return 1 if wrong else 0


def _lacks(clocks: bool) -> list[str]:
    """Return which faults could not happen on this machine, as sentences."""
    lacks = []
    if not knows_netem():
        lacks.append(
            "The kernel has no netem: a slow link had 1 Mbit/s (tbf) instead of a delay"
            + (", and nftables lost packets." if can_lose() else ".")
        )
    if not can_lose():
        lacks.append("No packet was lost, because there is no program 'nft' (nftables) either.")
    if not clocks:
        lacks.append("No clock was set, because there is no C compiler (cc).")
    return lacks


def main() -> int:
    """Run the program and return its exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.cluster", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--seed", type=int, default=1, help="seed of the faults")
    parser.add_argument("--minutes", type=float, default=3.0, help="duration of random faults")
    parser.add_argument("--drills", type=int, default=1, help="how often each fault happens alone")
    parser.add_argument("--streams", type=int, default=3, help="number of cameras")
    parser.add_argument(
        "--database",
        choices=("postgresql", "sqlite"),
        default="postgresql",
        help="kind of database",
    )
    parser.add_argument("--every", type=float, default=4.0, help="mean seconds between two faults")
    parser.add_argument(
        "--patience",
        type=float,
        default=1.0,
        help="how many times as long everything may take, on a slow machine",
    )
    parser.add_argument("--folder", type=Path, help="keep data and logs in this folder")
    options = parser.parse_args()
    missing = what_is_missing()
    if missing is not None:
        print(f"SKIPPED: {missing}")
        return 0
    code = enter("tests.cluster", sys.argv[1:])
    if code is not None:
        return code
    folder = options.folder or SCRATCH / "cluster"
    folder.mkdir(parents=True, exist_ok=True)
    return run(folder.resolve(), options)


if __name__ == "__main__":
    sys.exit(main())
