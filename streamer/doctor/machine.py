"""Check this machine: Python, decoders, disk and limits."""

import os
import platform
import shutil
import sys
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from streamer.cores import usable_cores
from streamer.doctor.check import Check, check, format_size
from streamer.errors import StreamerError
from streamer.frames.archive import archive_folder
from streamer.local.gpus import ALL, choose_gpus
from streamer.settings import Settings

DECODERS = ("h264", "hevc", "mjpeg", "vp9", "libdav1d", "mpeg4")
_PACKAGES = ("torch", "transformers", "av", "opencv-python-headless", "redis", "rq")

_MIN_DISK_OK, _MIN_DISK = 5 << 30, 512 << 20
"""Free bytes below which the disk is a warning, and a failure."""

_MIN_OPEN_FILES = 1024


def python(_: Settings) -> Iterable[Check]:
    """Check the versions of Python and of the packages."""
    fit = (3, 11) <= sys.version_info[:2] <= (3, 13)
    yield check(
        "python",
        "ok" if fit else "warn",
        f"Python {platform.python_version()}{'' if fit else ' is not tested: use 3.11 to 3.13'}.",
    )
    versions, missing = [], []
    for name in _PACKAGES:
        try:
            versions.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            missing.append(name)
    if missing:
        yield check(
            "packages", "fail", f"Missing: {', '.join(missing)}. Install the project again."
        )
    else:
        yield check("packages", "ok", f"{', '.join(versions)}.")


def codecs(_: Settings) -> Iterable[Check]:
    """Check the decoders of this FFmpeg build."""
    import av

    missing = [name for name in DECODERS if name not in av.codecs_available]
    release = ".".join(str(part) for part in av.library_versions["libavcodec"])
    if "rtsp" not in av.formats_available or "h264" in missing:
        yield check(
            "codecs",
            "fail",
            "PyAV's FFmpeg lacks RTSP or H.264: reinstall it with `pip install --force av`.",
        )
    elif missing:
        message = f"FFmpeg cannot decode {', '.join(missing)}: streams with these codecs will fail."
        yield check("codecs", "warn", message)
    else:
        names = ", ".join(name.removeprefix("lib") for name in DECODERS)
        yield check("codecs", "ok", f"libavcodec {release} decodes {names}.")


def hardware(settings: Settings) -> Iterable[Check]:
    """Check whether a GPU decodes video."""
    from streamer.media import hardware as decoding

    if settings.hwaccel == "none":
        yield check("hardware decoding", "ok", "Disabled by the setting hwaccel: none.")
        return
    reason = decoding.cuda_unavailable_reason() or decoding.decoder_missing_reason()
    if reason is None:
        yield check("hardware decoding", "ok", "NVIDIA's hardware decoder works.")
        return
    card = Path("/dev/nvidia0").exists() or settings.hwaccel == "cuda"
    hint = (
        ": check the driver; a container needs `video` in NVIDIA_DRIVER_CAPABILITIES"
        if card
        else ""
    )
    yield check(
        "hardware decoding",
        "warn" if card else "ok",
        f"Video is decoded in software because {reason}{hint}.",
    )


def gpus(settings: Settings) -> Iterable[Check]:
    """Tell how to use all GPUs, if there are several."""
    if settings.backend != "nvila":
        return
    try:
        found = choose_gpus(ALL, os.environ)
    except StreamerError:  # there is none
        return
    if len(found) > 1:
        yield check(
            "GPUs",
            "ok",
            f"{len(found)} GPUs, of which a model worker uses one: `streamer up --gpus all` (or "
            "`streamer worker --gpus all`) starts one for each.",
        )


def disk(settings: Settings) -> Iterable[Check]:
    """Check free space and write permission of `data_dir`, and of the archive if it is a folder."""
    yield _folder("disk", settings.data_dir, "data_dir")
    if settings.archive_url is not None and (folder := archive_folder(settings.archive_url)):
        yield _folder("archive", folder, "archive_url")


def _folder(name: str, folder: Path, setting: str) -> Check:
    folder = folder.absolute()
    existing = next((path for path in (folder, *folder.parents) if path.exists()), Path("/"))
    if not os.access(existing, os.W_OK | os.X_OK):
        return check(
            name,
            "fail",
            f"{existing} is not writable: change its permissions, or choose another {setting}.",
        )
    free = shutil.disk_usage(existing).free
    space = f"{format_size(free)} free for {folder}"
    if free < _MIN_DISK:
        return check(name, "fail", f"{space}: free some space, or choose another {setting}.")
    if free < _MIN_DISK_OK:
        return check(name, "warn", f"{space}: this may run out soon.")
    return check(name, "ok", f"{space}.")


def limits(settings: Settings) -> Iterable[Check]:
    """Check the number of cores and the limit of open files."""
    import resource

    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = max(_MIN_OPEN_FILES, 16 * settings.ingest_slots)
    enough = soft == resource.RLIM_INFINITY or soft >= needed
    advice = "" if enough else ": run `ulimit -n 65536`, or streams run out of sockets"
    found = f"{usable_cores()} cores; {soft} open files allowed{advice}."
    yield check("limits", "ok" if enough else "warn", found)
