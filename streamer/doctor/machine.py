"""This machine: Python, decoders, disk and limits."""

import os
import platform
import shutil
import sys
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from streamer.doctor.check import Check, check, size
from streamer.frames.archive import local_folder
from streamer.settings import Settings

DECODERS = ("h264", "hevc", "mjpeg", "vp9", "libdav1d", "mpeg4")
_PACKAGES = ("torch", "transformers", "av", "opencv-python-headless", "redis", "rq")

_LITTLE_DISK, _NO_DISK = 5 << 30, 512 << 20
_FEW_FILES = 1024


def python(_: Settings) -> Iterable[Check]:
    """Python and its packages."""
    fit = (3, 11) <= sys.version_info[:2] <= (3, 12)
    yield check(
        "python",
        "ok" if fit else "warn",
        f"Python {platform.python_version()}{'' if fit else ': 3.11 and 3.12 are tested'}.",
    )
    versions, missing = [], []
    for name in _PACKAGES:
        try:
            versions.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            missing.append(name)
    if missing:
        yield check(
            "packages", "fail", f"Not installed: {', '.join(missing)}: install the project again."
        )
    else:
        yield check("packages", "ok", f"{', '.join(versions)}.")


def codecs(_: Settings) -> Iterable[Check]:
    """The decoders of this build of FFmpeg."""
    import av

    missing = [name for name in DECODERS if name not in av.codecs_available]
    release = ".".join(str(part) for part in av.library_versions["libavcodec"])
    if "rtsp" not in av.formats_available or "h264" in missing:
        yield check(
            "codecs",
            "fail",
            "PyAV's FFmpeg lacks RTSP or H.264: install the wheel, `pip install --force av`.",
        )
    elif missing:
        message = f"FFmpeg has no decoder for {', '.join(missing)}: such streams will fail."
        yield check("codecs", "warn", message)
    else:
        names = ", ".join(name.removeprefix("lib") for name in DECODERS)
        yield check("codecs", "ok", f"libavcodec {release} decodes {names}.")


def hardware(settings: Settings) -> Iterable[Check]:
    """Whether a card decodes."""
    from streamer.media import hardware as decoding

    if settings.hwaccel == "none":
        yield check("hardware decoding", "ok", "Switched off (hwaccel: none).")
        return
    reason = decoding.cuda_unavailable_reason() or decoding.decoder_missing_reason()
    if reason is None:
        yield check("hardware decoding", "ok", "NVIDIA's decoder works.")
        return
    card = Path("/dev/nvidia0").exists() or settings.hwaccel == "cuda"
    hint = (
        ": check the driver, and that a container has NVIDIA_DRIVER_CAPABILITIES with `video`"
        if card
        else ""
    )
    yield check(
        "hardware decoding",
        "warn" if card else "ok",
        f"Pictures are decoded in software, {reason}{hint}.",
    )


def disk(settings: Settings) -> Iterable[Check]:
    """Room and rights in `data_dir`, and where frames are archived if that is a folder."""
    yield _folder("disk", settings.data_dir, "data_dir")
    if settings.archive_url is not None and (folder := local_folder(settings.archive_url)):
        yield _folder("archive", folder, "archive_url")


def _folder(name: str, folder: Path, setting: str) -> Check:
    folder = folder.absolute()
    existing = next((path for path in (folder, *folder.parents) if path.exists()), Path("/"))
    if not os.access(existing, os.W_OK | os.X_OK):
        return check(name, "fail", f"{existing} may not be written to: choose another {setting}.")
    free = shutil.disk_usage(existing).free
    said = f"{size(free)} free for {folder}"
    if free < _NO_DISK:
        return check(name, "fail", f"{said}: make room, or choose another {setting}.")
    if free < _LITTLE_DISK:
        return check(name, "warn", f"{said}: that may not last.")
    return check(name, "ok", f"{said}.")


def limits(settings: Settings) -> Iterable[Check]:
    """Cores and open files."""
    import resource

    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    enough = soft == resource.RLIM_INFINITY or soft >= max(_FEW_FILES, 16 * settings.ingest_slots)
    raised = "" if enough else ": raise it (`ulimit -n 65536`), or streams run out of sockets"
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    yield check(
        "limits", "ok" if enough else "warn", f"{cores} cores; {soft} open files allowed{raised}."
    )
