"""Memory that a worker has freed goes back to the system."""

import subprocess
import sys

import pytest

from workers.process import malloc

FREES = """
import ctypes, os, pathlib, time
from workers.process import malloc

malloc.limit_arenas()
libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
libc.malloc.argtypes = [ctypes.c_size_t]
libc.free.argtypes = [ctypes.c_void_p]


def resident() -> int:
    pages = int(pathlib.Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


before = resident()
blocks = [libc.malloc(8192) for _ in range(8192)]  # too small for maps of their own
for block in blocks:
    ctypes.memset(block, 1, 8192)
for block in blocks[:-1]:  # the last one keeps the heap from shrinking by itself
    libc.free(block)
assert resident() - before > 48 << 20, "nothing is held"
malloc.keep_trimmed(0.1)
deadline = time.monotonic() + 120
while resident() - before > 16 << 20:
    assert time.monotonic() < deadline, "it is still held"
    time.sleep(0.05)
"""


def test_free_memory_goes_back_to_the_system_again_and_again() -> None:
    if malloc.bytes_in_use() is None:
        pytest.skip("The C library is not glibc.")
    done = subprocess.run([sys.executable, "-c", FREES], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
