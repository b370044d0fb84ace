"""Tell which parts of an installation are missing, and since when."""

import json
import threading
import time
from collections.abc import Callable
from datetime import datetime
from typing import TYPE_CHECKING, Any, cast

import redis
import structlog

from streamer import redis_keys
from streamer.clock import Clock, SystemClock
from streamer.domain.part import Part, PartName, PartState
from streamer.domain.timestamp import rfc3339, to_datetime
from streamer.errors import StreamerError
from streamer.queues.jobs import Jobs
from streamer.redis_client.connections import Connections

if TYPE_CHECKING:
    from streamer.timeline.results import Timeline

_LACKS: dict[str, str] = {
    "redis": "Redis does not answer, so nothing works: check that it runs",
    "frames redis": "The Redis server of the frames does not answer, so no pictures are stored and "
    "no question is answered: check that it runs",
    "database": "The timeline's database does not answer, so results are not recorded: check it",
    "ingest worker": "No ingest worker is running, so no stream is read: start `streamer ingest`",
    "model worker": "No model worker is running, so no question is answered: start "
    "`streamer worker`",
    "recorder": "No recorder is running, so new results are missing from the timeline: start "
    "`streamer record`",
}

_LOADING = (
    "The model worker is loading its model, so no question is answered yet: wait until it is ready"
)

_NO_DEFAULT = (
    "No model worker answers what names no model: start one of the setting default_model, or name "
    "a model that is served"
)

_log = structlog.get_logger(__name__)

_FIRST_LOOK = 1.0
"""Seconds that a list waits for the first look at the parts."""


class InstallationHealth:
    """The parts of an installation, looked up on each call.

    Args:
        open_timeline: returns the timeline, or raises StreamerError(DATABASE_UNAVAILABLE).
    """

    def __init__(
        self,
        connections: Connections,
        jobs: Jobs,
        open_timeline: "Callable[[], Timeline]",
        clock: Clock | None = None,
    ) -> None:
        self._connections = connections
        self._jobs = jobs
        self._open_timeline = open_timeline
        self._clock = clock or SystemClock()
        self._redis_seen: datetime | None = None

    def parts(self, *, ask_database: bool = True) -> list[Part]:
        """Return all parts. If Redis does not answer, only that: it knows of the others.

        Without `ask_database`, what the recorder said about the database counts: this program may
        have no access to it.
        """
        try:
            return self._parts(ask_database)
        except redis.exceptions.RedisError:
            return [_part("redis", False, self._redis_seen, _LACKS["redis"])]

    def missing(self) -> list[Part]:
        """Return the parts that do not work; see :meth:`parts` without `ask_database`."""
        return [part for part in self.parts(ask_database=False) if not part.up]

    def _parts(self, ask_database: bool) -> list[Part]:
        main = self._connections.main
        workers = self._jobs.workers()
        model_lack = self._model_lack()
        beat = self._recorder_beat()
        trouble = beat.get("trouble") if beat is not None else None
        found: dict[PartName, bool] = {
            "redis": True,
            "frames redis": self._frames_answer(),
            "database": trouble is None and (not ask_database or self._database_answers()),
            "ingest worker": workers["ingest"] > 0,
            "model worker": model_lack is None,
            "recorder": beat is not None,
        }
        now = self._clock.time()
        self._redis_seen = to_datetime(now)
        unknown = () if ask_database or beat is not None else ("database",)
        working: list[PartName] = [n for n, up in found.items() if up and n not in unknown]
        seen = note_seen(main, working, now)
        lacks = _LACKS | {"model worker": model_lack or ""}
        return [
            _part(
                name,
                up,
                to_datetime(seen[name]) if name in seen else None,
                lacks[name],
            )
            for name, up in found.items()
        ]

    def _model_lack(self) -> str | None:
        """Return why some request is not answered, with advice; None if nothing is missing."""
        models = self._jobs.served
        running = models.workers()
        default = [worker for worker in running if worker.default]
        if not default and self._jobs.model_loading():
            return _LOADING
        if not default:
            return _NO_DEFAULT if running else _LACKS["model worker"]
        trouble = next((worker.trouble for worker in default if worker.trouble), None)
        if trouble is not None and all(worker.trouble for worker in default):
            return trouble.rstrip(".")
        for model, waiting in models.unserved(running).items():
            return (
                f"No model worker serves the model {model}, for which requests wait ({waiting}): "
                "start `streamer worker` with it"
            )
        return None

    def unreadable_results(self) -> int:
        """Return how many results the recorder has left in the queue, because it cannot read or
        store them."""
        count = (self._recorder_beat() or {}).get("unreadable")
        return count if isinstance(count, int) else 0

    def _recorder_beat(self) -> dict[str, Any] | None:
        raw = cast(bytes | None, self._connections.main.get(redis_keys.RECORDER))
        if raw is None:
            return None
        beat = json.loads(raw)
        return beat if isinstance(beat, dict) else {}

    def _frames_answer(self) -> bool:
        if self._connections.frames is self._connections.main:
            return True
        return answers(self._connections.frames)

    def _database_answers(self) -> bool:
        try:
            self._open_timeline().ping()
        except StreamerError:
            return False
        return True


