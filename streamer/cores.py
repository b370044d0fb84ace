"""How many of the machine's cores this process may use."""

import os


def usable_cores() -> int:
    """Return how many cores the process may run on: those of its affinity mask, which `taskset` and
    containers set, where the system has one, or else all."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
