"""An RTSP server that answers by a script and records the requests."""

import socket
import threading
from collections.abc import Callable
from typing import Self

SDP = "v=0\r\nm=audio 0 RTP/AVP 0\r\na=control:a\r\nm=video 0 RTP/AVP 96\r\n" + (
    "a=rtpmap:96 H264/90000\r\na=control:v?x=1\r\n"
)


class Request:
    """A request as received."""

    def __init__(self, line: str, headers: dict[str, str]) -> None:
        self.method, self.address, _ = line.split(" ")
        self.headers = headers


Script = Callable[[Request], tuple[int, dict[str, str], str]]


class ScriptedServer:
    """Server of one client at a time; `script` returns status, headers and body of each answer."""

    def __init__(self, script: Script) -> None:
        self._script = script
        self.requests: list[Request] = []

    def __enter__(self) -> Self:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join(60)

    def connect(self) -> socket.socket:
        """Open a connection to it, with a time-out."""
        return socket.create_connection(("127.0.0.1", self.port), 5)

    def _serve(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            with client, client.makefile("rb") as lines:
                try:
                    self._talk(client, (line.decode("latin-1").strip() for line in lines))
                except OSError:
                    continue

    def _talk(self, client: socket.socket, lines) -> None:
        for line in lines:
            headers = {}
            for header in lines:
                if not header:
                    break
                name, _, value = header.partition(": ")
                headers[name.lower()] = value
            request = Request(line, headers)
            self.requests.append(request)
            status, extra, body = self._script(request)
            answer = [f"RTSP/1.0 {status} Said", f"CSeq: {headers['cseq']}"]
            answer += [f"{name}: {value}" for name, value in extra.items()]
            answer += [f"Content-Length: {len(body)}", "", body]
            client.sendall("\r\n".join(answer).encode())
