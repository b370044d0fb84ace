"""Give back the pages of libraries that a program has used and does not use while it is idle.

The start of a program runs code that it never runs again: that of PyTorch's import alone is 65 MB.
The pages of it stay mapped, and so in the memory of the process, until the system lacks memory.
What is given back stays in the system's cache of files. A page that is used again is mapped again,
by a minor fault of about a microsecond. Linux only; elsewhere nothing happens.
"""

import ctypes
import os
import re
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from streamer.clock import Clock, SystemClock

LOOK_SECONDS = 5.0
"""Seconds between two looks whether the program is idle."""

_IDLE_CPU = 0.05  # share of one core's time below which a program counts as idle
_MIN_PAUSE = 60.0  # seconds between two releases: one takes milliseconds, and so does what follows
_MIN_GROWTH = 8 << 20  # bytes of files that a release is worth

_SMAPS = Path("/proc/self/smaps")
_STATM = Path("/proc/self/statm")
_DONTNEED = 4  # MADV_DONTNEED of Linux
_HEADER = re.compile(r"([0-9a-f]+)-([0-9a-f]+) (\S{4}) [0-9a-f]+ (\S+) (\d+)")

_libc = ctypes.CDLL(None, use_errno=True)
_libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]


@dataclass
class _Mapping:
    """A mapping of this process. `file` is its device and inode; sizes are in bytes."""

    start: int
    end: int
    permissions: str
    file: tuple[str, str]
    resident: int = 0
    anonymous: int = 0
    swapped: int = 0

    @property
    def is_file_only(self) -> bool:
        """Whether each page of it is that of the file: none has been written to, as relocations
        are, in memory or in swap. Such a page would be lost."""
        return (
            self.permissions[1:] in ("-xp", "--p")
            and self.file[1] != "0"
            and self.anonymous == self.swapped == 0
        )


_SIZES = {"Rss": "resident", "Anonymous": "anonymous", "Swap": "swapped"}


def release_file_pages() -> int:
    """Unmap the unwritten pages of programs and libraries; return how many bytes were mapped.

    Files without code, such as weights, keep their pages. No other thread may be loading a library
    that writes to its own code (text relocations).
    """
    if not _SMAPS.exists():
        return 0
    mappings = list(_read_mappings())
    with_code = {mapping.file for mapping in mappings if "x" in mapping.permissions}
    released = 0
    for mapping in mappings:
        if mapping.file in with_code and mapping.is_file_only and mapping.resident:
            size = mapping.end - mapping.start
            if _libc.madvise(mapping.start, size, _DONTNEED) == 0:  # not if it is locked
                released += mapping.resident
    return released


def _read_mappings() -> Iterator[_Mapping]:
    mapping: _Mapping | None = None
    with _SMAPS.open(errors="replace") as lines:  # not at once: a megabyte would stay behind
        for line in lines:
            if header := _HEADER.match(line):
                if mapping is not None:
                    yield mapping
                start, end, permissions, device, inode = header.groups()
                mapping = _Mapping(int(start, 16), int(end, 16), permissions, (device, inode))
            elif mapping is not None:
                name, _, value = line.partition(":")
                if name in _SIZES:
                    setattr(mapping, _SIZES[name], int(value.split()[0]) * 1024)
    if mapping is not None:
        yield mapping


def mapped_file_bytes() -> int:
    """Return the bytes of files that this process has mapped and used; 0 without a /proc."""
    if not _STATM.exists():
        return 0
    return int(_STATM.read_text().split()[2]) * os.sysconf("SC_PAGE_SIZE")


class IdleRelease:
    """Releases the pages of files when this program is idle: once after its start, and after it has
    worked, but at most once a minute.

    Args:
        clock: the time.
        cpu_seconds: returns the CPU time that the program has used.
        mapped: returns the bytes of files that it has mapped.
        release: releases them.
    """

    def __init__(
        self,
        clock: Clock | None = None,
        cpu_seconds: Callable[[], float] = time.process_time,
        mapped: Callable[[], int] = mapped_file_bytes,
        release: Callable[[], object] = release_file_pages,
    ) -> None:
        self._clock = clock or SystemClock()
        self._cpu_seconds = cpu_seconds
        self._mapped = mapped
        self._release = release
        self._looked_at = self._clock.monotonic()
        self._used = cpu_seconds()
        self._released_at = float("-inf")
        self._kept = float("-inf")

    def step(self) -> None:
        """Release them if it is time; call it every LOOK_SECONDS, or more often."""
        now = self._clock.monotonic()
        passed = now - self._looked_at
        if passed < LOOK_SECONDS:
            return
        before, self._used = self._used, self._cpu_seconds()
        self._looked_at = now
        if (
            self._used - before < _IDLE_CPU * passed
            and now - self._released_at >= _MIN_PAUSE
            and self._mapped() - self._kept >= _MIN_GROWTH
        ):
            self._release()
            self._released_at = now
            self._kept = self._mapped()


def release_when_idle() -> None:
    """Release the pages of files when this program is idle, from now on, in a thread.

    Call it once the program has started: a start that waits for the disk looks idle.
    """
    if not _SMAPS.exists():
        return
    idle = IdleRelease()

    def work() -> None:
        while True:
            time.sleep(LOOK_SECONDS)
            idle.step()

    threading.Thread(target=work, name="idle-release", daemon=True).start()
