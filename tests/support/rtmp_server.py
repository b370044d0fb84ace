"""A real RTMP server: nginx with its RTMP module, and a client that publishes a numbered video."""

import os
import shutil
import socket
import subprocess
import threading
import time
from pathlib import Path
from typing import Self

import av
import pytest

from streamer.errors import StreamerError
from streamer.local.process import stop
from streamer.media.source import inspect_source
from tests.support.videos import write_video

_NGINX = shutil.which("nginx") or "/usr/sbin/nginx"
_RTMP = Path("/usr/lib/nginx/modules/ngx_rtmp_module.so")


class RtmpServer:
    """Server of `url` on a free loopback port; skips the test if nginx is not installed."""

    def __init__(self, folder: Path) -> None:
        if not (_RTMP.is_file() and os.access(_NGINX, os.X_OK)):
            pytest.skip("nginx-light and libnginx-mod-rtmp are not installed")
        self._folder = folder
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = int(free.getsockname()[1])
        self.url = f"rtmp://127.0.0.1:{self.port}/live/cam"
        self._ended = threading.Event()
        self._pusher = threading.Thread(target=self._push)

    def __enter__(self) -> Self:
        folder = self._folder
        (folder / "nginx.conf").write_text(
            f"load_module {_RTMP};\ndaemon off;\nmaster_process off;\n"
            f"pid {folder}/nginx.pid;\nerror_log {folder}/error.log;\n"
            "events { worker_connections 32; }\n"
            f"rtmp {{ server {{ listen 127.0.0.1:{self.port}; "
            "application live { live on; } } }\n"
        )
        # 800 kbit/s, as of a camera: it takes FFmpeg some kilobytes to see what RTMP brings
        options = {
            "crf": "-1",
            **dict.fromkeys(("b", "maxrate", "bufsize"), "800000"),
            "x264-params": "log-level=none:threads=1:nal-hrd=cbr:filler=1",
        }
        write_video(folder / "v.mp4", seconds=4, options=options)
        self._process = subprocess.Popen(
            [_NGINX, "-p", str(folder), "-c", str(folder / "nginx.conf")],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        self._pusher.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._pusher.join(20)
        stop(self._process)

    def wait(self) -> None:
        """Wait until `url` delivers pictures."""
        deadline = time.monotonic() + 120
        while True:
            try:
                inspect_source(self.url, 5)
                return
            except StreamerError:
                assert time.monotonic() < deadline

    def _push(self) -> None:
        ended = self._ended
        while not ended.is_set():  # until the server listens
            try:
                socket.create_connection(("127.0.0.1", self.port), 1).close()
                break
            except OSError:
                ended.wait(0.05)
        offset = 0.0
        with av.open(self.url, "w", format="flv", options={"flush_packets": "1"}) as output:
            stream = None
            while not ended.is_set():
                began = time.monotonic()
                with av.open(str(self._folder / "v.mp4")) as source:
                    stream = stream or output.add_stream_from_template(source.streams.video[0])
                    for packet in source.demux(video=0):
                        if packet.pts is None or packet.dts is None or ended.is_set():
                            continue
                        due = float(packet.dts * packet.time_base)
                        ended.wait(max(0.0, began + due - time.monotonic()))
                        shift = round(offset / packet.time_base)
                        packet.pts, packet.dts = packet.pts + shift, packet.dts + shift
                        packet.stream = stream
                        output.mux(packet)
                offset += 4.0
