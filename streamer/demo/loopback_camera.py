"""Serve a video file as an RTSP camera on loopback, in a loop and in real time."""

import asyncio
import contextlib
import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Self
from urllib.parse import quote

from streamer.errors import ErrorCode, StreamerError

_START_TIMEOUT = 10.0
_MAX_CLIENTS = 128
"""Clients that are served at once; others wait. The server reads the file in a thread for each."""

_LOOK_FOR_STOP = 0.05
"""Seconds between two looks whether a client that is waited for has gone."""

_SUFFIXES = frozenset({".mp4", ".mkv"})


class LoopbackCamera:
    """An RTSP camera that serves `video` (.mp4 or .mkv; H.264 or HEVC without B-frames).

    Every client gets the file from its start in real time, with timestamps that keep rising over
    the loops. The server, aio-rtsp-toolkit, runs in a thread, so it cannot outlive this process.
    It serves the folder of `video` to this machine only, without a password.

    Raises StreamerError from `start`: STREAM_NOT_FOUND, STREAM_CODEC_UNSUPPORTED.
    """

    def __init__(self, video: Path) -> None:
        self._video = video.resolve()
        self._port = 0
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop: asyncio.Event | None = None
        self._started = threading.Event()
        self._failure: BaseException | None = None
        self._thread: threading.Thread | None = None

    @property
    def url(self) -> str:
        """URL of the camera, once started."""
        return f"rtsp://127.0.0.1:{self._port}/{quote(self._video.name)}?play_count=0"

    def start(self) -> None:
        """Start the server and return when clients can connect. Starting twice is harmless."""
        if self._thread is not None:
            return
        self._check()
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self._port = int(probe.getsockname()[1])
        self._started.clear()
        self._thread = threading.Thread(target=self._run, name="loopback-camera", daemon=True)
        self._thread.start()
        if not self._started.wait(_START_TIMEOUT) or self._failure is not None:
            self.stop()
            raise StreamerError(
                ErrorCode.STREAM_CONNECTION_FAILED,
                f"The loopback camera did not start on port {self._port}: try again.",
            ) from self._failure

    def stop(self) -> None:
        """Disconnect all clients and end the thread. Stopping twice is harmless."""
        if self._loop is not None and self._stop is not None:
            with contextlib.suppress(RuntimeError):  # the loop has already ended
                self._loop.call_soon_threadsafe(self._stop.set)
        if self._thread is not None:
            self._thread.join(_START_TIMEOUT)
            self._thread = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _check(self) -> None:
        if not self._video.is_file():
            raise StreamerError(
                ErrorCode.STREAM_NOT_FOUND, f"{self._video} does not exist: check the path."
            )
        if self._video.suffix.lower() not in _SUFFIXES:
            raise StreamerError(
                ErrorCode.STREAM_CODEC_UNSUPPORTED,
                f"The loopback camera cannot serve {self._video.name}: give an .mp4 or .mkv file.",
            )

    def _run(self) -> None:
        try:
            asyncio.run(self._serve())
        except BaseException as error:
            self._failure = error
            self._started.set()

    async def _serve(self) -> None:
        from aio_rtsp_toolkit.server import RtspServer
        from aio_rtsp_toolkit.server_session import RtspServerSession

        RtspServerSession._threadsafe_queue_put = _put_once
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        self._loop.set_default_executor(ThreadPoolExecutor(_MAX_CLIENTS, "loopback-camera"))
        # Clients that `stop` cuts off raise errors of no interest.
        self._loop.set_exception_handler(lambda *_: None)
        server = RtspServer(str(self._video.parent), host="127.0.0.1", port=self._port)
        server.logger = _Silent()  # it would print every request with its full URL
        await server.start()
        self._started.set()
        await self._stop.wait()
        with contextlib.suppress(TimeoutError):  # it waits for clients to disconnect
            await asyncio.wait_for(server.close(), 0.1)


def _put_once(
    _session: object,
    loop: asyncio.AbstractEventLoop,
    queue: "asyncio.Queue[object]",
    item: object,
    stopped: threading.Event,
) -> bool:
    """Put what a session is to send into its queue; return False if the session has ended first.

    The library's own function gives up when there is no room for 50 ms, and tries again: the first
    attempt may have succeeded meanwhile, and a busy machine then sends a picture twice.
    """
    putting = asyncio.run_coroutine_threadsafe(queue.put(item), loop)
    while not stopped.is_set():
        try:
            putting.result(_LOOK_FOR_STOP)
            return True
        except TimeoutError:
            continue
        except Exception:  # the loop has ended
            return False
    putting.cancel()
    return False


class _Silent:
    """A logger that drops every message."""

    def __getattr__(self, _name: str) -> Any:
        return lambda *_args, **_kwargs: None
