"""How long to wait before a lost stream is tried again."""

import random
from collections.abc import Callable

from streamer.errors import ErrorCode

BASE = 1.0
"""Upper bound of the first wait, seconds."""

GOOD_AFTER = 60.0
"""Seconds of frames after which a stream counts as good: the next loss starts from BASE again."""

PATIENT = frozenset(
    {
        ErrorCode.STREAM_AUTH_FAILED,
        ErrorCode.STREAM_NOT_FOUND,
        ErrorCode.STREAM_NO_VIDEO,
        ErrorCode.STREAM_CODEC_UNSUPPORTED,
        ErrorCode.STREAM_URL_FORBIDDEN,
        ErrorCode.SECRET_UNREADABLE,
    }
)
"""What only a person can put right: tried again at the cap. Cameras lock out eager guessers."""


class Backoff:
    """Exponential back-off with full jitter: the wait is uniform between 0 and a bound that
    doubles up to `cap` seconds, so that a hundred cameras behind one switch do not return at once.

    >>> Backoff(60, draw=max).delay(ErrorCode.STREAM_TIMEOUT)
    1.0
    """

    def __init__(
        self, cap: float, *, draw: Callable[[float, float], float] = random.uniform
    ) -> None:
        self._cap = cap
        self._draw = draw
        self._bound = BASE

    def delay(self, code: ErrorCode) -> float:
        """Seconds to wait after a failure with `code`."""
        if code in PATIENT:
            return self._cap
        bound = min(self._bound, self._cap)
        self._bound = min(self._bound * 2, self._cap)
        return self._draw(0.0, bound)

    def ran(self, seconds: float) -> None:
        """The stream gave frames for `seconds` before it was lost."""
        if seconds >= GOOD_AFTER:
            self.restart()

    def restart(self) -> None:
        """What failed before says nothing any more: the URL is another one."""
        self._bound = BASE
