"""Keep the pictures of stored frames that were opened last: watches of one stream share them."""

import threading
from collections import OrderedDict
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any

from streamer.domain.frame import FrameRef

if TYPE_CHECKING:
    import numpy as np


class OpenedFrames:
    """Opens each frame once, however many clips show it within a short time.

    Opening its JPEGs is most of what a clip costs a model worker beside the model, and all watches
    of a stream are asked about the same frames at about the same time.

    Args:
        max_bytes: of the pictures that are kept; those used longest ago go first. 0: none.

    Attributes:
        opened, shared: how many pictures were opened, and how many came from those kept.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._lock = threading.Lock()
        self._pictures: OrderedDict[tuple[str, str, int], Future[np.ndarray[Any, Any]]] = (
            OrderedDict()
        )
        self._bytes = 0
        self.opened = 0
        self.shared = 0

    def open(
        self, frame: FrameRef, jpeg: bytes, size: tuple[int, int] | None
    ) -> "np.ndarray[Any, Any]":
        """Return a frame as RGB uint8 [height, width, 3], not to be written to; see `from_jpeg` for
        `size`, which tells how large it has to be. Raises ValueError if the JPEG is damaged."""
        from streamer.frames.jpeg import from_jpeg, reduction

        key = (frame.stream_id, frame.id, reduction(frame.width, frame.height, size))
        with self._lock:
            known = self._pictures.get(key)
            if known is not None:
                self._pictures.move_to_end(key)
                self.shared += 1
            else:
                mine = self._pictures[key] = Future()
                self.opened += 1
        if known is not None:
            return known.result()  # another slot may be opening it
        try:
            picture = from_jpeg(jpeg, frame.width, frame.height, size)
        except BaseException as error:
            with self._lock:
                self._pictures.pop(key, None)
            mine.set_exception(error)
            raise
        mine.set_result(picture)
        with self._lock:
            self._bytes += picture.nbytes
            self._shrink()
        return picture

    def _shrink(self) -> None:
        gone = []
        for key, picture in self._pictures.items():
            if self._bytes <= self._max_bytes:
                break
            if picture.done():  # else its slot will count it
                gone.append(key)
                self._bytes -= picture.result().nbytes
        for key in gone:
            del self._pictures[key]
