"""Serve H.264 over RTSP and TCP like a camera, and record when each frame was sent.

The RTSP servers of the tests spread the packets of a frame over its duration. Cameras send them at
once; spreading wakes the receiver hundreds of times a second and leaves no moment at which the
frame "was sent".
"""

import base64
import contextlib
import socket
import struct
import threading
import time
from pathlib import Path
from typing import Self

import av
from av.bitstream import BitStreamFilterContext

_MAX_PAYLOAD = 1400
_CLOCK = 90_000


class RtspSender:
    """Serves `video` (H.264 without B-frames) in a loop to each client, in real time.

    `sent[n]` is the `time.time()` at which frame `n` began to be sent to the newest client; the
    video has `length` frames.
    """

    def __init__(self, video: Path) -> None:
        self._frames: list[list[bytes]] = []
        with av.open(str(video)) as container:
            stream = container.streams.video[0]
            assert stream.average_rate is not None
            self.fps = float(stream.average_rate)
            to_annexb = BitStreamFilterContext("h264_mp4toannexb", stream)
            for packet in container.demux(stream):
                for unit in to_annexb.filter(packet if packet.size else None):
                    self._frames.append([n for n in bytes(unit).split(b"\0\0\1") if n])
        self._frames = [
            [nal.removesuffix(b"\0") for nal in nals if len(nal) > 1] for nals in self._frames
        ]
        self.length = len(self._frames)
        self.sent: list[float] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"rtsp://127.0.0.1:{self._listener.getsockname()[1]}/street"
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._serve, name="rtsp-sender", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join(5)

    def _serve(self) -> None:
        while not self._stopping.is_set():
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            threading.Thread(target=self._attend, args=(client,), daemon=True).start()

    def _attend(self, client: socket.socket) -> None:
        with client, contextlib.suppress(OSError):
            if self._greet(client):
                self._play(client)

    def _greet(self, client: socket.socket) -> bool:
        """Answer requests until PLAY; return False when the client leaves before."""
        with client.makefile("rb") as requests:
            while line := requests.readline():
                method = line.split(b" ")[0].decode()
                headers = {}
                while (header := requests.readline().strip()) != b"":
                    name, _, value = header.decode().partition(":")
                    headers[name.lower()] = value.strip()
                extra, body = self._answer(method, headers)
                lines = ["RTSP/1.0 200 OK", f"CSeq: {headers['cseq']}", *extra]
                lines.append(f"Content-Length: {len(body)}")
                client.sendall(("\r\n".join(lines) + "\r\n\r\n" + body).encode())
                if method == "PLAY":
                    return True
        return False

    def _answer(self, method: str, headers: dict[str, str]) -> tuple[list[str], str]:
        if method == "OPTIONS":
            return ["Public: OPTIONS, DESCRIBE, SETUP, PLAY, TEARDOWN"], ""
        if method == "DESCRIBE":
            sets = [nal for nal in self._frames[0] if nal[0] & 31 in (7, 8)]
            coded = ",".join(base64.b64encode(nal).decode() for nal in sets)
            lines = ["v=0", "o=- 0 0 IN IP4 127.0.0.1", "s=street", "t=0 0"]
            lines += ["m=video 0 RTP/AVP 96", "c=IN IP4 0.0.0.0", f"a=rtpmap:96 H264/{_CLOCK}"]
            lines += [f"a=fmtp:96 packetization-mode=1;sprop-parameter-sets={coded}"]
            lines += ["a=control:track1", ""]
            return ["Content-Type: application/sdp", f"Content-Base: {self.url}/"], "\r\n".join(
                lines
            )
        if method == "SETUP":
            return ["Session: 1", f"Transport: {headers['transport']};ssrc=00000001"], ""
        return ["Session: 1"], ""

    def _play(self, client: socket.socket) -> None:
        sent = self.sent = []
        began = time.monotonic()
        sequence = 0
        while not self._stopping.is_set():
            number = len(sent)
            data = b""
            for payload, last in packets(self._frames[number % len(self._frames)]):
                marker = 0x80 if last else 0
                stamp = round(number * _CLOCK / self.fps) & 0xFFFFFFFF
                header = struct.pack(">BBHII", 0x80, 96 | marker, sequence & 0xFFFF, stamp, 1)
                sequence += 1
                data += struct.pack(">BBH", 0x24, 0, 12 + len(payload)) + header + payload
            due = began + number / self.fps
            self._stopping.wait(max(0.0, due - time.monotonic()))
            sent.append(time.time())
            client.sendall(data)


def packets(nals: list[bytes]) -> list[tuple[bytes, bool]]:
    """Return the RTP payloads of a frame's NAL units (RFC 6184), and which one is the last."""
    payloads: list[bytes] = []
    for nal in nals:
        if len(nal) <= _MAX_PAYLOAD:
            payloads.append(nal)
            continue
        indicator, kind = (nal[0] & 0xE0) | 28, nal[0] & 31
        parts = [nal[at : at + _MAX_PAYLOAD] for at in range(1, len(nal), _MAX_PAYLOAD)]
        for index, part in enumerate(parts):
            start, end = 0x80 * (index == 0), 0x40 * (index == len(parts) - 1)
            payloads.append(bytes([indicator, start | end | kind]) + part)
    return [(payload, index == len(payloads) - 1) for index, payload in enumerate(payloads)]
