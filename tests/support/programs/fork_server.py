"""Start Python programs that have their modules already: import those once, then fork.

The arguments are descriptors of two sockets: one that is closed when the server shall end, and one
that listens. Each message of a connection asks for one program. Its process is what
`python -m MODULE`, `python -c CODE` or `python FILE` would be, less the processor time for imports:
a process and session of its own, with its own arguments, environment, standard streams and exit
code.
"""

import contextlib
import gc
import importlib
import json
import os
import runpy
import selectors
import signal
import socket
import sys
import threading
import time
import types
from pathlib import Path
from typing import Any, NamedTuple

from streamer.local.process import end_with_parent

MAX_MESSAGE = 128 << 10


class Running(NamedTuple):
    """A program that was started, and where its exit code is awaited."""

    pid: int
    status: socket.socket


def serve(end: socket.socket, listener: socket.socket) -> dict[str, Any] | None:
    """Start programs until `end` is closed. Return None then; in the process of each program,
    return its request."""
    with selectors.DefaultSelector() as selector:
        selector.register(end, selectors.EVENT_READ)
        selector.register(listener, selectors.EVENT_READ)
        while True:
            for key, _ in selector.select():
                if key.fileobj is end:
                    return None
                if key.fileobj is listener:
                    connection, _ = listener.accept()
                    selector.register(connection, selectors.EVENT_READ, connection)
                    continue
                if isinstance(key.data, Running):
                    selector.unregister(key.fd)
                    os.close(key.fd)
                    _, status, used = os.wait4(key.data.pid, 0)
                    seconds = used.ru_utime + used.ru_stime
                    _tell(key.data.status, f"{os.waitstatus_to_exitcode(status)} {seconds}")
                    key.data.status.close()
                    continue
                requests: socket.socket = key.data
                message, descriptors, *_ = socket.recv_fds(requests, MAX_MESSAGE, 4)
                if not message:
                    selector.unregister(requests)
                    requests.close()
                    continue
                request: dict[str, Any] = json.loads(message)
                for name in request["imports"]:
                    importlib.import_module(name)
                gc.freeze()  # so that the collector does not copy what processes share
                assert threading.active_count() == 1, "only the thread that forks lives on"
                server = os.getpid()
                pid = os.fork()
                if pid == 0:
                    _become_a_program(server, descriptors, keep=selector)
                    return request
                *streams, status_descriptor = descriptors
                for stream in streams:
                    os.close(stream)
                status_socket = socket.socket(fileno=status_descriptor)
                _tell(status_socket, str(pid))
                selector.register(
                    os.pidfd_open(pid), selectors.EVENT_READ, Running(pid, status_socket)
                )


def _tell(status: socket.socket, message: str) -> None:
    with contextlib.suppress(OSError):  # the test that started the program has ended
        status.send(message.encode())


def _become_a_program(server: int, descriptors: list[int], keep: Any) -> None:
    os.setsid()
    end_with_parent(server)
    for number, descriptor in enumerate(descriptors[:3]):
        os.dup2(descriptor, number)
    _kept.append(keep)  # whose sockets would close descriptors of the program
    os.closerange(3, os.sysconf("SC_OPEN_MAX"))


_kept: list[Any] = []


def run(request: dict[str, Any]) -> None:
    """Run the program of `request` in this process."""
    os.chdir(request["cwd"])
    os.environ.clear()
    os.environ.update(request["env"])
    time.tzset()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    arguments: list[str] = request["arguments"]
    sys.orig_argv[1:] = arguments
    if arguments[0] == "-m":
        sys.argv[:] = arguments[1:]
        sys.path[0] = request["cwd"]
        for name in (arguments[1], f"{arguments[1]}.__main__"):
            sys.modules.pop(name, None)  # runpy warns of a program that is a module already
        runpy.run_module(arguments[1], run_name="__main__", alter_sys=True)
    elif arguments[0] == "-c":
        sys.argv[:] = ["-c", *arguments[2:]]
        sys.path[0] = ""
        main = types.ModuleType("__main__")
        sys.modules["__main__"] = main
        exec(compile(arguments[1], "<string>", "exec"), vars(main))
    else:
        sys.argv[:] = arguments
        sys.path[0] = str(Path(arguments[0]).parent)
        runpy.run_path(arguments[0], run_name="__main__")


if __name__ == "__main__":
    wanted = serve(*(socket.socket(fileno=int(number)) for number in sys.argv[1:]))
    if wanted is not None:
        run(wanted)
