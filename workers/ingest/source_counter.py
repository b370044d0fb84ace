"""Count what a stream's sources deliver, and measure how fast."""

import threading
from collections import deque

import redis

from streamer.clock import Clock
from streamer.domain.stream import StreamCounters
from streamer.media.source import Source
from streamer.redis_client.errors import is_full

_RATE_WINDOW = 10.0
"""Seconds over which rates are averaged."""

_MIN_RATE_WINDOW = 2.0
"""Seconds that a rate is averaged over at least: below, it says little about the stream."""


class RateMeter:
    """Measures the frames and bits per second of a live stream over the last ten seconds."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._seen: deque[tuple[float, int, int]] = deque()

    def restart(self) -> None:
        """Start over, for a new connection."""
        self._seen.clear()

    def measure(self, packets: int, received: int) -> tuple[float, float] | None:
        """Return frames and bits per second, given the packets and bytes so far; None while the
        time since `restart` is too short to average."""
        now = self._clock.monotonic()
        self._seen.append((now, packets, received))
        while len(self._seen) > 1 and now - self._seen[1][0] >= _RATE_WINDOW:
            self._seen.popleft()
        then, packets_then, received_then = self._seen[0]
        passed = now - then
        if passed < _MIN_RATE_WINDOW:
            return None
        return (packets - packets_then) / passed, 8 * (received - received_then) / passed


class SourceCounter:
    """Adds the counts of one :class:`Source` after the other to a stream's counters.

    Args:
        counters: the stream's counters, updated in place.
        meter: measures the rates of a live stream. Without one, as for a recording, which is read
            as fast as possible, the rates are those of the recording itself, set at its end.
    """

    def __init__(self, counters: StreamCounters, meter: RateMeter | None = None) -> None:
        self._counters = counters
        self._meter = meter
        self._source: Source | None = None
        self._before = counters.model_copy(deep=True)
        self._losing = threading.Lock()

    def follow(self, source: Source) -> None:
        """Count `source` from now on, in addition to the sources before it."""
        self._source = source
        self._before = self._counters.model_copy(deep=True)
        if self._meter is not None:
            self._meter.restart()

    def update(self) -> None:
        """Update the counters."""
        source, counters, before = self._source, self._counters, self._before
        if source is None:
            return
        counters.codec = source.codec
        counters.packets = before.packets + source.packets
        counters.bytes = before.bytes + source.bytes
        counters.decoded = before.decoded + source.decoded
        counters.dropped.late = before.dropped.late + source.dropped
        counters.dropped.decode_error = before.dropped.decode_error + source.corrupt
        if self._meter is not None:
            measured = self._meter.measure(source.packets, source.bytes)
            counters.measured_fps, counters.bit_rate = measured or (None, None)

    def lost(self, error: redis.exceptions.RedisError | None = None, frames: int = 1) -> None:
        """Count frames that could not be stored because of `error`, or because Redis is silent.

        Thread-safe: both the thread that decodes a camera and the one that stores its frames lose
        some.
        """
        dropped = self._counters.dropped
        with self._losing:
            if error is not None and is_full(error):
                dropped.redis_full += frames
            else:
                dropped.redis_away += frames

    def close(self) -> None:
        """Count the source for the last time: it has ended."""
        self.update()
        self._source = None
        counters = self._counters
        if self._meter is not None:
            counters.measured_fps = counters.bit_rate = None
        elif counters.duration:
            counters.measured_fps = counters.packets / counters.duration
            counters.bit_rate = 8 * counters.bytes / counters.duration
