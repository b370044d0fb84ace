"""Decide how long to wait before a lost stream is tried again."""

import random
from collections.abc import Callable

from streamer.errors import ErrorCode

FIRST_BOUND = 1.0
"""Upper bound of the first wait, seconds."""

HEALTHY_AFTER = 60.0
"""Seconds of frames after which a stream counts as healthy: back-off starts from FIRST_BOUND."""

NEEDS_A_PERSON = frozenset(
    {
        ErrorCode.STREAM_AUTH_FAILED,
        ErrorCode.STREAM_NOT_FOUND,
        ErrorCode.STREAM_NO_VIDEO,
        ErrorCode.STREAM_CODEC_UNSUPPORTED,
        ErrorCode.STREAM_URL_FORBIDDEN,
        ErrorCode.SECRET_UNREADABLE,
    }
)
"""Failures that only a person can correct: tried again at the cap, because cameras lock out clients
that guess eagerly."""


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
        self._bound = FIRST_BOUND

    def delay(self, code: ErrorCode) -> float:
        """Return the seconds to wait after a failure with `code`."""
        if code in NEEDS_A_PERSON:
            return self._cap
        bound = min(self._bound, self._cap)
        self._bound = min(self._bound * 2, self._cap)
        return self._draw(0.0, bound)

    def note_uptime(self, seconds: float) -> None:
        """Note that the stream delivered frames for `seconds` before it was lost."""
        if seconds >= HEALTHY_AFTER:
            self.reset()

    def reset(self) -> None:
        """Forget earlier failures, for example because the URL has changed."""
        self._bound = FIRST_BOUND
