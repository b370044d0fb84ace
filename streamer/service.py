"""Python client of the service. The CLI and the HTTP API are thin layers over it."""

import contextlib
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import datetime
from typing import TYPE_CHECKING, Any, Self

import redis

from streamer.alert_rule import AlertRule
from streamer.domain.frame import StoredFrameList
from streamer.domain.ids import new_id
from streamer.domain.query import Query
from streamer.domain.question import Question
from streamer.domain.record import unstorable
from streamer.domain.result import Match, Result, SearchMode
from streamer.domain.sampling import Sampling
from streamer.domain.stream import UNCHANGED, Stream, StreamSpec, Transport, Unchanged
from streamer.domain.summaries import MAX_SUMMARISED, Summary, summary_of
from streamer.domain.timestamp import utc_now
from streamer.domain.watch import Watch
from streamer.errors import ErrorCode, StreamerError, about
from streamer.frames.history import FrameHistory
from streamer.frames.kept import note_kept
from streamer.frames.store import FrameStore, Retention
from streamer.frames.stored_frames import StoredFrames
from streamer.health.parts import InstallationHealth
from streamer.limits import (
    MAX_CLIP_FRAMES,
    MAX_SEARCH,
    MAX_SOURCE,
    MAX_WINDOW,
    check_length,
    check_prompt,
)
from streamer.questions.chats import Chats
from streamer.questions.queries import NotYet, Queries
from streamer.questions.recordings import RecordingResults
from streamer.questions.surveys import Surveys
from streamer.questions.verification import Verifier
from streamer.questions.watches import Watches, check_alert, check_watch, require_open
from streamer.queues.jobs import Jobs
from streamer.queues.recorded_windows import RecordedWindows
from streamer.queues.results import Results
from streamer.redis_client.connections import Connections, from_run_file
from streamer.response_format import ResponseFormat, TextFormat
from streamer.secret_box import SecretBox
from streamer.settings import Settings
from streamer.sources.admission import Admission
from streamer.sources.files import Files
from streamer.sources.streams import StreamRegistry, keep_ids
from streamer.terminal import by_time
from streamer.times import When, moment
from streamer.validation import check_name, derive_name, validated

if TYPE_CHECKING:
    from streamer.incidents.store import Incidents
    from streamer.media.source import SourceInfo
    from streamer.sources.discovery import Discovery
    from streamer.timeline.results import Page, Timeline
    from streamer.webhooks.store import Webhooks

CAPTION_PROMPT = "Describe the scene."
"""Question about every window of a stream that is attached without watches."""


FIRST_FRAME_WAIT = 10.0
"""Default of `Service.first_frame_wait`, in seconds."""

CLIP_MARGIN = 10.0
"""Seconds before and after an incident that its video shows."""

FRAME_POLL_INTERVAL = 0.2
"""Seconds between two looks whether a frame has come."""


