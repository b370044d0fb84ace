"""Cameras that tests can break: a real RTSP server in a child process, and a silent socket."""

import contextlib
import json
import os
import selectors
import signal
import socket
import struct
import subprocess
import threading
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Self

import av
import pytest
from av.bitstream import BitStreamFilterContext

from streamer.local.process import spawn, stop
from tests.support.lossy_network import LossyNetwork

_SYSTEM_PYTHON = "/usr/bin/python3"  # Debian's gi is installed for this one, not for the venv
_SCRIPT = Path(__file__).with_name("gst_camera.py")


@cache
def _why_not() -> str | None:
    if not Path(_SYSTEM_PYTHON).exists():
        return f"there is no {_SYSTEM_PYTHON}"
    check = (
        "import gi; gi.require_version('Gst','1.0'); gi.require_version('GstRtspServer','1.0');"
        "from gi.repository import Gst, GstRtspServer; Gst.init(None);"
        "assert all(Gst.ElementFactory.find(e) for e in ('rtph264pay', 'h264parse', 'h265parse'))"
    )
    run = subprocess.run([_SYSTEM_PYTHON, "-c", check], capture_output=True, timeout=100)
    if run.returncode:
        return "gst-rtsp-server is not installed (CONTRIBUTING.md names the packages)"
    return None


def require_gst() -> None:
    """Skip the test if Debian's gst-rtsp-server is missing."""
    if reason := _why_not():
        pytest.skip(reason)


def write_units(videos: Sequence[Path], path: Path) -> Path:
    """Write the Annex-B access units of all `videos` (without B-frames) to `path`."""
    units: list[tuple[bytes, bool, float]] = []
    codec = ""
    for video in videos:
        with av.open(str(video)) as container:
            stream = container.streams.video[0]
            codec = stream.codec_context.name
            assert stream.average_rate is not None
            seconds = float(1 / stream.average_rate)
            bitstream = BitStreamFilterContext(f"{codec}_mp4toannexb", stream)
            for packet in container.demux(stream):
                for unit in bitstream.filter(packet if packet.size else None):
                    if unit.size:
                        units.append((bytes(unit), unit.is_keyframe, seconds))
    sizes = [(len(data), key, seconds) for data, key, seconds in units]
    header = json.dumps({"codec": codec, "units": sizes}).encode()
    path.write_bytes(
        struct.pack(">I", len(header)) + header + b"".join(data for data, _, _ in units)
    )
    return path


class GstCamera:
    """gst-rtsp-server in a child process that can be frozen, killed and restarted on its port."""

    def __init__(
        self,
        units: Path,
        *,
        mount: str = "cam",
        user: str | None = None,
        password: str | None = None,
        digest: bool = False,
        network: LossyNetwork | None = None,
        transport: str | None = None,
    ) -> None:
        require_gst()
        self._arguments = [f"{mount}={units}"]
        self.host = network.host if network else "127.0.0.1"
        self._inside = ["ip", "netns", "exec", network.namespace] if network else []
        self._log = units.with_suffix(".log")
        if user is not None and password is not None:
            self._arguments = [f"--user={user}", f"--password={password}", *self._arguments]
        if digest:
            self._arguments = ["--digest", *self._arguments]
        if transport is not None:  # the only one that it takes
            self._arguments = [f"--transport={transport}", *self._arguments]
        self.mount = mount
        self.port = 0
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def address(self) -> str:
        """`host:port/mount`, for URLs with and without a user."""
        return f"{self.host}:{self.port}/{self.mount}"

    @property
    def url(self) -> str:
        """The URL without a user."""
        return f"rtsp://{self.address}"

    def start(self) -> None:
        """Start on the previous port, if any, and wait until the camera listens."""
        environment = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "VIRT"))}
        ours, theirs = socket.socketpair()
        with ours, theirs:
            self._process = spawn(
                [
                    *self._inside,
                    _SYSTEM_PYTHON,
                    _SCRIPT,
                    f"--host={self.host}",
                    f"--port={self.port}",
                    f"--tell={theirs.fileno()}",
                    *self._arguments,
                ],
                env=environment,
                log=self._log,
                pass_fds=(theirs.fileno(),),
            )
            theirs.close()
            ours.settimeout(100)
            line = ours.recv(64)
        if not line:
            raise RuntimeError(f"the test camera did not start: {self._log.read_text()}")
        self.port = int(line)

    def freeze(self) -> None:
        """Send SIGSTOP: connections stay open, but nothing is sent."""
        assert self._process is not None
        os.kill(self._process.pid, signal.SIGSTOP)

    def thaw(self) -> None:
        """Send SIGCONT: continue to send."""
        assert self._process is not None
        os.kill(self._process.pid, signal.SIGCONT)

    def kill(self) -> None:
        """Send SIGKILL, as if the power failed."""
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    def stop(self) -> None:
        """End the child in any state."""
        if self._process is not None:
            if self._process.poll() is None:
                self._process.kill()
            stop(self._process)
            self._process = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


class SilentServer:
    """Server that accepts connections and sends nothing, or with `dribble` a byte now and then."""

    def __init__(self, *, dribble: bool = False) -> None:
        self._dribble = dribble

    def __enter__(self) -> Self:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._listener.setblocking(False)
        self.port = int(self._listener.getsockname()[1])
        self._wake, self._done = socket.socketpair()
        self._open: list[socket.socket] = []
        self.accepted = 0
        self._thread = threading.Thread(target=self._accept, daemon=True)
        self._thread.start()
        return self

    def _accept(self) -> None:
        with selectors.DefaultSelector() as selector:
            selector.register(self._listener, selectors.EVENT_READ)
            selector.register(self._done, selectors.EVENT_READ)
            while True:
                for key, _ in selector.select(0.05 if self._dribble else None):
                    if key.fileobj is self._done:
                        return
                    self._open.append(self._listener.accept()[0])
                    self.accepted += 1
                for connection in self._open if self._dribble else ():
                    with contextlib.suppress(OSError):
                        connection.send(b"R")

    def __exit__(self, *_: object) -> None:
        self._wake.close()
        self._thread.join(60)
        self._done.close()
        for connection in (*self._open, self._listener):
            connection.close()
