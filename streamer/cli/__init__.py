"""The `streamer` program. Heavy imports happen inside the commands, so that it starts at once."""

import sys


def main() -> None:
    """Entry point of the `streamer` script."""
    try:
        from streamer.cli.app import run

        run()
    except KeyboardInterrupt:  # so early that no command had begun
        sys.exit(130)
