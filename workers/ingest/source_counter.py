"""Counts what comes from a source, and how fast."""

from collections import deque

import redis

from streamer.clock import Clock
from streamer.connections import is_full
from streamer.domain import StreamCounters
from streamer.media.source import Source

_RATE_WINDOW = 10.0
"""Seconds that measured rates are an average of."""

_MIN_RATE_WINDOW = 2.0
"""Seconds below which a rate would say more about when it was asked for than about the stream."""


class RateMeter:
    """Frames and bits per second of a live stream, over the last ten seconds."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._seen: deque[tuple[float, int, int]] = deque()

    def restart(self) -> None:
        """A new connection: what came before says nothing about it."""
        self._seen.clear()

    def measure(self, packets: int, received: int) -> tuple[float, float] | None:
        """Frames and bits per second, from totals of packets and bytes; None: too early to say."""
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
    """Adds what one :class:`Source` after the other tells of itself to a stream's counters.

    Without a `meter`, as for a recording, which comes as fast as it is read, the rates are those of
    the recording itself, told when it has been read.
    """

    def __init__(self, counters: StreamCounters, meter: RateMeter | None = None) -> None:
        self._counters = counters
        self._meter = meter
        self._source: Source | None = None
        self._before = counters.model_copy(deep=True)

    def follow(self, source: Source) -> None:
        """Count `source` from here on, on top of those before it."""
        self._source = source
        self._before = self._counters.model_copy(deep=True)
        if self._meter is not None:
            self._meter.restart()

    def update(self) -> None:
        """Bring the counters up to date."""
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

    def lost(self, error: redis.exceptions.RedisError) -> None:
        """A frame could not be stored, because of `error`."""
        dropped = self._counters.dropped
        if is_full(error):
            dropped.redis_full += 1
        else:
            dropped.redis_away += 1

    def close(self) -> None:
        """The source has ended."""
        self.update()
        self._source = None
        counters = self._counters
        if self._meter is not None:
            counters.measured_fps = counters.bit_rate = None
        elif counters.duration:
            counters.measured_fps = counters.packets / counters.duration
            counters.bit_rate = 8 * counters.bytes / counters.duration
