"""Keeps a process of many short-lived threads from hoarding what they have freed.

glibc gives threads heaps of their own, up to eight for each core, and keeps in each whatever was
once needed there. Streams that come and go so make a worker grow for a long time, though what is in
use stays the same.
"""

import ctypes

_M_ARENA_MAX = -8
_ARENAS = 2

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


def settle() -> None:
    """Have few heaps; call it before there are threads. Does nothing without glibc."""
    if hasattr(_libc, "mallopt"):
        _libc.mallopt(_M_ARENA_MAX, _ARENAS)


def give_back() -> None:
    """Return what is free to the system: milliseconds, so after large changes only."""
    if hasattr(_libc, "malloc_trim"):
        _libc.malloc_trim(0)


def in_use() -> int | None:
    """Bytes that native code holds, without what it has freed; None without a glibc that tells."""
    if not _has_mallinfo:
        return None
    told = _libc.mallinfo2()
    return int(told.uordblks + told.hblkhd)
