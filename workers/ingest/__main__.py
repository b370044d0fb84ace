"""The ingest worker: read streams, sample them and ask their watches."""

import sys

from workers.ingest.worker import serve_streams
from workers.process import startup


def main() -> int:
    """Run the program and return its exit code."""
    return startup.run_program("ingest", serve_streams)


if __name__ == "__main__":
    code = main()
    sys.stderr.flush()
    startup.exit_process(code)  # a camera may hold a thread in FFmpeg
