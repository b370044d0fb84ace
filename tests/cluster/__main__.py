"""Run a small cluster under random faults and print its ledger.

    .venv/bin/python -m tests.cluster [--seed 1] [--minutes 3] [--cameras 3] [--folder FOLDER]

Two ingest workers, two model workers and a recorder share two Redis servers on this machine. Each
program has its own connections to the servers, which can be cut. Cameras are read, questions are
asked and recordings are analyzed while programs are killed, stopped, frozen and cut off, servers
fall silent or are full, and cameras are lost. Then all faults end, and the ledger must balance: one
result for everything that was accepted, each window of a recording asked about once, every camera
running, nothing left of detached streams, and no program that died by itself. The exit code is 1 if
it does not. The model is a tiny one with random weights.
"""

import argparse
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

from tests.cluster.faults import Faults
from tests.cluster.ledger import Balance, Ledger
from tests.cluster.load import Load
from tests.cluster.machines import Cluster

_START_TIMEOUT = 180.0
_TICK = 0.1


def run(folder: Path, *, seed: int, minutes: float, cameras: int, every: float) -> Ledger:
    """Run a cluster with its data in `folder`, and return its ledger."""
    with ExitStack() as stack:
        cluster = stack.enter_context(Cluster(folder))
        cluster.wait_until_ready(_START_TIMEOUT)
        load = stack.enter_context(Load(cluster, folder, seed, cameras=cameras, questions=2.0))
        faults = Faults(cluster, load, seed, every)
        stack.callback(faults.calm)
        end = time.monotonic() + 60 * minutes
        while time.monotonic() < end:
            for part in (cluster, load, faults):
                part.tick()
            time.sleep(_TICK)
        faults.calm()
        load.pause()
        ledger = Balance(cluster, load).draw_up()
    print(f"{sum(faults.counts.values())} faults: {dict(sorted(faults.counts.items()))}")
    return ledger


def main() -> int:
    """Run the program and return its exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.cluster", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--seed", type=int, default=1, help="seed of the faults")
    parser.add_argument("--minutes", type=float, default=3.0, help="duration of the faults")
    parser.add_argument("--cameras", type=int, default=3, help="number of cameras")
    parser.add_argument("--every", type=float, default=4.0, help="mean seconds between two faults")
    parser.add_argument("--folder", type=Path, help="keep data and logs in this folder")
    options = parser.parse_args()
    with ExitStack() as stack:
        folder = options.folder or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        folder.mkdir(parents=True, exist_ok=True)
        ledger = run(
            folder,
            seed=options.seed,
            minutes=options.minutes,
            cameras=options.cameras,
            every=options.every,
        )
    print(ledger)
    wrong = ledger.faults()
    for line in wrong:
        print(f"WRONG: {line}", file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
