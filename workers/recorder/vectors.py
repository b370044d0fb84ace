"""Make the vectors of search by meaning, in a thread of the recorder."""

import contextlib
import functools
import threading
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import redis
import structlog

from streamer import redis_keys
from streamer.errors import ErrorCode, StreamerError
from streamer.redis_client.connections import Connections
from streamer.redis_client.errors import will_pass
from streamer.redis_client.outage import Outage
from streamer.timeline.database import Database
from streamer.timeline.search_extra import require_search

if TYPE_CHECKING:
    from streamer.timeline.sentences import SentenceEncoder
    from streamer.timeline.vector_store import VectorStore

_BATCH = 32
"""Texts of one step: long ones take some seconds, far less than `_HOLD`."""

_PAUSE = 2.0
"""Seconds between two looks for new results."""

_HOLD = 60.0
"""Seconds after which another recorder goes on if this one is silent."""

_TELL_EVERY = 10_000
"""Older results between two lines of progress in the log."""

_log = structlog.get_logger(__name__)

Encode = Callable[[Sequence[str]], Any]
"""Returns the vectors of texts."""


class VectorMaker:
    """Gives every result its vector: first the new ones, then the older ones, newest first.

    Several recorders may run one each; a lock in Redis lets one of them work at a time.

    Args:
        client: the Redis server of the installation.
        store: the vectors, and the results that have none.
        encode: returns the vectors of texts, [texts, dimensions].
    """

    def __init__(self, client: redis.Redis, store: "VectorStore", encode: Encode) -> None:
        self._store = store
        self._encode = encode
        self._turn = client.lock(redis_keys.VECTORS, timeout=_HOLD, thread_local=False)
        self._made = 0
        self._caught_up = False

    def step(self) -> bool:
        """Make the vectors of one batch; return whether there may be more to do at once.

        Raises StreamerError(DATABASE_UNAVAILABLE), redis.exceptions.RedisError.
        """
        if not self._has_turn():
            return False
        found = self._store.new(_BATCH)
        if not found:
            older = self._store.old(_BATCH)
            if older is None:
                self._tell_end()
                return False
            found = older
            self._made += len(found)
            if found and self._made % _TELL_EVERY < len(found):
                _log.info("vectors_of_older_results", made=self._made, at=found[-1][0])
        if found:
            self._store.add([number for number, _ in found], self._encode([t for _, t in found]))
        return True

    def give_up_turn(self) -> None:
        """Let another recorder go on at once. Raises redis.exceptions.RedisError."""
        if self._turn.owned():
            self._turn.release()

    def _has_turn(self) -> bool:
        with contextlib.suppress(redis.exceptions.LockError):  # it ended meanwhile
            if self._turn.owned():
                self._turn.reacquire()
                return True
        return bool(self._turn.acquire(blocking=False))

    def _tell_end(self) -> None:
        if self._made and not self._caught_up:
            _log.info("vectors_complete", made=self._made)
        self._caught_up = True


class VectorThread(threading.Thread):
    """Runs a VectorMaker beside the recorder. It never delays it: it rests as long as it works.

    Without the extra `search` it ends at once.

    Args:
        make: builds the VectorMaker; raises StreamerError(SEARCH_UNAVAILABLE) without the extra.
        stopping: set when the thread is to end.
        outage: what Redis refuses at the moment.
    """

    def __init__(
        self, make: Callable[[], VectorMaker], stopping: threading.Event, outage: Outage
    ) -> None:
        super().__init__(name="vectors", daemon=True)
        self._make = make
        self._stopping = stopping
        self._outage = outage
        self._database = Outage("timeline")

    def run(self) -> None:
        """Make vectors until `stopping` is set."""
        try:
            maker = self._make()
        except StreamerError as error:
            if error.code is not ErrorCode.SEARCH_UNAVAILABLE:
                raise
            _log.debug("no_search_by_meaning", reason=error.message)
            return
        pauses = self._outage.pauses()
        while not self._stopping.is_set():
            began = time.monotonic()
            try:
                more = maker.step()
            except StreamerError as error:
                self._database.failed("vectors", error)
            except redis.exceptions.RedisError as error:
                if not will_pass(error):
                    _log.error("redis_refuses", step="vectors", reason=str(error))
                self._outage.failed("vectors", error)
            else:
                self._outage.worked("vectors")
                self._database.worked("vectors")
                pauses = self._outage.pauses()
                self._stopping.wait(time.monotonic() - began if more else _PAUSE)
                continue
            self._stopping.wait(next(pauses))
        try:
            maker.give_up_turn()
        except redis.exceptions.RedisError as error:
            _log.debug("turn_not_given_up", reason=str(error))


def vector_thread(
    connections: Connections, database: Database, stopping: threading.Event
) -> VectorThread:
    """Return a thread that makes the vectors of the results in `database`."""

    def make() -> VectorMaker:
        require_search()
        from streamer.timeline.vector_store import VectorStore

        @functools.cache
        def encoder() -> "SentenceEncoder":  # 100 MB, and not before there is a result
            from streamer.timeline.sentences import SentenceEncoder

            return SentenceEncoder()

        return VectorMaker(
            connections.main, VectorStore(database), lambda texts: encoder().encode(texts)
        )

    return VectorThread(make, stopping, connections.outage)
