"""Follow what the registry says about a stream that is being run: attached, edited, paused."""

import math

import redis
import structlog

from streamer.clock import Clock
from streamer.domain.stream import StreamSpec
from streamer.errors import StreamerError
from workers.registry_batch import RegistryBatch

_log = structlog.get_logger(__name__)

_INTERVAL = 0.25
"""Seconds between two look-ups."""


class SpecFollower:
    """Follows the :class:`StreamSpec` of one stream: call `look` whenever it is `due`.

    A worker that has not reached the registry for `lease` seconds may have been given up, and its
    streams taken over: `lost` says that it must let go of them.

    Attributes:
        registry: the attached streams.
        spec: the stream as it was last found.
        detached: whether it was found no more.
    """

    def __init__(
        self, registry: RegistryBatch, spec: StreamSpec, *, lease: float, clock: Clock
    ) -> None:
        self.registry = registry
        self._lease = lease
        self._clock = clock
        self._looked_at = -math.inf
        self._answered_at = clock.monotonic()
        self.spec = spec
        self.detached = False
        self._unreadable = ""

    @property
    def due(self) -> bool:
        """Whether it is time to look again."""
        return self._clock.monotonic() - self._looked_at >= _INTERVAL

    @property
    def lost(self) -> bool:
        """Whether another worker may run the stream by now."""
        return self._clock.monotonic() - self._answered_at > self._lease

    def look(self, *, fresh: bool = False) -> bool:
        """Look up the spec, if the registry answers. Return whether it has changed. It may be a
        second old, unless it is to be `fresh`."""
        self._looked_at = self._clock.monotonic()
        try:
            spec = self.registry.find(self.spec.id, fresh=fresh)
        except redis.exceptions.RedisError:
            return False
        except StreamerError as error:  # a newer release edited it: go on as before
            self._answered_at = self._clock.monotonic()
            if str(error) != self._unreadable:
                _log.warning("edit_unreadable", stream=self.spec.name, reason=error.message)
            self._unreadable = str(error)
            return False
        self._answered_at = self._clock.monotonic()
        self.detached = spec is None
        if spec is None or spec is self.spec or spec == self.spec:
            return False
        self.spec = spec
        return True
