"""What a user can do with the service. The CLI and the HTTP API are both thin layers over this."""

import json
import re
from collections.abc import Iterator
from functools import cached_property
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any, Self
from urllib.parse import unquote, urlsplit

from streamer.connections import Connections, local_run_file
from streamer.domain import Query, Result, Sampling, Stream, StreamSpec, Watch, utc_now
from streamer.errors import ErrorCode, StreamerError
from streamer.frames import FrameStore
from streamer.jobs import Jobs
from streamer.queries import Queries
from streamer.results import Results
from streamer.settings import Settings
from streamer.streams import StreamRegistry
from streamer.times import When, moment
from streamer.validation import check_prompt, validated

if TYPE_CHECKING:
    from streamer.media.source import SourceInfo
    from streamer.timeline import Page, Timeline

CAPTION_PROMPT = "Describe the scene."
"""What a stream attached without a watch of its own is asked, window after window."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


class Client:
    """A connection to a running installation; close it, or use it as a context manager.

    Raises StreamerError(REDIS_UNAVAILABLE) when nothing is running where `settings` says.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.connections = Connections(settings)
        self._redis = self.connections.main
        self.registry = StreamRegistry(self._redis)
        self.frames = FrameStore(
            self.connections.frames, ttl=settings.frame_ttl, max_frames=settings.frames_per_stream
        )
        self.jobs = Jobs(self._redis, settings)
        self.queue = Results(self._redis, settings)
        self._queries = Queries(self._redis, settings, self.frames, self.jobs, self.queue)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        if "timeline" in self.__dict__:
            self.timeline.close()
        self.connections.close()

    @cached_property
    def timeline(self) -> "Timeline":
        """The record of results."""
        from streamer.timeline import Timeline

        url = self.settings.timeline_url
        if self.settings.redis_url is None and self.settings.database_url is None:
            run_file = local_run_file(self.settings)
            if run_file.is_file():  # the installation may have been started with its own database
                url = json.loads(run_file.read_text()).get("database_url") or url
        return Timeline(url)

    # Streams

    def attach(
        self,
        source: str,
        name: str | None = None,
        *,
        sampling: Sampling | None = None,
        watches: list[Watch] | None = None,
        probe: bool = True,
    ) -> Stream:
        """Attach a URL, file or device; without `watches` it is captioned every `window` seconds.

        Raises StreamerError: a stream code when the probe fails (nothing is attached then),
        NAME_TAKEN, INVALID_REQUEST for a name that is none, STREAM_URL_FORBIDDEN.
        """
        from streamer.media.urls import is_live, parse_source, split_secret

        public_url, full_url = split_secret(parse_source(source))
        if name is not None and not _NAME.fullmatch(name):
            raise StreamerError(
                ErrorCode.INVALID_REQUEST,
                f"'{name[:80]}' cannot be a name: use up to 64 letters, digits, '.', '_' or '-', "
                "beginning with a letter or digit.",
            )
        if watches is None:
            watches = [self.watch(CAPTION_PROMPT)]
        for watch in watches:
            check_prompt(watch.prompt)
        if probe:
            self.probe(source)
        return self._create(
            full_url,
            name,
            name or derive_name(public_url),
            url=public_url,
            live=is_live(full_url),
            sampling=sampling or Sampling(fps=self.settings.fps),
            watches=watches,
        )

    def probe(self, source: str) -> "SourceInfo":
        """Open `source`, decode one picture and close it again.

        Raises StreamerError with the stream code that says why it cannot be used.
        """
        from streamer.media.source import probe
        from streamer.media.urls import parse_source, split_secret

        return probe(split_secret(parse_source(source))[1], self.settings.open_timeout)

    def _create(self, full_url: str, name: str | None, base: str, **fields: Any) -> Stream:
        number = 1
        while True:
            unique = base if number == 1 else f"{base}-{number}"
            spec = validated(StreamSpec, name=unique, **fields)
            try:
                self.registry.create(spec, full_url)
                break
            except StreamerError as error:
                if name is not None or error.code is not ErrorCode.NAME_TAKEN:
                    raise
                number += 1
        self.jobs.start_ingest(spec.id)
        return self.registry.get(spec.id)

    def watch(
        self,
        prompt: str,
        *,
        window: float | None = None,
        max_frames: int | None = None,
        max_tokens: int | None = None,
    ) -> Watch:
        """A standing question with the settings' defaults."""
        check_prompt(prompt)
        settings = self.settings
        return validated(
            Watch,
            prompt=prompt,
            window=settings.window if window is None else window,
            max_frames=settings.max_frames if max_frames is None else max_frames,
            max_tokens=settings.max_tokens if max_tokens is None else max_tokens,
        )

    def detach(self, ref: str) -> Stream:
        """Detach a stream by id or name: its decoder stops, its waiting clips are cancelled."""
        stream = self.registry.delete(ref)
        self.jobs.stop_ingest(stream.id)
        for owner in [watch.id for watch in stream.watches] if stream.live else [stream.id]:
            self.jobs.drop_oldest(owner, 0)
        self.frames.discard(stream.id)
        return stream

    def streams(self) -> list[Stream]:
        """All attached streams, oldest first."""
        return sorted(self.registry.list(), key=lambda stream: stream.created_at)

    def stream(self, ref: str | None = None) -> Stream:
        """A stream by id or name; without one, the only stream there is."""
        if ref is not None:
            return self.registry.get(ref)
        streams = self.streams()
        if len(streams) == 1:
            return streams[0]
        raise StreamerError(
            ErrorCode.INVALID_REQUEST,
            f"Which stream? Name one of: {', '.join(s.name for s in streams[:20])}."
            if streams
            else "No stream is attached: attach one first with `streamer attach URL_OR_FILE`.",
        )

    # Queries

    def ask(
        self,
        prompt: str,
        stream: str | None = None,
        *,
        since: When = None,
        until: When = None,
        max_frames: int | None = None,
        max_tokens: int | None = None,
    ) -> Query:
        """Ask about a stream now or, with `since`, about a past range; returns at once.

        Raises StreamerError: PROMPT_EMPTY, UNKNOWN_STREAM, NO_FRAMES, INVALID_REQUEST.
        """
        check_prompt(prompt)
        return self._queries.ask(
            prompt,
            self.stream(stream),
            since=since,
            until=until,
            max_frames=max_frames,
            max_tokens=max_tokens,
        )

    def query(self, query_id: str, wait: float = 0.0) -> Query:
        """A query as it is, after waiting up to `wait` seconds for its result.

        Raises StreamerError(UNKNOWN_QUERY).
        """
        return self._queries.get(query_id, wait)

    def queries(self, limit: int = 100) -> list[Query]:
        """The newest queries first."""
        return self._queries.newest(limit)

    def cancel(self, query_id: str) -> Query:
        """Cancel a query that has no answer yet; one that has is returned unchanged."""
        return self._queries.cancel(query_id)

    def require_recording(self, source: str) -> None:
        """Raise StreamerError(INVALID_REQUEST) for a live source."""
        from streamer.media.urls import is_live, parse_source, redact

        if is_live(parse_source(source)):
            raise StreamerError(
                ErrorCode.INVALID_REQUEST,
                f"{redact(source)} is a live source without an end: use `streamer attach` for it.",
            )

    def require_ingest(self) -> None:
        """Raise StreamerError(NO_WORKER) when nobody is there to read a stream."""
        if not self.jobs.workers()["ingest"]:
            raise StreamerError(
                ErrorCode.NO_WORKER,
                "No ingest worker is running, so nobody would read it: start one with "
                "`streamer ingest`, or everything with `streamer up`.",
            )

    def require_worker(self) -> None:
        """Raise StreamerError(NO_WORKER) when nobody is there to answer."""
        if not self.jobs.workers()["clips"]:
            raise StreamerError(
                ErrorCode.NO_WORKER,
                "No model worker is running, so nobody would answer: start one with "
                "`streamer worker`, or everything with `streamer up`.",
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
    ) -> "Page":
        """A page of the timeline, newest first; `stream` may be gone by now."""
        now = utc_now()
        return self.timeline.query(
            stream=stream,
            kind=kind,
            since=moment(since, now),
            until=moment(until, now),
            q=q,
            limit=limit,
            cursor=cursor,
        )

    def follow(self) -> Iterator[Result]:
        """Results as they are published, from now on, for ever."""
        for _, result in self.queue.follow():
            yield result

    def analyze(
        self,
        path: str,
        prompt: str = CAPTION_PROMPT,
        window: float | None = None,
        fps: float | None = None,
        *,
        probe: bool = True,
    ) -> Stream:
        """Attach a recording to be captioned window by window; detach it when it has ended.

        Raises StreamerError(INVALID_REQUEST) for a live source.
        """
        self.require_recording(path)
        sampling = validated(Sampling, fps=self.settings.fps if fps is None else fps)
        watches = [self.watch(prompt, window=window)]
        return self.attach(path, sampling=sampling, watches=watches, probe=probe)


def derive_name(url: str) -> str:
    """A stream name from a URL's host and path, or from a file's name."""
    parts = urlsplit(url)
    if parts.scheme in ("", "file"):
        text = PurePosixPath(unquote(parts.path) or url).stem
    else:
        text = f"{parts.hostname or ''}{parts.path}"
    name = re.sub(r"[^A-Za-z0-9._]+", "-", text).strip("-._")
    return name[:48].rstrip("-._") or "stream"
