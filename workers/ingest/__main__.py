"""The ingest worker: `python -m workers.ingest`."""

import sys

from workers.ingest.worker import serve
from workers.process import startup


def main() -> int:
    """Run the program and return its exit code."""
    return startup.run(serve)


if __name__ == "__main__":
    code = main()
    sys.stderr.flush()
    startup.leave(code)  # a camera may hold a thread in FFmpeg