class Service:
    """A connection to a running installation; close it, or use it as a context manager.

    With `patient`, it waits at first for a Redis that refuses work for now.

    Raises StreamerError(REDIS_UNAVAILABLE) if no installation runs where `settings` says.
    """

    def __init__(self, settings: Settings, *, patient: bool = False) -> None:
        self.settings = settings
        self.first_frame_wait = FIRST_FRAME_WAIT
        """Seconds that a question about now waits for a stream that is being opened."""
        self.admission = Admission(settings)
        self.files = Files(settings)
        """Uploaded files."""
        self.connections = Connections(settings, patient=patient)
        self._redis = self.connections.main
        self._timeline: Timeline | None = None
        self._opening = threading.Lock()
        self._encoding = threading.Lock()
        self._open_failure: tuple[float, StreamerError | None] = (0.0, None)
        self.registry = StreamRegistry(self._redis, SecretBox(settings.secret_key))
        clock = self.connections.clock
        self.frames = FrameStore(self.connections.frames, Retention.of(settings), clock=clock)
        self.jobs = Jobs(self._redis, settings)
        self.queue = Results(self._redis, settings)
        self.windows = RecordedWindows(self._redis)
        """Which windows of recordings have been asked about."""
        self.watches = Watches(self.registry, self.jobs)
        """Add, change and remove watches of attached streams."""
        history = self._history = FrameHistory(self.connections, settings, self.frames, clock=clock)
        self.pictures = StoredFrames(self.registry, self.frames, history)
        """The frames that are kept, as pictures and videos."""
        self.health = InstallationHealth(self.connections, self.jobs, lambda: self.timeline, clock)
        """Which parts of the installation work."""
        self._verifier = Verifier(settings, self.registry, self.jobs, self.queue, self.pictures)
        self._queries = Queries(self._redis, settings, history, self.jobs, self.queue, clock)
        self._surveys = Surveys(
            self._redis, settings, self.registry, self.jobs, self._queries, self.windows
        )
        self.chats = Chats(
            self.connections,
            settings,
            self.registry,
            self._queries,
            self.admission,
            self.files,
            clock,
        )
        """Conversations about pictures and cameras."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        if self._timeline is not None:
            self._timeline.close()
        self.connections.close()

    @property
    def timeline(self) -> "Timeline":
        """Database of recorded results, opened on first use.

        Raises StreamerError(DATABASE_UNAVAILABLE).
        """
        from streamer.timeline.results import Timeline

        came = time.monotonic()
        with self._opening:
            failed_at, failure = self._open_failure
            if self._timeline is None and failure is not None and failed_at > came:
                raise StreamerError(failure.code, failure.message)  # it was tried meanwhile
            if self._timeline is None:
                settings = self.settings
                url = settings.database_url or from_run_file(settings, "database_url")
                try:
                    self._timeline = Timeline(url or settings.timeline_url)
                except StreamerError as error:
                    self._open_failure = time.monotonic(), error
                    raise
            return self._timeline

    @property
    def incidents(self) -> "Incidents":
        """What alerts have found, and silences. Raises StreamerError(DATABASE_UNAVAILABLE)."""
        from streamer.incidents.store import Incidents

        return Incidents(self.timeline.database)

    def incident_clip(self, incident_id: str) -> bytes:
        """Return an MP4 video of an incident, from the frames that are still kept.

        Raises StreamerError: UNKNOWN_INCIDENT; FRAMES_EXPIRED if none is kept.
        """
        from streamer.frames.clip import encode_clip

        incident = self.incidents.get(incident_id)
        since = incident.opened_at.timestamp() - CLIP_MARGIN
        until = (incident.resolved_at or incident.last_known_at).timestamp() + CLIP_MARGIN
        try:
            stream = self.registry.get(incident.stream_id)
            frames = self._history.select(stream, since, until, MAX_CLIP_FRAMES).frames
        except StreamerError as error:
            if error.code is not ErrorCode.UNKNOWN_STREAM:
                raise
            frames = []
        frames = self.frames.present(frames)
        if not frames:
            raise StreamerError(
                ErrorCode.FRAMES_EXPIRED,
                "No frames of the incident are kept any more: raise frame_ttl or history, or set "
                "archive_url, to keep those of later ones.",
            )
        with self._encoding:  # one at a time: a clip takes a core for seconds
            return encode_clip(list(zip(frames, self.frames.load(frames), strict=True)))

    @property
    def webhooks(self) -> "Webhooks":
        """The programs that are sent events. Raises StreamerError(DATABASE_UNAVAILABLE)."""
        from streamer.webhooks.addresses import WebhookAddresses
        from streamer.webhooks.store import Webhooks

        return Webhooks(
            self.timeline.database,
            WebhookAddresses.of(self.settings),
            SecretBox(self.settings.secret_key),
        )

    # Streams

    def attach(
        self,
        source: str,
        name: str | None = None,
        *,
        sampling: Sampling | None = None,
        watches: list[Watch] | None = None,
        transport: Transport = "auto",
        history: float | None = None,
        retention_days: float | None = None,
        probe: bool = True,
        live: bool | None = None,
        paused: bool = False,
        stream_id: str | None = None,
        model: str | None = None,
        endpoint_reference: str | None = None,
    ) -> Stream:
        """Attach a URL, file or device; without `watches` every window gets a caption.

        `live` says whether the end of the source is a lost connection; None: detected when it is
        opened.
        With `stream_id`, the stream gets this id; one that has it is returned instead.
        `model` answers the watches and queries that name none. `endpoint_reference` is what the
        camera is called at every address (see :meth:`discover`): a stream that is attached from it
        with the same path is returned instead, at the address and with the password of `source`.

        Raises StreamerError: a stream code if the probe fails (nothing is attached then),
        NAME_TAKEN, INVALID_REQUEST for an invalid name, STREAM_URL_FORBIDDEN, UNKNOWN_MODEL.
        """
        if stream_id is not None and self.registry.exists(stream_id):
            return self._resumed(stream_id)
        with about("url"):
            check_length("source", source, MAX_SOURCE)
            public_url, full_url = self.admission.split(source)
        if endpoint_reference is not None:
            known = self._attached_from(endpoint_reference, public_url)
            if known is not None:
                return self._at_address(known, full_url, probe)
        if name is not None:
            check_name(name)
        self.jobs.served.require(model)
        if watches is None:
            watches = [self.watch(CAPTION_PROMPT)]
        for watch in watches:
            check_watch(watch)
        with about("url"):
            if probe:
                live = self.admission.probe(source, transport, live).live
            else:
                live = self.admission.is_live(full_url, live)
        return self._create(
            full_url,
            name,
            name or derive_name(public_url),
            url=public_url,
            live=live,
            transport=transport,
            history=history,
            retention_days=retention_days,
            paused=paused,
            sampling=sampling or Sampling(fps=self.settings.fps),
            watches=watches,
            **({"id": stream_id} if stream_id is not None else {}),
            model=model,
            endpoint_reference=endpoint_reference,
        )

    def attach_file(
        self,
        file_id: str,
        name: str | None = None,
        *,
        sampling: Sampling | None = None,
        watches: list[Watch] | None = None,
        stream_id: str | None = None,
        model: str | None = None,
    ) -> Stream:
        """Attach an uploaded file as a recording; without `watches` every window gets a caption.

        `stream_id` is as in :meth:`attach`.

        Raises StreamerError: UNKNOWN_FILE, UPLOAD_CONFLICT for an unfinished upload, NAME_TAKEN,
        INVALID_REQUEST, UNKNOWN_MODEL.
        """
        if stream_id is not None and self.registry.exists(stream_id):
            return self._resumed(stream_id)
        self.jobs.served.require(model)
        with about("file"):
            path = str(self.files.path(file_id))
            filename = self.files.get(file_id).filename
        if name is not None:
            check_name(name)
        for watch in watches or []:
            check_watch(watch)
        return self._create(
            path,
            name,
            name or derive_name(filename),
            url=path,
            live=False,
            sampling=sampling or Sampling(fps=self.settings.fps),
            watches=[self.watch(CAPTION_PROMPT)] if watches is None else watches,
            **({"id": stream_id} if stream_id is not None else {}),
            model=model,
        )

    def probe(
        self, source: str, transport: Transport = "auto", live: bool | None = None
    ) -> "SourceInfo":
        """Open `source`, decode one frame and close it.

        Raises StreamerError with the stream code that says why it cannot be used.
        """
        return self.admission.probe(source, transport, live)

    def discover(
        self, address: str | None = None, user: str | None = None, password: str | None = None
    ) -> "Discovery":
        """Search for cameras at `address` (a host or a private network), by default by multicast.

        Raises StreamerError: INVALID_REQUEST, STREAM_URL_FORBIDDEN, SETTINGS_INVALID.
        """
        from streamer.sources.discovery import find_cameras

        return find_cameras(self.settings, self.registry.list(), address, user, password)

    def _attached_from(self, endpoint_reference: str, url: str) -> Stream | None:
        """Return the stream that is attached from a camera, by the same path as `url`."""
        from streamer.sources.discovery import same_path

        return next(
            (
                stream
                for stream in self.registry.list()
                if stream.endpoint_reference == endpoint_reference and same_path(stream.url, url)
            ),
            None,
        )

    def _at_address(self, stream: Stream, full_url: str, probe: bool) -> Stream:
        """Give a stream another address or password, unless it has those; return it."""
        if self.registry.secret_url(stream.id) == full_url:
            return self._resumed(stream.id)
        return self.edit(stream.id, source=full_url, probe=probe)

    def _resumed(self, stream_id: str) -> Stream:
        """Return a stream that was attached by a program that may have ended right after it."""
        self.jobs.start_ingest(stream_id)
        return self.stream(stream_id)

    def _create(self, full_url: str, name: str | None, base: str, **fields: Any) -> Stream:
        self.jobs.require_room()
        while True:
            unique = base if name is not None else self.registry.free_name(base)
            spec = validated(StreamSpec, name=unique, **fields)
            try:
                self.registry.create(spec, full_url)
                break
            except StreamerError as error:
                if name is not None or error.code is not ErrorCode.NAME_TAKEN:
                    raise
        self.jobs.start_ingest(spec.id)
        return self.stream(spec.id)

    def watch(
        self,
        prompt: str,
        *,
        window: float | None = None,
        max_frames: int | None = None,
        max_tokens: int | None = None,
        response_format: ResponseFormat | None = None,
        alert: AlertRule | None = None,
        model: str | None = None,
    ) -> Watch:
        """Make a watch for :meth:`attach` or `watches.add`, with defaults from the settings.

        With `alert`, its answers are yes or no, and open incidents by this rule.

        Raises StreamerError: PROMPT_EMPTY, PROMPT_TOO_LONG, INVALID_REQUEST, UNKNOWN_MODEL.
        """
        check_prompt(prompt)
        self.jobs.served.require(model)
        response_format = response_format or TextFormat()
        with about("response_format"):
            response_format.check()
        check_alert(alert)
        settings = self.settings
        return validated(
            Watch,
            prompt=prompt,
            window=settings.window if window is None else window,
            max_frames=settings.max_frames if max_frames is None else max_frames,
            max_tokens=settings.max_tokens if max_tokens is None else max_tokens,
            response_format=response_format,
            alert=alert,
            model=model,
        )

    def edit(
        self,
        ref: str,
        *,
        source: str | None = None,
        name: str | None = None,
        sampling: Sampling | None = None,
        watches: list[Watch] | None = None,
        transport: Transport | None = None,
        history: float | None = None,
        retention_days: float | None = None,
        paused: bool | None = None,
        probe: bool = True,
        model: str | Unchanged | None = UNCHANGED,
    ) -> Stream:
        """Change a stream by id or name while it runs; arguments that are None change nothing,
        except that `model` then is the default model again.

        A new `source` (another URL or password) is probed first and opened within a second; the
        masked URL of the stream changes nothing. `watches` replaces all watches; those that have
        the id of one, or ask the same as before, continue without interruption. Use
        :attr:`watches` to add, change or remove a single watch.

        Raises StreamerError: UNKNOWN_STREAM, UNKNOWN_MODEL, NAME_TAKEN, INVALID_REQUEST, a stream
        code if the probe fails (nothing is changed then).
        """
        if model is not UNCHANGED:
            self.jobs.served.require(model)
        changes: dict[str, Any] = {
            "sampling": sampling,
            "transport": transport,
            "history": history,
            "retention_days": retention_days,
            "paused": paused,
        }
        full_url = None
        if name is not None:
            changes["name"] = check_name(name)
        stream = self.registry.get(ref)
        if source is not None and source != stream.url:
            with about("url"):
                check_length("source", source, MAX_SOURCE)
                changes["url"], full_url = self.admission.replacement(
                    stream, source, transport or stream.transport, probe
                )
        if watches is not None and keep_ids(stream.watches, watches) != stream.watches:
            require_open(stream)
        for watch in watches or []:
            check_watch(watch)

        def change(spec: StreamSpec) -> dict[str, Any]:
            if watches is not None:
                changes["watches"] = keep_ids(spec.watches, watches)
            given = {key: value for key, value in changes.items() if value is not None}
            return given if model is UNCHANGED else {**given, "model": model}

        stream = self.registry.edit(ref, change, secret_url=full_url)
        if stream.live:
            self.jobs.start_ingest(stream.id)
        return self.stream(stream.id)

    def detach(self, ref: str) -> Stream:
        """Detach a stream by id or name: stop its decoder and cancel its waiting clips."""
        stream = self.registry.delete(ref)
        self.jobs.stop_ingest(stream.id)
        for owner in [watch.id for watch in stream.watches] if stream.live else [stream.id]:
            self.jobs.drop_waiting(owner)
        self.frames.discard(stream.id)
        self.windows.forget(stream.id)
        self._history.forget(stream.id)
        return stream

    def streams(self) -> list[Stream]:
        """Return all attached streams, oldest first."""
        return self._counted(self.registry.list())

    def stream_page(
        self, limit: int = 100, cursor: str | None = None
    ) -> tuple[list[Stream], str | None]:
        """Return up to `limit` attached streams after `cursor`, oldest first, and the cursor of the
        rest."""
        found, following = self.registry.page(limit, cursor)
        return self._counted(found), following

    def _counted(self, found: Sequence[Stream]) -> list[Stream]:
        """Return streams with the unanswered windows of those that are recordings."""
        recordings = [stream for stream in found if not stream.live]
        left = self.jobs.unanswered([recording.id for recording in recordings])
        for recording, number in zip(recordings, left, strict=True):
            recording.unanswered = number
        self._note_kept(found)
        return [*found]

    def _note_kept(self, found: Sequence[Stream]) -> None:
        """Note for how long the frames of streams are kept, unless their server is away."""
        with contextlib.suppress(redis.exceptions.RedisError):
            note_kept(self.frames, found, self.connections.clock.time())

    def stream(self, ref: str | None = None) -> Stream:
        """Return a stream by id or name; without `ref`, the only stream attached.

        Raises StreamerError: UNKNOWN_STREAM, RECORD_UNREADABLE; INVALID_REQUEST without `ref`
        unless exactly one stream is attached.
        """
        if ref is not None:
            stream = self.registry.get(ref)
            if not stream.live:
                stream.unanswered = self.jobs.in_flight(stream.id)
            self._note_kept([stream])
            return stream
        streams = self.registry.list()
        if len(streams) == 1:
            return self.stream(streams[0].id)
        raise StreamerError(
            ErrorCode.INVALID_REQUEST,
            f"Several streams are attached: name one of {', '.join(s.name for s in streams[:20])}."
            if streams
            else "No stream is attached: attach one with `streamer attach URL_OR_FILE`.",
        )

    # Queries

    def ask(self, prompt: str, stream: str | None = None, **options: Any) -> Query:
        """Ask about a stream now or, with `since`, about a past range; do not wait for the answer.

        `stream` is an id or name; it may be None if only one stream is attached. `options` are
        the other fields of :class:`streamer.domain.question.Question`: `since` and `until` (aware
        datetimes, RFC 3339, or relative such as `-10m`), `max_frames`, `max_tokens`,
        `response_format` and `stale_ok`. A stream that is still being opened is waited for. With
        `window`, a range is asked window by window; `streams`, `file` and `url` ask several
        streams, or a recording.

        Raises StreamerError: PROMPT_EMPTY, UNKNOWN_STREAM, NO_FRAMES, STREAM_STALE,
        INVALID_REQUEST, TOO_MANY_QUERIES.
        """
        return self.submit(validated(Question, prompt=prompt, stream=stream, **options))

    def submit(
        self, question: Question, wait: float | None = None, query_id: str | None = None
    ) -> Query:
        """Submit a question, as :meth:`ask` does, and return without its answer.

        If the stream is still being opened, wait up to `wait` seconds for its first frame, by
        default `first_frame_wait`. With `query_id`, the query gets this id; one that has it is
        returned instead.

        Raises StreamerError: UNKNOWN_STREAM, NO_FRAMES, STREAM_STALE, INVALID_REQUEST,
        ARCHIVE_UNAVAILABLE, REDIS_FULL, TOO_MANY_QUERIES.
        """
        deadline = time.monotonic() + (self.first_frame_wait if wait is None else wait)
        if query_id is not None and self._queries.exists(query_id):
            return self.query(query_id)
        if question.is_survey:
            return self._submit_survey(question, query_id)
        while True:
            with about("stream"):
                stream = self.stream(question.stream)
            try:
                return self._queries.ask(question, stream, query_id)
            except NotYet:
                if time.monotonic() >= deadline:
                    raise
            time.sleep(FRAME_POLL_INTERVAL)

    def _submit_survey(self, question: Question, query_id: str | None) -> Query:
        """Submit a question about several windows; see :meth:`submit`."""
        if question.file is None and question.url is None:
            with about("stream" if question.streams is None else "streams"):
                found = [self.stream(ref) for ref in question.streams or ()]
                found = found or [self.stream(question.stream)]
            streams = list({stream.id: stream for stream in found}.values())
            return self._surveys.ask(question, streams, query_id)
        self._surveys.require_room()
        query_id = query_id or new_id("qry")
        recording = self._attach_recording(question, query_id.replace("qry_", "str_", 1))
        try:
            return self._surveys.ask(question, [recording], query_id, recording=True)
        except BaseException:
            self.detach(recording.id)
            raise

    def _attach_recording(self, question: Question, stream_id: str) -> Stream:
        """Attach the recording that a question is about, so that its windows are asked."""
        if question.file is not None:
            with about("file"):
                media = self.files.get(question.file).media
            length = media.duration if media is not None else None
        else:
            assert question.url is not None
            with about("url"):
                check_length("source", question.url, MAX_SOURCE)
                self.admission.require_recording(question.url)
                length = self.admission.probe(question.url, "auto", live=False).duration
        watch = self.watch(
            question.prompt,
            window=min(self._surveys.window_of(question, length), MAX_WINDOW),
            max_frames=question.max_frames,
            max_tokens=question.max_tokens,
            response_format=question.response_format,
            model=question.model,
        )
        if question.file is not None:
            return self.attach_file(question.file, watches=[watch], stream_id=stream_id)
        assert question.url is not None
        return self.attach(
            question.url, watches=[watch], probe=False, live=False, stream_id=stream_id
        )

    def summarize(
        self,
        stream: str,
        since: When,
        until: When = None,
        *,
        model: str | None = None,
        query_id: str | None = None,
    ) -> Query:
        """Submit what was recorded of a stream in a range to be summed up.

        `query_id` is as in :meth:`submit`.

        Raises StreamerError: INVALID_REQUEST, UNKNOWN_STREAM, NOT_FOUND without any result,
        TOO_MANY_QUERIES, UNKNOWN_MODEL, DATABASE_UNAVAILABLE.
        """
        if query_id is not None and self._queries.exists(query_id):
            return self.query(query_id)
        self.jobs.served.require(model)
        summary = self.summary_of(stream, since, until)
        if not summary.blocks:
            raise StreamerError(
                ErrorCode.NOT_FOUND,
                f"There are no captions or answers of '{stream[:80]}' in this range: give an "
                "earlier start (since, --since).",
            )
        prompt = f"Summarise what happened on {stream[:80]}."
        return self._surveys.summarise(summary, prompt, model, query_id)

    def summary_of(self, stream: str, since: When, until: When = None) -> Summary:
        """Return what was recorded of a stream in a range, in blocks, without a summary.

        Raises StreamerError: INVALID_REQUEST, UNKNOWN_STREAM, DATABASE_UNAVAILABLE.
        """
        now = utc_now()
        with about("since"):
            start = moment(since, now) or now
        with about("until"):
            end = moment(until, now) or now
        if start >= end:
            raise StreamerError(
                ErrorCode.INVALID_REQUEST, "The range is empty: it must start before it ends."
            )
        found: list[Result] = []
        cursor = None
        while len(found) < MAX_SUMMARISED:
            page = self.results(stream=stream, since=start, until=end, limit=1000, cursor=cursor)
            found += page.results
            cursor = page.next_cursor
            if cursor is None:
                break
        return summary_of(stream, start, end, by_time(found))

    def query(self, query_id: str, wait: float = 0.0) -> Query:
        """Return a query after waiting up to `wait` seconds for its result.

        Raises StreamerError(UNKNOWN_QUERY).
        """
        query = self._queries.get(query_id, wait)
        return query.model_copy(update={"progress": self._surveys.progress(query)})

    def frames_of_query(self, query_id: str) -> StoredFrameList:
        """Return the frames behind the answer to a query; none before it has one.

        Raises StreamerError(UNKNOWN_QUERY).
        """
        result = self.query(query_id).result
        if result is None:
            return StoredFrameList(frames=[])
        windows = [each["request_id"] for each in (result.data or {}).get("windows", [])]
        if not windows:
            return self.pictures.of_result(result)
        found = self.queue.get_many(windows)
        kept = [
            each if each is not None else self.timeline.get(request_id)
            for request_id, each in zip(windows, found, strict=True)
        ]
        return self.pictures.of_results([each for each in kept if each is not None])

    def position(self, query_id: str) -> int | None:
        """Return how many queries are answered before this one; None if it does not wait."""
        return self.jobs.position(query_id)

    def queries(self, limit: int = 100) -> list[Query]:
        """Return up to `limit` queries, newest first."""
        return self._queries.newest(limit)

    def query_page(
        self, limit: int = 100, cursor: str | None = None
    ) -> tuple[list[Query], str | None]:
        """Return up to `limit` queries after `cursor`, newest first, and the cursor of the rest."""
        return self._queries.page(limit, cursor)

    def cancel(self, query_id: str) -> Query:
        """Cancel a query; one that has a result is returned unchanged."""
        query = self._queries.cancel(query_id)
        self._surveys.release(query)
        return query

    def require_ingest(self) -> None:
        """Raise StreamerError(NO_WORKER) if no ingest worker is running."""
        if not self.jobs.workers()["ingest"]:
            raise StreamerError(
                ErrorCode.NO_WORKER,
                "No ingest worker is running to read streams: start one with `streamer ingest`, "
                "or everything with `streamer up`.",
            )

    def require_worker(self) -> None:
        """Raise StreamerError(NO_WORKER) if no model worker is running, nor loading its model."""
        if not self.jobs.workers()["clips"] and not self.jobs.model_loading():
            raise StreamerError(
                ErrorCode.NO_WORKER,
                "No model worker is running to answer: start one with `streamer worker`, "
                "or everything with `streamer up`.",
            )

    # Results

    def results(
        self,
        *,
        stream: str | None = None,
        kind: str | None = None,
        since: When = None,
        until: When = None,
        q: str | None = None,
        limit: int = 100,
        cursor: str | None = None,
        mode: SearchMode = "words",
        verify: bool = False,
    ) -> "Page":
        """Return a page of the timeline, newest first; `stream` may have been detached.

        With the mode `meaning`, it has the results whose meaning is nearest to `q`, the nearest
        first, and there is no other page. With `verify`, the model is asked whether the frames of
        each hit show `q`; :meth:`verified` tells what it says.

        Raises StreamerError: INVALID_REQUEST; UNKNOWN_STREAM for a stream that is not attached and
        has no results; SEARCH_UNAVAILABLE without the extra `search`.
        """
        if not q and (verify or mode == "meaning"):
            raise StreamerError(
                ErrorCode.INVALID_REQUEST,
                "Searching by meaning, and verifying, need a text: give q.",
                "q",
            )
        if cursor is not None and mode == "meaning":
            raise StreamerError(
                ErrorCode.INVALID_REQUEST,
                "A search by meaning has one page: leave out cursor, and raise limit.",
                "cursor",
            )
        reason = unstorable([stream, kind, q])
        if reason is not None:
            raise StreamerError(ErrorCode.INVALID_REQUEST, f"No result can match: {reason}.")
        for name, text in (("search text", q), ("stream", stream), ("cursor", cursor)):
            check_length(name, text or "", MAX_SEARCH)
        now = utc_now()
        with about("since"):
            start = moment(since, now)
        with about("until"):
            end = moment(until, now)
        if mode == "meaning":
            page = self.timeline.query_by_meaning(
                q or "", stream=stream, kind=kind, since=start, until=end, limit=limit
            )
        else:
            page = self.timeline.query(
                stream=stream,
                kind=kind,
                since=start,
                until=end,
                q=q,
                limit=limit,
                cursor=cursor,
            )
        if stream is not None and not page.results:
            self.require_results_of(stream)
        return self.verified(page, q) if verify and q else page

    def verified(self, page: "Page", q: str) -> "Page":
        """Return a page of hits with what the model says about them by now."""
        matches = page.matches or [Match(request_id=hit.request_id) for hit in page.results]
        return replace(page, matches=self._verifier.verify(q, page.results, matches))

    def require_results_of(self, stream: str) -> None:
        """Raise StreamerError(UNKNOWN_STREAM) unless `stream`, an id or a name, is attached or has
        results in the timeline."""
        try:
            self.registry.get(stream)
        except StreamerError:
            if not self.timeline.query(stream=stream, limit=1).results:
                raise

    def now(self) -> datetime:
        """Return the time of the service: that of its Redis, from which `-10m` counts."""
        return utc_now()

    def follow(self) -> Iterator[Result]:
        """Yield results as they are published from now on, without end."""
        for _, result in self.queue.follow():
            yield result

    def analyze(
        self,
        path: str,
        prompt: str = CAPTION_PROMPT,
        window: float | None = None,
        fps: float | None = None,
        *,
        response_format: ResponseFormat | None = None,
        probe: bool = True,
        live: bool | None = None,
    ) -> Stream:
        """Attach a recording to caption it window by window; detach it after it has ended.

        :meth:`results_of` yields its results.

        Raises StreamerError(INVALID_REQUEST) for a live source.
        """
        self.admission.require_recording(path, live)
        sampling = validated(Sampling, fps=self.settings.fps if fps is None else fps)
        watches = [self.watch(prompt, window=window, response_format=response_format)]
        return self.attach(path, sampling=sampling, watches=watches, probe=probe, live=False)

    def follow_recording(self, recording: Stream, last_id: str | None = None) -> RecordingResults:
        """Follow a recording until each of its windows has a result.

        `last_id` is where to start in the results queue; earlier results are looked up.
        """
        start = self.queue.last_id() if last_id is None else last_id
        return RecordingResults(
            self.registry, self.jobs, self.queue, self.windows, recording, start
        )

    def results_of(self, recording: Stream) -> Iterator[Result]:
        """Yield the result of each window of a recording as it comes, each once, until every
        window has one; some may be errors.

        Raises StreamerError: UNKNOWN_STREAM if it is detached meanwhile; at the end, what kept the
        recording from being read whole.
        """
        following = self.follow_recording(recording)
        while not following.finished:
            yield from following.advance(block=1.0)
        error = following.status.error
        if error is not None:
            raise StreamerError(error.code, error.message)
