"""The `streamer` program. Commands import heavy modules when they run, so that it starts fast."""

import sys

from streamer.cli import program_time
from streamer.cli.become_server import BecomeServer


def main() -> None:
    """Run the `streamer` script."""
    program_time.note_start()
    try:
        from streamer.cli.app import run

        run()
        return
    except KeyboardInterrupt:  # before any command started
        sys.exit(130)
    except BecomeServer as forked:
        serve = forked.serve
    serve()  # here, where no frame of the command is left
