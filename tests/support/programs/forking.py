"""Start programs with the fork server of `streamer up`, as lines of JSON on stdin tell.

The argument is the number of seconds for which the start of a program is waited for.
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from streamer.local import fork_server


def obey(server: fork_server.ForkServer) -> None:
    """Do what is told, and print the outcome, until there is nothing more."""
    programs: dict[int, subprocess.Popen[bytes]] = {}

    def do(told: dict[str, Any]) -> Any:
        if "wait" in told:
            return programs[told["wait"]].wait(told.get("timeout"))
        if "spawn" not in told:
            return server.pid
        program = server.spawn(
            told["spawn"], env=told["env"], log=Path(told["log"]), imports=told["imports"]
        )
        programs[program.pid] = program
        return program.pid

    for line in sys.stdin:
        try:
            print(json.dumps({"done": do(json.loads(line))}), flush=True)
        except (fork_server.CannotFork, subprocess.TimeoutExpired) as error:
            print(json.dumps({type(error).__name__: str(error)}), flush=True)


if __name__ == "__main__":
    fork_server.START_SECONDS = float(sys.argv[1])
    started = fork_server.start_fork_server()
    if isinstance(started, fork_server.ForkServer):
        with started:
            obey(started)
    else:
        started()
