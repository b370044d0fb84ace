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
    """Carry out each line of standard input, and print the outcome."""
    programs: dict[int, subprocess.Popen[bytes]] = {}

    def do(order: dict[str, Any]) -> Any:
        if "wait" in order:
            return programs[order["wait"]].wait(order.get("timeout"))
        if "spawn" not in order:
            return server.pid
        program = server.spawn(
            order["spawn"], env=order["env"], log=Path(order["log"]), imports=order["imports"]
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
