"""`streamer`, whose programs are forked by the fork server of the tests not started afresh."""

import os

from streamer.cli import main
from streamer.local import supervised_process
from tests.support.fork_server import ADDRESS, spawn_program, use_server

if __name__ == "__main__":
    use_server(os.environ.pop(ADDRESS))
    setattr(supervised_process, "spawn", spawn_program)  # noqa: B010, mypy wants an export
    main()
