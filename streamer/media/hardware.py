"""Decode with the GPU where possible, and in software elsewhere.

PyAV falls back to software for a format that the GPU cannot decode, but not on a machine without a
driver: there, `av.open` raises PermissionError. So each process first tries to create a device.
"""

import logging
from functools import cache
from io import BytesIO
from typing import Any, Literal

import av
from av import Codec
from av.codec.hwaccel import HWAccel, hwdevices_available
from av.container import InputContainer

Hardware = Literal["none", "auto", "cuda"]

# Otherwise FFmpeg creates a CUDA context, hundreds of megabytes of GPU memory, per stream.
_OPTIONS: dict[str, object] = {"primary_ctx": "1"}

_log = logging.getLogger(__name__)


@cache
def cuda_unavailable_reason() -> str | None:
    """Return why CUDA cannot decode here, in a few words; None if it can.

    The result is cached for the life of the process.
    """
    return _try_device()


def _try_device() -> str | None:
    if "cuda" not in hwdevices_available():
        return "this build of FFmpeg has no CUDA"
    try:
        _accelerator().create(Codec("h264", "r"))
    except PermissionError:
        return "there is no NVIDIA driver"
    except (av.FFmpegError, OSError, NotImplementedError) as error:
        return f"the NVIDIA driver refused ({type(error).__name__})"
    return None


def open_input(wanted: Hardware, **arguments: Any) -> InputContainer:
    """Call `av.open(**arguments)` for reading, with hardware decoding if `wanted` and possible.

    Otherwise the video is decoded in software, and the log gives the reason once: at level info for
    `auto`, as a warning for `cuda`. Decoded frames are in main memory in both cases.
    """
    if wanted == "none":
        return _open(**arguments)
    reason = cuda_unavailable_reason()
    if reason is None:
        try:
            return _open(hwaccel=_accelerator(), **arguments)
        except (av.FFmpegError, OSError):
            reason = _try_device()  # either the source failed, or the GPU is out of memory by now
            if reason is None:
                raise
    _log_software_decoding(wanted, reason)
    return _open(**arguments)


def _open(**arguments: Any) -> InputContainer:
    container: InputContainer = av.open(mode="r", **arguments)
    return container


def _accelerator() -> HWAccel:
    return HWAccel("cuda", allow_software_fallback=True, options=_OPTIONS)


@cache
def _log_software_decoding(wanted: Hardware, reason: str) -> None:
    level = logging.WARNING if wanted == "cuda" else logging.INFO
    _log.log(level, "Video is decoded in software: %s.", reason)


def decoder_missing_reason() -> str | None:
    """Return why the GPU does not decode although its driver exists; None if it does.

    A Docker container may have the driver without its video library. FFmpeg then decodes in
    software without a message, but the pixel format shows it: a GPU returns nv12.
    """
    with open_input("auto", file=_small_video()) as container:
        formats = {frame.format.name for frame in container.decode(video=0)}
    return None if formats == {"nv12"} else "the NVIDIA driver has no decoder here"


def _small_video() -> BytesIO:
    file = BytesIO()
    with av.open(file, "w", format="matroska") as container:
        stream = container.add_stream("libx264", rate=10, options={"x264-params": "log-level=none"})
        stream.width, stream.height, stream.pix_fmt = 320, 240, "yuv420p"
        for number in range(5):
            frame = av.VideoFrame(320, 240, "yuv420p")
            frame.pts = number
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    file.seek(0)
    return file
