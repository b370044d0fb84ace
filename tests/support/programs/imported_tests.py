"""Fork the processes of pytest-xdist from one that has imported the tests.

`python -m tests.support.programs.imported_tests SOCKET ARGUMENT...` imports what pytest collects
with the arguments, and then starts programs as the fork server does, at SOCKET. Without it, each
process would import all tests; in a new checkout, pytest also compiles each of them.
"""

import os
import socket
import sys
from dataclasses import replace

import pytest

from streamer.local.forked_program import run_order
from tests.support.programs.fork_server import serve


def import_tests(arguments: list[str]) -> None:
    """Import the tests, and print nothing: each test process tells what it cannot import."""
    # what pytest imports itself has its assertions rewritten
    for name in [name for name in sys.modules if name.startswith("tests.support.")]:
        if "programs" not in name:
            del sys.modules[name]
    kept = os.dup(1), os.dup(2)
    nothing = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nothing, 1)
    os.dup2(nothing, 2)
    pytest.main(["--collect-only", "-q", "-p", "no:xdist", "-p", "no:cacheprovider", *arguments])
    for number, descriptor in enumerate(kept, start=1):
        os.dup2(descriptor, number)
        os.close(descriptor)
    os.close(nothing)


if __name__ == "__main__":
    path, *rest = sys.argv[1:]
    before = dict(os.environ)
    import_tests(rest)
    set_by_tests = dict(os.environ.items() - before.items())
    end, _ends_with_this_process = socket.socketpair()
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    listener.bind(f"{path}.new")
    listener.listen()
    os.rename(f"{path}.new", path)
    if (wanted := serve(end, listener)) is not None:
        run_order(replace(wanted, env={**wanted.env, **set_by_tests}))
