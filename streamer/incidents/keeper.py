"""Look after incidents: end those that no window will end, ask for summaries, forget old ones."""

from datetime import datetime, timedelta

import redis
import structlog

from streamer.clock import Clock
from streamer.domain.frame import FrameRef
from streamer.domain.kinds import RequestKind
from streamer.domain.request import ClipRequest
from streamer.domain.result import Result
from streamer.domain.stream import Stream, StreamState
from streamer.domain.timestamp import utc_now
from streamer.errors import ErrorCode, StreamerError
from streamer.frames.selection import select_frames
from streamer.frames.store import FrameStore
from streamer.incidents.machine import shows
from streamer.incidents.records import Incident, IncidentState, ResolveReason
from streamer.incidents.store import (
    INCIDENT_KEY,
    Incidents,
    KeptPicture,
    is_observation,
    seen_window,
)
from streamer.queues.jobs import Jobs
from streamer.settings import Settings
from streamer.sources.streams import StreamRegistry

INTERVAL = 5.0
"""Seconds between two looks at the incidents that are open."""

_FORGET_EVERY = 3600.0

_SUMMARY_WITHIN = timedelta(minutes=10)
"""How long a summary is asked for; afterwards the frames would show something else."""

_log = structlog.get_logger(__name__)


class Keeper:
    """Looks after the incidents of an installation. Any number of recorders may have one."""

    def __init__(
        self,
        incidents: Incidents,
        registry: StreamRegistry,
        jobs: Jobs,
        frames: FrameStore,
        settings: Settings,
        clock: Clock,
    ) -> None:
        self._incidents = incidents
        self._registry = registry
        self._jobs = jobs
        self._frames = frames
        self._settings = settings
        self._clock = clock
        self._next_look = self._next_forget = float("-inf")
        self._versions: dict[str, int] = {}  # of the last look

    def step(self) -> None:
        """Do what is due. Raises StreamerError(DATABASE_UNAVAILABLE) and RedisError."""
        now = self._clock.monotonic()
        self.describe()
        if now >= self._next_look:
            self._next_look = now + INTERVAL
            self.look_after()
        if now >= self._next_forget:
            self._next_forget = now + _FORGET_EVERY
            kept = timedelta(days=self._settings.incident_days)
            self._incidents.expire(utc_now() - kept)

    def look_after(self) -> None:
        """End the incidents whose watch or stream is gone; note the silences that begin and end."""
        active = self._incidents.active()
        if not active:
            return
        streams = {stream.id: stream for stream in self._registry.list()}
        for incident in active:
            stream = streams.get(incident.stream_id)
            reason = self._ended(incident, stream)
            if reason is not None:
                # The time of a recording is that of its windows.
                recorded = stream is not None and not stream.live
                at = incident.last_known_at if recorded else None
                self._incidents.resolve(incident.id, reason, at)
            elif incident.state is IncidentState.OPEN:
                self._incidents.silence_again(incident.id)
        self._versions = {incident.id: incident.version for incident in active}

    def _ended(self, incident: Incident, stream: Stream | None) -> ResolveReason | None:
        """Return why an incident is over although no window says so; None if it is not."""
        if stream is not None and stream.state is StreamState.UNREADABLE:
            return None
        if stream is None or all(watch.id != incident.watch_id for watch in stream.watches):
            return ResolveReason.WATCH_REMOVED
        if not stream.live:
            over = stream.state in (StreamState.ENDED, StreamState.FAILED)
            counted = self._versions.get(incident.id) == incident.version
            done = over and counted and not self._jobs.in_flight(stream.id)
            return ResolveReason.STREAM_LOST if done else None
        unknown = (utc_now() - incident.last_known_at).total_seconds()
        return ResolveReason.STREAM_LOST if unknown > self._settings.incident_lost_after else None

    def describe(self) -> None:
        """Ask the model for the summaries that are wanted."""
        for incident, prompt in self._incidents.to_describe():
            raised_at = incident.raised_at or incident.opened_at
            try:
                frames = self._frames.between(
                    incident.stream_id,
                    incident.opened_at.timestamp(),
                    raised_at.timestamp() + 0.001,
                )
                frames = self._frames.present(frames)
                if frames:
                    self._ask(incident, prompt, raised_at, frames)
            except redis.exceptions.OutOfMemoryError:
                busy = True
            except StreamerError as error:
                if error.code is ErrorCode.DATABASE_UNAVAILABLE:
                    raise
                busy = error.code is ErrorCode.TOO_MANY_QUERIES
            else:
                busy = False
            if not busy or utc_now() - raised_at > _SUMMARY_WITHIN:
                self._incidents.described(incident.id)

    def _ask(
        self, incident: Incident, prompt: str, until: datetime, frames: list[FrameRef]
    ) -> None:
        chosen = select_frames(frames, self._settings.max_frames)
        self._jobs.submit(
            ClipRequest(
                # A recorder that was killed before it could note this asks the same again.
                id=f"req_{incident.id.removeprefix('inc_')}",
                kind=RequestKind.QUERY,
                stream_id=incident.stream_id,
                stream_name=incident.stream_name,
                start=incident.opened_at,
                end=until,
                prompt=prompt,
                frames=chosen,
                max_tokens=self._settings.max_tokens,
                data={INCIDENT_KEY: incident.id},
            )
        )


def pictures_of(results: list[Result], frames: FrameStore) -> dict[str, KeptPicture]:
    """Return the newest picture of each window that shows what an alert asks about, by result id.

    A picture that has expired, or whose server is away, is left out: no message waits for it.
    """
    found = {}
    for result in results:
        if not is_observation(result) or result.alert is None or result.frames_to is None:
            continue
        if not shows(seen_window(result), result.alert) or result.stream_id is None:
            continue
        moment = result.frames_to.timestamp()
        try:
            refs = frames.between(result.stream_id, moment - 0.001, moment + 0.002)
            if refs:
                found[result.id] = KeptPicture(frames.load(refs[-1:])[0], result.frames_to)
        except redis.exceptions.RedisError as error:
            _log.warning("pictures_not_kept", reason=str(error))
            break
        except StreamerError as error:
            _log.warning("picture_not_kept", result=result.id, reason=error.message)
    return found
