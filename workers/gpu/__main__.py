"""The model worker: answer the questions in the queues with NVILA-Lite."""

import argparse
import sys

from workers.gpu.worker import serve_clips
from workers.process import startup


def main() -> int:
    """Run the program and return its exit code."""
    parser = argparse.ArgumentParser(prog="python -m workers.gpu", description=__doc__)
    parser.add_argument("--burst", action="store_true", help="exit when the queues are empty")
    arguments = parser.parse_args()
    return startup.run_program(
        "worker", lambda settings, stopping: serve_clips(settings, stopping, burst=arguments.burst)
    )


if __name__ == "__main__":
    code = main()
    sys.stderr.flush()
    startup.exit_process(code)
