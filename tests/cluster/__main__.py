"""Run a small cluster under faults and print its ledger.

    sudo .venv/bin/python -m tests.cluster [--seed 1] [--minutes 3] [--drills 1] [--cameras 3]

Redis with a replica and three Sentinels, a server of frames, PostgreSQL, two ingest workers, three
model workers, a recorder and an API have a host each: a network namespace with an address and a
cable of its own. Cameras are read, questions are asked and recordings are analyzed meanwhile. First
each kind of fault happens alone, `--drills` times, and the program measures how long it takes until
everything works again. Then faults happen at random for `--minutes`, several at a time. Then all
end, and the ledger must balance: one result for everything that was accepted, each window of a
recording asked about once, every camera running, nothing left of detached streams, and no program
that died by itself. The exit code is 1 if it does not. The model is a tiny one with random weights.

It takes root, iproute2, util-linux, PostgreSQL and, for clocks that are set, a C compiler. Where
that is missing it says so and does nothing. Namespaces and disks end with the program.
"""

import argparse
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

from tests.cluster.network import enter, what_is_missing

_START_TIMEOUT = 180.0
_TICK = 0.1


def run(folder: Path, options: argparse.Namespace) -> int:
    """Run a cluster with its data in `folder`; print its ledger and return the exit code."""
    from tests.cluster.faults import Faults, Recovery
    from tests.cluster.ledger import MAX_RECOVERY, Balance
    from tests.cluster.load import Load
    from tests.cluster.machines import Cluster

    with ExitStack() as stack:
        cluster = stack.enter_context(Cluster(folder))
        cluster.wait_until_ready(_START_TIMEOUT)
        load = stack.enter_context(
            Load(cluster, folder, options.seed, cameras=options.cameras, questions=2.0)
        )
        faults = Faults(cluster, load, options.seed, options.every)
        stack.callback(faults.calm)
        recovery = Recovery(cluster, load, 2 * MAX_RECOVERY)
        recovery.measure("none, for comparison")
        for fault in faults.kinds * options.drills:
            faults.drill(fault)
            recovery.measure(fault.name)
        end = time.monotonic() + 60 * options.minutes
        while time.monotonic() < end:
            for part in (cluster, load, faults):
                part.tick()
            time.sleep(_TICK)
        faults.calm()
        load.pause()
        ledger = Balance(cluster, load).draw_up()
    print(recovery)
    print(f"{sum(faults.counts.values())} faults: {dict(sorted(faults.counts.items()))}")
    if not cluster.clocks:
        print("SKIPPED: no clock was set, because there is no C compiler (cc).")
    print(ledger)
    wrong = ledger.faults() + [f"not working again after: {name}" for name in recovery.slow]
    for line in wrong:
        print(f"WRONG: {line}", file=sys.stderr)
    return 1 if wrong else 0


def main() -> int:
    """Run the program and return its exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.cluster", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--seed", type=int, default=1, help="seed of the faults")
    parser.add_argument("--minutes", type=float, default=3.0, help="duration of random faults")
    parser.add_argument("--drills", type=int, default=1, help="how often each fault happens alone")
    parser.add_argument("--cameras", type=int, default=3, help="number of cameras")
    parser.add_argument("--every", type=float, default=4.0, help="mean seconds between two faults")
    parser.add_argument("--folder", type=Path, help="keep data and logs in this folder")
    options = parser.parse_args()
    missing = what_is_missing()
    if missing is not None:
        print(f"SKIPPED: {missing}")
        return 0
    code = enter("tests.cluster", sys.argv[1:])
    if code is not None:
        return code
    with ExitStack() as stack:
        folder = options.folder or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        folder.mkdir(parents=True, exist_ok=True)
        return run(folder.resolve(), options)


if __name__ == "__main__":
    sys.exit(main())
