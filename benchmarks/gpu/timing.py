"""Time work on a device."""

import time
from collections.abc import Callable
from itertools import pairwise
from statistics import median

import torch


def synchronize(device: torch.device) -> None:
    """Wait for the device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def host_ms(call: Callable[[], object], device: torch.device, times: int = 20) -> float:
    """Return the median milliseconds from a call to the end of its work, after two to warm up."""
    found, warm = [], 2
    if device.type != "cuda":  # only shows that it runs
        times, warm = 1, 0
    for _ in range(times + warm):
        synchronize(device)
        began = time.perf_counter()
        call()
        synchronize(device)
        found.append(1000 * (time.perf_counter() - began))
    return median(found[warm:])


def device_ms(call: Callable[[], object], device: torch.device, times: int = 20) -> float:
    """Return the median milliseconds that the device needs for a call, after two to warm up.

    The calls of a round are queued before the first ends, so that the host's share is hidden where
    it is smaller.
    """
    if device.type != "cuda":
        return host_ms(call, device)
    for _ in range(2):
        call()
    marks = [torch.cuda.Event(enable_timing=True) for _ in range(times + 1)]
    torch.cuda.synchronize(device)
    torch.cuda._sleep(20_000_000)  # about 10 ms, in which the host gets ahead
    marks[0].record()
    for mark in marks[1:]:
        call()
        mark.record()
    torch.cuda.synchronize(device)
    return median(float(a.elapsed_time(b)) for a, b in pairwise(marks))
