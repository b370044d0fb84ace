"""What the registry says about a stream that is being run: still attached, edited, paused?"""

import math

import redis

from streamer.clock import Clock
from streamer.domain import StreamSpec
from streamer.streams import StreamRegistry

_LOOK = 0.5
"""Seconds between two looks."""


class Attachment:
    """Follows the :class:`StreamSpec` of one stream; `look` whenever `due`.

    A worker that has not reached the registry for `lease` seconds may have been given up, and its
    streams taken over: then `lost` says that this one must let go of it too.
    """

    def __init__(
        self, registry: StreamRegistry, spec: StreamSpec, *, lease: float, clock: Clock
    ) -> None:
        self._registry = registry
        self._lease = lease
        self._clock = clock
        self._looked_at = -math.inf
        self._heard_at = clock.monotonic()
        self.spec = spec
        self.detached = False

    @property
    def due(self) -> bool:
        """Whether it is time to look again."""
        return self._clock.monotonic() - self._looked_at >= _LOOK

    @property
    def lost(self) -> bool:
        """Whether another worker may run the stream by now."""
        return self._clock.monotonic() - self._heard_at > self._lease

    def look(self) -> bool:
        """Ask the registry, if it answers; True when the spec has changed."""
        self._looked_at = self._clock.monotonic()
        try:
            spec = self._registry.find(self.spec.id)
        except redis.exceptions.RedisError:
            return False
        self._heard_at = self._clock.monotonic()
        self.detached = spec is None
        if spec is None or spec == self.spec:
            return False
        self.spec = spec
        return True
