"""What a model worker does with clips: take one, plan it, open its frames, submit, hand back.

As in a worker, each slot is a thread that has one clip at a time; what waits for a slot waits
outside, in the load process.
"""

import threading
import time
from queue import SimpleQueue
from statistics import median
from typing import Any

import cv2
import numpy as np
from load import LoadError, LoadProcess
from numpy.typing import NDArray

from nvila_core import Engine, SamplingParams, Video
from nvila_core.resolution.policy import Measures, Plan

QUESTION = "What now?"
"""Short, because the tokenizer of a random checkpoint makes a token of each byte."""

CHECK_SECONDS = 0.25
"""How often a slot looks whether its answer is still wanted, as in a worker."""

REDUCED = {
    8: cv2.IMREAD_REDUCED_COLOR_8,
    4: cv2.IMREAD_REDUCED_COLOR_4,
    2: cv2.IMREAD_REDUCED_COLOR_2,
}
"""OpenCV's decoding flag for each factor by which its JPEG decoder can reduce a picture."""


class Slots:
    """Answers the clips of a load process with an engine.

    Args:
        engine: answers.
        load: sends the clips; it is closed with the slots.
        params: of each request.
        policy: of resolution, see `NVILA.plan`.
    """

    def __init__(
        self, engine: Engine, load: LoadProcess, params: SamplingParams, policy: str
    ) -> None:
        self._engine, self._load, self._params, self._policy = engine, load, params, policy
        self._cancelled, self._closed = threading.Event(), threading.Event()
        self._results: SimpleQueue[dict[str, Any] | Exception] = SimpleQueue()
        self._clips: list[SimpleQueue[Any]] = [SimpleQueue() for _ in range(load.slots)]
        self._opening: list[float] = []
        self._threads = [
            threading.Thread(target=self._serve, args=(slot,), name=f"slot-{slot}", daemon=True)
            for slot in range(load.slots)
        ]
        self._threads.append(threading.Thread(target=self._receive, daemon=True))
        for thread in self._threads:
            thread.start()

    def run(self, **order: Any) -> dict[str, Any]:
        """Let the load send clips as `Load.run` says, and return what it and the slots measured.

        Raises:
            LoadError: the load process has ended.
            Exception: what a slot met; the slots cannot be used any more.
        """
        self._cancelled.clear()
        self._opening.clear()
        began = time.process_time()
        self._load.send(("run", order))
        found = self._results.get()
        if isinstance(found, Exception):
            raise found
        return {
            **found,
            "CPU s of the engine's process": time.process_time() - began,
            "opening and preparing, ms a clip": 1000 * median(self._opening or [0.0]),
        }

    def close(self) -> None:
        """End the load process and the threads; what is running is cancelled."""
        self._closed.set()
        self._load.close()
        for clips in self._clips:
            clips.put(None)
        for thread in self._threads:
            thread.join()

    def __enter__(self) -> "Slots":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _receive(self) -> None:
        while True:
            try:
                kind, *values = self._load.receive()
            except LoadError as error:
                self._results.put(error)
                return
            if kind == "clip":
                slot, *clip = values
                self._clips[slot].put(clip)
            elif kind == "cancel":
                self._cancelled.set()
            else:
                result = values[0]
                self._results.put(result if kind == "result" else LoadError(result))

    def _serve(self, slot: int) -> None:
        try:
            while True:
                self._load.send(("free", slot))
                clip = self._clips[slot].get()
                if clip is None:
                    return
                number, *rest = clip
                self._answer(slot, *rest)
                self._load.send(("answered", number))
        except Exception as error:
            self._results.put(error)

    def _answer(self, slot: int, form: str, sizes: list[int], measures: list[Measures]) -> None:
        """Answer a clip, or cancel it when its answer is not wanted any more."""
        began = time.perf_counter()
        plan = self._engine.model.plan(measures, self._policy)
        frames = self._open(slot, form, sizes, measures, plan)
        parts = [Video(frames, sampled=True), QUESTION]
        handle = self._engine.submit(parts, self._params, plan=plan)
        self._opening.append(time.perf_counter() - began)
        del frames, parts
        while not self._closed.is_set():
            ended = handle.done
            try:
                handle.result(CHECK_SECONDS)
                return
            except TimeoutError:
                if ended:  # an error of the model's own
                    raise
            if self._cancelled.is_set():
                handle.cancel()
        handle.cancel()

    def _open(
        self, slot: int, form: str, sizes: list[int], measures: list[Measures], plan: Plan
    ) -> list[NDArray[np.uint8]]:
        """Return the frames of the clip in a slot, RGB uint8 [height, width, 3]."""
        place, frames = slot * self._load.slot_bytes, []
        side = self._engine.model.config.processor.size
        for size, measured, frame in zip(sizes, measures, plan.frames, strict=True):
            data = np.frombuffer(self._load.memory, np.uint8, size, place)
            place += size
            if form == "jpeg":
                enough = (side * frame.grid[0], side * frame.grid[1])
                frames.append(open_jpeg(data, (measured.width, measured.height), enough))
            else:
                frames.append(data.reshape(measured.height, measured.width, 3).copy())
        return frames


def open_jpeg(
    jpeg: NDArray[np.uint8], size: tuple[int, int], enough: tuple[int, int]
) -> NDArray[np.uint8]:
    """Open a JPEG of a width and height as RGB, no larger than needed.

    It is what a worker does (`streamer/frames/jpeg.py`), with the decoder that the machine has.
    """
    fits = (n for n in REDUCED if size[0] // n >= enough[0] and size[1] // n >= enough[1])
    how = REDUCED.get(next(fits, 1), cv2.IMREAD_COLOR)
    picture: Any = cv2.imdecode(jpeg, how)
    if picture is None:
        raise ValueError("a frame of the load is no JPEG")
    return np.asarray(cv2.cvtColor(picture, cv2.COLOR_BGR2RGB))
