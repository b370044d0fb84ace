"""How a worker process is, in numbers: what `/metrics` tells of it."""

import os
import sys
import time
from pathlib import Path

from workers.process import malloc as heap

_STATUS = Path("/proc/self/status")
_DESCRIPTORS = "/proc/self/fd"


def of_this_process() -> dict[str, float]:
    """Resident bytes, threads, open descriptors (where there is a /proc), CPU seconds, and what
    native code (bytes) and Python (blocks) have in use: these two tell a leak from mere room."""
    numbers = {
        "cpu_seconds": time.process_time(),
        "python_blocks": sys.getallocatedblocks(),
    }
    if (heap_bytes := heap.in_use()) is not None:
        numbers["heap_bytes"] = heap_bytes
    if _STATUS.exists():
        fields = dict(line.split(":", 1) for line in _STATUS.read_text().splitlines())
        numbers["resident_bytes"] = int(fields["VmRSS"].split()[0]) * 1024
        numbers["threads"] = int(fields["Threads"])
        numbers["open_descriptors"] = len(os.listdir(_DESCRIPTORS))
    return numbers
