"""The load of the streams parts: frames, arrival times and latencies, in a process of its own.

So the engine's process does what a model worker does (`slots.py`), and nothing else takes Python's
lock there. This process is what stands around a worker: ingest workers, Redis, and callers who
wait. It imports no PyTorch. Frames travel in shared memory, all else through a socket:

    to the load     ("run", order)              one of `Load.run`
                    ("free", slot)              a slot of the worker takes the next clip
                    ("answered", number)        a clip has its answer
    from the load   ("clip", slot, number, form, sizes, measures)
                    ("cancel",)                 no answer is wanted any more
                    ("result", values)          of the run
                    ("failed", sentence)        the run has ended with an error

The load ends when the other end of the socket is closed, so also when that process is killed.
"""

import json
import mmap
import os
import socket
import subprocess
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path
from queue import Empty, SimpleQueue
from statistics import mean, median
from typing import Any, NamedTuple, Protocol

import cv2
import numpy as np
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from nvila_core.resolution.meter import Meter
from nvila_core.resolution.policy import Measures

Picture = NDArray[np.uint8]

PERIOD = 10.0
"""Seconds of a stream that a clip covers."""

MAX_P95 = 10.0
"""Seconds until the caption of a clip is there, in 95 of 100 cases, for sustained streams."""

MAX_GROWTH = 1.08
"""How much later the last third of clips may be than the middle one: more is a queue that grows."""

GIVE_UP = 2 * MAX_P95
"""Seconds without an answer after which a number of streams is not sustained."""

MAX_LATE = 0.5
"""Seconds after its time at which a clip may be made. Where one is later, the load is too slow."""

LEAD = 2.0
"""Seconds before its time at which a clip is made, at the earliest."""

QUALITY = 80
"""JPEG quality of the frames: the service's default."""

POOL = 64
"""Pictures that the frames of a stream without a fixed scene are made of."""


class Clips(Protocol):
    """Makes clips, each with tiles that no other has."""

    measures: list[Measures]
    """Of the frames of a clip, as an ingest worker sends them along."""

    def frames(self, number: int) -> list[Picture]:
        """Return the frames of a clip, RGB uint8 [height, width, 3]."""
        ...


class NewPictures:
    """Clips of new pictures of one tile each: the workload of NVIDIA VSS.

    Args:
        frames: of a clip.
        side: pixels of a tile's side.
    """

    def __init__(self, frames: int, side: int) -> None:
        random = np.random.default_rng(0)
        coarse = random.integers(40, 216, (POOL, 16, 16, 3), dtype=np.uint8)
        noise = random.integers(0, 12, (side, side, 3), dtype=np.uint8)
        size = (side, side)
        self._pool: list[Any] = [
            cv2.add(cv2.resize(one, size, interpolation=cv2.INTER_CUBIC), noise) for one in coarse
        ]
        self._count = frames
        self.measures = [Measures(side, side)] * frames

    def frames(self, number: int) -> list[Picture]:
        """Return the frames of a clip; see `Clips`."""
        made = []
        for n in range(self._count):
            picture = np.array(self._pool[n % POOL])
            size = len(picture) // 8
            picture[:size, :size] = mark(number * self._count + n, size)
            made.append(picture)
        return made


