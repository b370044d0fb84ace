"""Keep a process of many short-lived threads from hoarding the memory that they have freed.

glibc gives threads heaps ("arenas") of their own, up to eight for each core, and keeps in each what
was once allocated there. Streams and jobs that come and go therefore make a worker grow for a long
time, although what is in use stays the same.
"""

import ctypes
import threading
import time

_M_ARENA_MAX = -8
_MAX_ARENAS = 2

_TRIM_INTERVAL = 60.0
"""Seconds between two returns of free memory, each of which takes milliseconds."""

_libc = ctypes.CDLL(None)


class _Mallinfo(ctypes.Structure):
    _fields_ = [
        (name, ctypes.c_size_t)
        for name in (
            *("arena", "ordblks", "smblks", "hblks", "hblkhd"),
            *("usmblks", "fsmblks", "uordblks", "fordblks", "keepcost"),
        )
    ]


if _has_mallinfo := hasattr(_libc, "mallinfo2"):
    _libc.mallinfo2.restype = _Mallinfo


def limit_arenas() -> None:
    """Limit the number of heaps; call it before there are threads. Does nothing without glibc."""
    if hasattr(_libc, "mallopt"):
        _libc.mallopt(_M_ARENA_MAX, _MAX_ARENAS)


def trim() -> None:
    """Return free memory to the system. It takes milliseconds, so call it after large changes."""
    if hasattr(_libc, "malloc_trim"):
        _libc.malloc_trim(0)


def keep_trimmed(interval: float = _TRIM_INTERVAL) -> None:
    """Return free memory to the system every `interval` seconds from now on, in a thread: after an
    outage or a busy moment it would stay with the process. Does nothing without glibc."""
    if not hasattr(_libc, "malloc_trim"):
        return

    def work() -> None:
        while True:
            time.sleep(interval)
            trim()

    threading.Thread(target=work, name="malloc-trim", daemon=True).start()


def bytes_in_use() -> int | None:
    """Return the bytes that native code has allocated and not freed; None where the C library does
    not report them (`mallinfo2` of glibc)."""
    if not _has_mallinfo:
        return None
    info = _libc.mallinfo2()
    return int(info.uordblks + info.hblkhd)
