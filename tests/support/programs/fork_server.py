"""Start Python programs that have their modules already: import those once, then fork.

The arguments are descriptors of two sockets: one that is closed when the server shall end, and one
that listens. Each message of a connection asks for one program. Its process is what
`python -m MODULE`, `python -c CODE` or `python FILE` would be, less the processor time for imports
(streamer/local/forked_program.py). Unlike the fork server of `streamer up`, this one is shared by
many processes and is the parent of the programs, so it tells how they ended.
"""

import contextlib
import os
import selectors
import socket
import sys
import threading
from typing import NamedTuple

from streamer.local.forked_program import (
    MAX_BYTES,
    Order,
    become_session,
    close_descriptors,
    import_shared,
    run_order,
)


class Running(NamedTuple):
    """A program that was started, and where its exit code is awaited."""

    pid: int
    status: socket.socket


def serve(end: socket.socket, listener: socket.socket) -> Order | None:
    """Start programs until `end` is closed. Return None then; in the process of each program,
    return its order."""
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
                message, descriptors, *_ = socket.recv_fds(requests, MAX_BYTES, 4)
                if not message:
                    selector.unregister(requests)
                    requests.close()
                    continue
                order = Order.decode(message)
                import_shared(order.imports)
                assert threading.active_count() == 1, "only the thread that forks lives on"
                server = os.getpid()
                *streams, status_descriptor = descriptors
                pid = os.fork()
                if pid == 0:
                    become_session(streams, server)
                    _kept.append(selector)  # its sockets would close descriptors of the program
                    close_descriptors()
                    return order
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


_kept: list[selectors.BaseSelector] = []


if __name__ == "__main__":
    wanted = serve(*(socket.socket(fileno=int(number)) for number in sys.argv[1:]))
    if wanted is not None:
        run_order(wanted)