class MovingObject:
    """Clips of a camera that sees a still scene, in which an object moves.

    The tiles under the object are new in each clip, the others are always the same.

    Args:
        frames: of a clip.
        side: height of a frame in pixels; it is 16:9.
    """

    def __init__(self, frames: int, side: int) -> None:
        random = np.random.default_rng(0)
        self._scene = np.full((side, side * 16 // 9, 3), 90, np.uint8)
        detail = random.integers(0, 256, (side // 4, side // 2, 3), dtype=np.uint8)
        self._scene[side // 4 : side // 4 * 2, side // 2 : side // 2 * 2] = detail
        self._count = frames
        meter = Meter()
        self.measures = [meter.measure(frame) for frame in self.frames(0)]

    def frames(self, number: int) -> list[Picture]:
        """Return the frames of a clip; see `Clips`."""
        made, size = [], len(self._scene) // 8
        pattern = mark(number, size)
        for n in range(self._count):
            frame = self._scene.copy()
            left = n * (frame.shape[1] - size) // self._count
            frame[-2 * size : -size, left : left + size] = pattern
            made.append(frame)
        return made


KINDS: dict[str, Callable[[int, int], Clips]] = {"new": NewPictures, "camera": MovingObject}


def mark(number: int, size: int) -> Picture:
    """Return a square uint8 [size, size, 1] that shows a number in 64 cells.

    They are large and differ enough for a JPEG to keep them.
    """
    bits = np.unpackbits(np.frombuffer(number.to_bytes(8, "little"), np.uint8)).reshape(8, 8)
    cells = (64 + 128 * bits).astype(np.uint8)
    pattern: Any = cv2.resize(cells, (size, size), interpolation=cv2.INTER_NEAREST)
    return np.asarray(pattern)[..., None]


class MadeClip(NamedTuple):
    """A clip that can be sent.

    Attributes:
        number: of the clip; no other has it.
        parts: the bytes of each frame: a JPEG, or RGB pixels.
        made_at: when it was made.
    """

    number: int
    parts: list[Any]
    made_at: float


class Arrivals:
    """What became of the clips of a run: when they were due, made, sent and answered.

    Args:
        clock: returns seconds.
        give_up: seconds without an answer after which the run is cancelled; None: never.
    """

    def __init__(self, clock: Callable[[], float], give_up: float | None) -> None:
        self._clock, self._give_up = clock, give_up
        self._changed = threading.Condition()
        self._due: dict[int, float] = {}
        self.latencies: dict[int, float] = {}
        self.late: list[float] = []
        self.waits: list[float] = []
        self.failed = False

    def sent(self, number: int, due: float, made_at: float, sent_at: float) -> None:
        """Note that a clip has a slot of the worker, and how late it was made."""
        with self._changed:
            self._due[number] = due
            self.late.append(max(0.0, made_at - due))
            self.waits.append(max(0.0, sent_at - max(due, made_at)))

    def answered(self, number: int) -> None:
        """Note that a clip has its answer."""
        with self._changed:
            self.latencies[number] = self._clock() - self._due.pop(number)
            self._changed.notify_all()

    def too_slow(self) -> bool:
        """Return whether a clip has had no answer for so long that none is wanted any more."""
        with self._changed:
            if self._give_up is not None:
                waiting = (self._clock() - due for due in self._due.values())
                longest = max((*waiting, *self.latencies.values()), default=0.0)
                self.failed = self.failed or longest > self._give_up
            return self.failed

    def all_answered(self, timeout: float) -> bool:
        """Wait for a while, and return whether every clip that was sent has its answer."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._due, timeout)

    def result(self, count: int) -> dict[str, Any]:
        """Return what was measured with `count` clips."""
        found: dict[str, Any] = {"clips": count}
        if self.failed:
            found |= {"sustained": False, "later than, s": self._give_up}
        else:
            found |= summary([self.latencies[number] for number in sorted(self.latencies)])
        latest = max(self.late, default=0.0)
        found |= {
            "longest wait for a slot s": max(self.waits, default=0.0),
            "load: made too late, s": latest,
            "load kept up": latest <= MAX_LATE,
        }
        return found


def summary(latencies: list[float]) -> dict[str, Any]:
    """Return percentiles of latencies in order of the clips, and whether they are sustained."""
    third = max(1, len(latencies) // 3)
    middle, last = mean(latencies[third : 2 * third] or latencies), mean(latencies[-third:])
    ranked = sorted(latencies)
    p95 = ranked[int(0.95 * (len(ranked) - 1))]
    return {
        "sustained": p95 <= MAX_P95 and last <= MAX_GROWTH * middle + 0.05,
        "p50 s": median(ranked),
        "p95 s": p95,
        "mean of the middle third s": middle,
        "mean of the last third s": last,
    }


class Load:
    """Makes clips, sends each when it is due and a slot is free, and takes the time of its answer.

    Args:
        send: sends a message to the engine's process, from any thread.
        memory: of the slots, `slot_bytes` for each.
        clips: makes the frames.
    """

    def __init__(
        self, send: Callable[[tuple[Any, ...]], None], memory: Any, slot_bytes: int, clips: Clips
    ) -> None:
        self.free: SimpleQueue[int] = SimpleQueue()
        self.arrivals = Arrivals(time.perf_counter, None)
        self._send, self._clips = send, clips
        self._memory, self._slot_bytes = memory, slot_bytes
        self._made = 0

    def run(
        self, form: str, count: int, streams: float | None = None, give_up: float | None = None
    ) -> dict[str, Any]:
        """Send clips, and return what was measured when all are answered.

        Args:
            form: of the frames, "jpeg" or "pixels".
            count: clips.
            streams: that they come from, evenly; None: all at once.
            give_up: seconds without an answer after which the run is cancelled; None: never.
        """
        clock, cpu = time.perf_counter, time.process_time()
        self.arrivals = arrivals = Arrivals(clock, give_up)
        first, self._made = self._made, self._made + count
        ended = threading.Event()
        makers = ThreadPoolExecutor(max(1, min(6, (os.cpu_count() or 1) // 2)))
        try:
            began = clock() + LEAD
            dues = [
                began + n * (0.0 if streams is None else PERIOD / streams) for n in range(count)
            ]
            coming = deque(
                makers.submit(self._make, first + n, form, due - LEAD, ended)
                for n, due in enumerate(dues)
            )
            if streams is None:
                wait(coming)
                began = clock()
                dues = [began] * count
            for due in dues:
                while not arrivals.too_slow() and clock() < due:
                    time.sleep(min(0.25, max(0.0, due - clock())))
                clip = coming.popleft().result()
                sizes = [len(memoryview(part).cast("B")) for part in clip.parts]
                if not self._hand_over(clip, sizes, form, due):
                    break
        finally:
            ended.set()
            makers.shutdown(cancel_futures=True)
        while not arrivals.all_answered(0.25):
            if arrivals.too_slow():
                self._send(("cancel",))
        return {
            "s": clock() - began,
            **arrivals.result(count),
            "KB a frame": mean(sizes) / 1000,
            "CPU s of the load": time.process_time() - cpu,
        }

    def _make(self, number: int, form: str, earliest: float, ended: threading.Event) -> MadeClip:
        """Make a clip when it is time to, or when the run has `ended`."""
        ended.wait(max(0.0, earliest - time.perf_counter()))
        frames: list[Any] = self._clips.frames(number)
        if form == "jpeg":
            frames = [encode(frame) for frame in frames]
        return MadeClip(number, frames, time.perf_counter())

    def _hand_over(self, clip: MadeClip, sizes: list[int], form: str, due: float) -> bool:
        """Write a clip into the next free slot; return False where no answer is wanted any more."""
        while True:
            if self.arrivals.too_slow():
                self._send(("cancel",))
                return False
            try:
                slot = self.free.get(timeout=0.25)
                break
            except Empty:
                continue
        place = slot * self._slot_bytes
        for part, size in zip(clip.parts, sizes, strict=True):
            self._memory[place : place + size] = memoryview(part).cast("B")
            place += size
        self.arrivals.sent(clip.number, due, clip.made_at, time.perf_counter())
        self._send(("clip", slot, clip.number, form, sizes, self._clips.measures))
        return True


def encode(picture: Picture) -> bytes:
    """Return RGB uint8 [height, width, 3] as a JPEG."""
    bgr = cv2.cvtColor(picture, cv2.COLOR_RGB2BGR)
    return bytes(cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, QUALITY])[1])


def slot_bytes(kind: str, frames: int, side: int) -> int:
    """Return the bytes that the pixels of a clip need; its JPEGs need fewer."""
    width = side * 16 // 9 if kind == "camera" else side
    return frames * side * width * 3


class LoadError(RuntimeError):
    """The load process failed, or ended before its work was done."""


class LoadProcess:
    """The load process, as the engine's process sees it. Its methods may be called in any thread.

    Args:
        kind: of the clips: "new" or "camera".
        frames: of a clip.
        side: height of a frame in pixels.
        slots: clips that the worker has at once.
    """

    def __init__(self, kind: str, frames: int, side: int, slots: int) -> None:
        self.slots, self.slot_bytes = slots, slot_bytes(kind, frames, side)
        size = slots * self.slot_bytes
        # Not in /dev/shm, which a container may limit to 64 MB.
        shared = os.memfd_create("clips")
        here, there = socket.socketpair()
        try:
            os.ftruncate(shared, size)
            self.memory = mmap.mmap(shared, size)
            options = {"kind": kind, "frames": frames, "side": side, "slot_bytes": self.slot_bytes}
            ends = (there.fileno(), shared)
            command = [sys.executable, __file__, *map(str, ends), json.dumps(options)]
            self._process = subprocess.Popen(command, pass_fds=ends)
        finally:
            there.close()
            os.close(shared)
        self._socket = here
        self._connection = Connection(os.dup(here.fileno()))
        self._sending = threading.Lock()

    @property
    def pid(self) -> int:
        """The process's id."""
        return self._process.pid

    def send(self, message: tuple[Any, ...]) -> None:
        """Send a message.

        Raises:
            LoadError: there is no process to read it.
        """
        try:
            with self._sending:
                self._connection.send(message)
        except OSError as error:
            raise LoadError("The load process does not listen any more.") from error

    def receive(self) -> tuple[Any, ...]:
        """Wait for a message.

        Raises:
            LoadError: the process has ended, or `close` was called.
        """
        try:
            message: tuple[Any, ...] = self._connection.recv()
        except (EOFError, OSError) as error:
            raise LoadError("The load process has ended.") from error
        return message

    def close(self) -> None:
        """End the process, and let `receive` return."""
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._socket.close()

    def __enter__(self) -> "LoadProcess":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def main() -> None:
    """Do what the other process says, until it closes its end."""
    connection, shared = Connection(int(sys.argv[1])), int(sys.argv[2])
    options = json.loads(sys.argv[3])
    cv2.setNumThreads(1)
    sending = threading.Lock()

    def send(message: tuple[Any, ...]) -> None:
        with sending, suppress(OSError):  # the end of the other process ends this one too
            connection.send(message)

    clips = KINDS[options["kind"]](options["frames"], options["side"])
    load = Load(send, mmap.mmap(shared, 0), options["slot_bytes"], clips)

    def run(order: dict[str, Any]) -> None:
        try:
            send(("result", load.run(**order)))
        except Exception as error:
            traceback.print_exc()
            send(("failed", repr(error)))

    with suppress(EOFError, OSError):
        while True:
            kind, value = connection.recv()
            if kind == "free":
                load.free.put(value)
            elif kind == "answered":
                load.arrivals.answered(value)
            else:
                threading.Thread(target=run, args=(value,), daemon=True).start()
    os._exit(0)  # makers may be at work


if __name__ == "__main__":
    main()