def answers(client: redis.Redis) -> bool:
    """Return whether the server answers a ping."""
    try:
        return bool(client.ping())
    except redis.exceptions.RedisError:
        return False


def note_seen(client: redis.Redis, names: list[PartName], now: float) -> dict[str, float]:
    """Note that parts work at `now`; return when each part last did, epoch seconds."""
    key = redis_keys.LAST_SEEN
    noted = cast("dict[bytes, bytes]", client.hgetall(key))
    seen = {name.decode(): float(value) for name, value in noted.items()}
    seen |= dict.fromkeys(names, now)
    try:
        if names:
            client.hset(key, mapping=dict.fromkeys(names, now))
    except redis.exceptions.ResponseError:
        pass  # a server that may not be written to can still be read
    return seen


def _part(name: PartName, up: bool, seen: datetime | None, lack: str) -> Part:
    if up:
        return Part(name=name, up=True, state="up", last_seen_at=seen)
    state: PartState = "loading" if lack == _LOADING else "impaired"
    since = f" (last seen {rfc3339(seen)})" if seen is not None else " (never seen)"
    sentence, _, advice = lack.partition(": ")
    return Part(
        name=name,
        up=False,
        state="missing" if lack == _LACKS[name] else state,
        last_seen_at=seen,
        message=f"{sentence}{since}: {advice}.",
    )


class CachedHealth:
    """The health of an installation, looked up at most once a second: its callers are many.

    One caller looks it up, which takes seconds if a server is frozen; the others do not wait for
    it if anything is known yet.
    """

    def __init__(self, health: InstallationHealth) -> None:
        self._health = health
        self._parts: list[Part] = []
        self._read_at = float("-inf")
        self._reading = threading.Lock()
        self._starting = threading.Lock()
        self._thread: threading.Thread | None = None

    def missing(self) -> list[Part]:
        """Return the parts that do not work, as far as it is known: they are looked up in the
        background, and only waited for, `_FIRST_LOOK` seconds, when nothing is known yet."""
        with self._starting:
            thread = self._thread
            idle = thread is None or not thread.is_alive()
            if idle and time.monotonic() - self._read_at > 1.0:
                thread = threading.Thread(target=self._look, name="health", daemon=True)
                thread.start()
                self._thread = thread
        if not self._parts and thread is not None:
            thread.join(_FIRST_LOOK)
        return [part for part in self._parts if not part.up]

    def _look(self) -> None:
        try:
            self.parts()
        except Exception as error:  # the connections may be closed by now
            _log.warning("health_unknown", reason=f"{type(error).__name__}: {error}")

    def parts(self) -> list[Part]:
        """Return all parts."""
        if time.monotonic() - self._read_at > 1.0 and self._reading.acquire(not self._parts):
            try:
                if time.monotonic() - self._read_at > 1.0:
                    self._parts = self._health.parts()
                    self._read_at = time.monotonic()
            finally:
                self._reading.release()
        return self._parts
