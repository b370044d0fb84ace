"""An idle program gives back the pages of libraries, and no page that was written to."""

import ctypes
import mmap
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from streamer import file_pages
from streamer.file_pages import IdleRelease, release_file_pages
from tests.support.clocks import ManualClock

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux gives pages back")

USES = """
import hashlib, sqlite3
import cv2
import numpy as np
from streamer.file_pages import mapped_file_bytes, release_file_pages

def work() -> str:
    picture = np.arange(120 * 160 * 3, dtype=np.uint8).reshape(120, 160, 3)
    small = cv2.resize(picture, (80, 60), interpolation=cv2.INTER_AREA)
    jpeg = cv2.imencode(".jpg", small)[1].tobytes()
    solved = np.linalg.solve(np.eye(3) * 2, np.arange(3.0)).tobytes()
    version = sqlite3.connect(":memory:").execute("SELECT sqlite_version()").fetchone()[0]
    return hashlib.sha256(jpeg + solved + version.encode()).hexdigest()

worked = work()
before = mapped_file_bytes()
released = release_file_pages()
after = mapped_file_bytes()
assert released > 4 << 20, released
assert before - after > released // 2, (before, released, after)
assert work() == worked
assert after < mapped_file_bytes() < before
"""

WRITES_TO_CODE = """
import _ctypes, ctypes, mmap, pathlib, re, shutil, sys
from streamer.file_pages import release_file_pages

copy = shutil.copy(sys.argv[1], sys.argv[2])
library = ctypes.CDLL(copy)

def mappings():
    smaps = pathlib.Path("/proc/self/smaps").read_text()
    for part in re.split(r"(?m)^(?=[0-9a-f]+-[0-9a-f]+ )", smaps):
        if copy in part:
            start, end, permissions = re.match(r"(\\w+)-(\\w+) (\\S+)", part).groups()
            resident = int(re.search(r"Rss: +(\\d+)", part)[1])
            yield permissions, int(start, 16), int(end, 16), resident

(code,) = [each for each in mappings() if each[0] == "r-xp"]
libc = ctypes.CDLL(None)
libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
READ, WRITE, EXECUTE = 1, 2, 4
_, start, end, _ = code
assert libc.mprotect(start, end - start, READ | WRITE) == 0
last = ctypes.c_ubyte.from_address(end - 1)  # beyond the last function
last.value ^= 0xFF
written = last.value
assert libc.mprotect(start, end - start, READ | EXECUTE) == 0
for _, first, *_ in mappings():
    ctypes.c_ubyte.from_address(first).value
assert all(resident for *_, resident in mappings())

assert release_file_pages() > 0

assert last.value == written, "what was written is lost"
left = {permissions: resident for permissions, _, _, resident in mappings()}
assert left["r-xp"] > 0
headers = list(mappings())[0]
assert headers[0] == "r--p" and headers[3] == 0, "a page that was not written to stays mapped"
"""

THREAD = """
import time
import cv2
from streamer import file_pages

file_pages.LOOK_SECONDS = 0.1
before = file_pages.mapped_file_bytes()
file_pages.release_when_idle()
deadline = time.monotonic() + 60
while file_pages.mapped_file_bytes() > before / 2:
    assert time.monotonic() < deadline, "it is still mapped"
    time.sleep(0.1)
"""


def run(code: str, *arguments: str) -> None:
    """Run a program in an interpreter of its own, to its end."""
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_pages_of_libraries_are_given_back_and_the_libraries_work_on() -> None:
    run(USES)


def test_code_that_was_written_to_is_kept(tmp_path: Path) -> None:
    import _ctypes

    run(WRITES_TO_CODE, _ctypes.__file__, str(tmp_path / "copy.so"))


def test_a_program_gives_them_back_by_itself_when_it_is_idle() -> None:
    run(THREAD)


@pytest.fixture
def memory() -> Iterator[mmap.mmap]:
    """Memory without a file, all of which is lost when it is given back."""
    with mmap.mmap(-1, mmap.PAGESIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as memory:
        memory[:] = b"x" * mmap.PAGESIZE
        yield memory


@pytest.mark.parametrize(
    ("permissions", "inode", "sizes", "is_kept"),
    [
        ("r-xp", 12, "", False),  # as a mapping that may be given back is listed
        ("r-xp", 12, "Anonymous: 4 kB\n", True),
        ("r-xp", 12, "Swap: 4 kB\n", True),
        ("rwxp", 12, "", True),
        ("r-xs", 12, "", True),
        ("r--p", 12, "", True),  # no part of this file has code
        ("r-xp", 0, "", True),
    ],
)
def test_what_the_system_says_of_a_mapping_decides(
    memory: mmap.mmap,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    permissions: str,
    inode: int,
    sizes: str,
    is_kept: bool,
) -> None:
    # given memory that the system lists as a mapping of a file
    first = ctypes.c_char.from_buffer(memory)
    start = ctypes.addressof(first)
    del first
    listed = tmp_path / "smaps"
    listed.write_text(
        f"{start:x}-{start + mmap.PAGESIZE:x} {permissions} 00000000 fe:00 {inode}   /lib/a.so\n"
        f"Size: 4 kB\nRss: 4 kB\n{sizes}VmFlags: rd ex mr mw me\n"
    )
    monkeypatch.setattr(file_pages, "_SMAPS", listed)

    released = release_file_pages()

    assert released == (0 if is_kept else 4096)
    assert (memory[0] == ord("x")) is is_kept


class Program:
    """A program with times and sizes that the test sets; it counts how often it gave pages back."""

    def __init__(self) -> None:
        self.clock = ManualClock(1000.0)
        self.cpu_seconds = 3.0
        self.mapped = 100 << 20
        self.released = 0
        self.idle = IdleRelease(
            self.clock, lambda: self.cpu_seconds, lambda: self.mapped, self._release
        )

    def _release(self) -> None:
        self.released += 1
        self.mapped = 15 << 20

    def run(self, seconds: float, share: float = 0.0) -> None:
        """Let time pass, in which it uses a share of one core."""
        for _ in range(round(seconds)):
            self.clock.now += 1.0
            self.cpu_seconds += share
            self.idle.step()


@pytest.fixture
def program() -> Program:
    """A program that has started."""
    return Program()


def test_pages_are_given_back_once_the_start_is_over(program: Program) -> None:
    program.run(60, share=0.9)
    assert program.released == 0

    program.run(10, share=0.01)
    assert program.released == 1

    # and no second time without need, whatever little comes back
    program.mapped += 3 << 20
    program.run(3600, share=0.01)
    assert program.released == 1


@pytest.mark.parametrize(("pause", "times"), [(50.0, 1), (70.0, 2)])
def test_what_work_has_brought_back_is_given_back_once_a_minute(
    program: Program, pause: float, times: int
) -> None:
    # given a program that has given its pages back
    program.run(10)
    assert program.released == 1

    # when it works, and is idle again
    program.mapped += 40 << 20
    program.run(pause)

    assert program.released == times
    program.run(60)
    assert program.released == 2


def test_a_busy_program_keeps_its_pages(program: Program) -> None:
    program.run(3600, share=0.1)
    assert program.released == 0


def test_a_system_without_these_files_gives_nothing_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("_SMAPS", "_STATM"):
        monkeypatch.setattr(file_pages, name, tmp_path / "none")

    assert release_file_pages() == 0
    assert file_pages.mapped_file_bytes() == 0
    file_pages.release_when_idle()  # starts no thread
