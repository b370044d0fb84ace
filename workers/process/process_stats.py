"""Measure this process: the numbers that `/metrics` shows of every worker."""

import os
import sys
import time
from pathlib import Path

from workers.process import malloc

_STATUS = Path("/proc/self/status")
_DESCRIPTORS = "/proc/self/fd"


def read_process_stats() -> dict[str, float]:
    """Return numbers about this process by their names.

    CPU seconds; memory blocks that Python uses and bytes that native code uses, which tell a leak
    from free room; and, where there is a /proc, resident bytes, threads and open descriptors.
    """
    numbers = {
        "cpu_seconds": time.process_time(),
        "python_blocks": sys.getallocatedblocks(),
    }
    if (heap_bytes := malloc.bytes_in_use()) is not None:
        numbers["heap_bytes"] = heap_bytes
    if _STATUS.exists():
        fields = dict(line.split(":", 1) for line in _STATUS.read_text().splitlines())
        numbers["resident_bytes"] = int(fields["VmRSS"].split()[0]) * 1024
        numbers["threads"] = int(fields["Threads"])
        numbers["open_descriptors"] = len(os.listdir(_DESCRIPTORS))
    return numbers
