"""The API keys as one API process knows them: read from Redis at most once a second."""

import threading
import time

import redis
import structlog
from starlette.concurrency import run_in_threadpool

from streamer.api_keys import ApiKey, ApiKeys, digest_of
from streamer.clock import Clock

_MAX_AGE = 1.0
"""Seconds after which the keys are read again, so that a revoked key ends."""

_NOTE_INTERVAL = 60.0
"""Seconds between two notes of when a key was last used."""

_log = structlog.get_logger(__name__)


class Keyring:
    """The keys of an installation. Those that were read last count while Redis is away."""

    def __init__(self, keys: ApiKeys, clock: Clock) -> None:
        self.keys = keys
        self._clock = clock
        self._known: dict[str, ApiKey] | None = None
        self._read_at = float("-inf")
        self._reading = threading.Lock()
        self._used: dict[str, float] = {}
        self._noted: dict[str, float] = {}

    async def known(self) -> dict[str, ApiKey]:
        """Return all keys by digest. Raises redis.RedisError if they were never read."""
        if self._known is None or time.monotonic() - self._read_at > _MAX_AGE:
            await run_in_threadpool(self.read)
        return self._known or {}

    def read(self) -> None:
        """Read the keys, unless another thread does while some are known."""
        if not self._reading.acquire(self._known is None):
            return
        try:
            self._known = self.keys.by_digest()
            self.note_used()
        except redis.RedisError as error:
            if self._known is None:
                raise
            _log.debug("api_keys_kept", reason=str(error))
        finally:
            self._read_at = time.monotonic()
            self._reading.release()

    def note_used(self) -> None:
        """Store when keys were last used, of each at most once in `_NOTE_INTERVAL`."""
        due = {
            name: moment
            for name, moment in self._used.copy().items()
            if moment - self._noted.get(name, float("-inf")) > _NOTE_INTERVAL
        }
        if due:
            self.keys.note_used(due)
            self._noted |= due

    async def find(self, secret: str) -> ApiKey | None:
        """Return the key that `secret` is, None for a wrong one."""
        digest = digest_of(secret)
        key = self.keys.configured.get(digest) or (await self.known()).get(digest)
        return self._use(key)

    async def find_session(self, token: str) -> ApiKey | None:
        """Return the key with which a session was begun; None if either has ended."""
        digest = await run_in_threadpool(self.keys.session_key, token)
        return self._use((await self.known()).get(digest)) if digest is not None else None

    async def open_session(self, key: ApiKey) -> str:
        """Begin a session with a key; return its token."""
        return await run_in_threadpool(self.keys.open_session, key)

    async def close_session(self, token: str) -> None:
        """End a session."""
        await run_in_threadpool(self.keys.close_session, token)

    def _use(self, key: ApiKey | None) -> ApiKey | None:
        if key is not None:
            self._used[key.name] = self._clock.time()
        return key
