"""Be a Python interpreter that has its modules already: `forked_interpreter.py SOCKET -u -c CODE`
runs CODE in a process that is forked from the one at SOCKET.

That process has the standard streams of this one, and its exit code becomes that of this one.
"""

import json
import os
import signal
import socket
import sys

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # what reads from here ends when its input does
    address = sys.argv[1]
    request = {
        "arguments": sys.argv[sys.argv.index("-c") :],
        "env": dict(os.environ),
        "cwd": os.getcwd(),
        "imports": [],
    }
    status, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with theirs, socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as server:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
        server.connect(address)
        socket.send_fds(server, [json.dumps(request).encode()], [0, 1, 2, theirs.fileno()])
    for number in (0, 1):
        os.close(number)  # so that their ends are seen when the process ends
    started = status.recv(32)
    ended = status.recv(64).split()
    sys.exit(int(ended[0]) if started and ended else "the fork server has ended")
