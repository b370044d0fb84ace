"""Every call of the API, once: both clients have these as methods, with these signatures."""

import time
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from functools import partial
from os import PathLike
from typing import Any, Literal, TypeVar
from urllib.parse import quote

from streamer.alert_rule import AlertRule, Severity
from streamer.api.schemas import (
    DeliveryPage,
    FileList,
    IncidentList,
    NewWebhook,
    QueryList,
    Readiness,
    ResultPage,
    SilenceList,
    StreamList,
    WatchList,
    WebhookList,
)
from streamer.domain.frame import StoredFrame, StoredFrameList
from streamer.domain.query import Query
from streamer.domain.record import Record
from streamer.domain.result import Result, SearchMode
from streamer.domain.sampling import Sampling
from streamer.domain.stream import UNCHANGED, Stream, Transport, Unchanged
from streamer.domain.watch import Watch
from streamer.errors import ErrorCode, StreamerError
from streamer.http_client.call import Call, Flow, Paged
from streamer.http_client.listening import Following, Listening
from streamer.http_client.uploading import upload
from streamer.incidents.records import Incident
from streamer.incidents.silences import Matcher, Silence
from streamer.response_format import ResponseFormat
from streamer.sources.discovery import Discovery
from streamer.sources.files import UploadedFile
from streamer.times import When
from streamer.webhooks.records import Delivery, Webhook

_Record = TypeVar("_Record", bound=Record)

WatchLike = str | Watch
"""A standing question as callers give it: its prompt, or a record with more."""

_OPENING = 60.0
"""Seconds that the server may need to open a source."""

_SEARCH = 60.0
"""Seconds that a search for cameras may take."""

_FIRST_FRAME = 15.0
"""Seconds for which the server may wait for the first frame of a stream."""

_SLICE = 30.0
"""Seconds for which one request waits for an answer; longer waits are several requests."""

_MAX_PAGE = 1000

Kind = Literal["caption", "answer", "alert", "summary", "error"]


class ServiceCalls:
    """Calls for streams, queries, results and the state of the service."""

    @staticmethod
    def attach(
        source: str | None = None,
        name: str | None = None,
        *,
        file: str | None = None,
        sampling: Sampling | None = None,
        watches: Sequence[WatchLike] | None = None,
        transport: Transport = "auto",
        history: float | None = None,
        retention_days: float | None = None,
        probe: bool = True,
        live: bool | None = None,
        model: str | None = None,
        endpoint_reference: str | None = None,
    ) -> Call[Stream]:
        """Attach a URL or a path of the server, or an uploaded `file`, by its id.

        Without `watches` every window gets a caption.

        A watch is a prompt, or a record; what it does not set is set by the server. `history` are
        the seconds that frames are kept, `retention_days` the days that results are. `live` says
        whether the end of the source is a lost connection; None: detected when the source is
        opened. `model` answers the watches and queries that name none. `endpoint_reference` is what
        `discover` calls the camera: a stream that is attached from it with the same path is
        returned instead, at the address and with the password of `source`.

        Raises StreamerError: a stream code if the probe fails (nothing is attached then),
        NAME_TAKEN, INVALID_REQUEST, STREAM_URL_FORBIDDEN.
        """
        body = {
            "url": source,
            "file": file,
            "name": name,
            "sampling": sampling,
            "watches": _watches(watches),
            "transport": transport,
            "history": history,
            "retention_days": retention_days,
            "probe": probe,
            "live": live,
            "model": model,
            "endpoint_reference": endpoint_reference,
        }
        return _post("/v1/streams", Stream, body, patience=_OPENING)

    @staticmethod
    def discover(
        address: str | None = None, *, user: str | None = None, password: str | None = None
    ) -> Call[Discovery]:
        """Search for cameras by ONVIF, at a host or in a private network such as 192.168.1.0/24.

        Without `address`, the server asks its networks by multicast. `user` and `password` log
        in to the cameras: most list their streams only after a login. Attach a found stream with
        its `endpoint_reference`, so that a camera whose address changes is found again.

        Raises StreamerError: INVALID_REQUEST, STREAM_URL_FORBIDDEN for a network that is not
        private, SETTINGS_INVALID if the server has no search.
        """
        body = {"address": address, "user": user, "password": password}
        return _post("/v1/discovery", Discovery, body, patience=_SEARCH)

    @staticmethod
    def edit(
        ref: str,
        *,
        source: str | None = None,
        name: str | None = None,
        sampling: Sampling | None = None,
        watches: Sequence[WatchLike] | None = None,
        transport: Transport | None = None,
        history: float | None = None,
        retention_days: float | None = None,
        paused: bool | None = None,
        probe: bool = True,
        model: str | Unchanged | None = UNCHANGED,
    ) -> Call[Stream]:
        """Change a stream by id or name while it runs; arguments that are None change nothing,
        except that `model` then is the default model again.

        `watches` replaces all watches; those that ask the same as before continue.

        Raises StreamerError: UNKNOWN_STREAM, NAME_TAKEN, INVALID_REQUEST, a stream code if the
        probe of a new URL fails (nothing is changed then).
        """
        body = {
            "url": source,
            "name": name,
            "sampling": sampling,
            "watches": _watches(watches),
            "transport": transport,
            "history": history,
            "retention_days": retention_days,
            "paused": paused,
            "probe": probe,
        }
        path = f"/v1/streams/{_segment(ref)}"
        return Call("PATCH", path, Stream.read, body=_edited(body, model), patience=_OPENING)

    @staticmethod
    def pause(ref: str) -> Call[Stream]:
        """Pause a stream: it stays attached, but is not read. Raises StreamerError."""
        return ServiceCalls.edit(ref, paused=True)

    @staticmethod
    def resume(ref: str) -> Call[Stream]:
        """Resume a paused stream. Raises StreamerError."""
        return ServiceCalls.edit(ref, paused=False)

    @staticmethod
    def detach(ref: str) -> Call[Stream]:
        """Detach a stream by id or name, and return its last state. Its results stay.

        Raises StreamerError(UNKNOWN_STREAM).
        """
        return Call("DELETE", f"/v1/streams/{_segment(ref)}", Stream.read)

    @staticmethod
    def streams() -> Flow[list[Stream]]:
        """Return all attached streams with their states and counters, oldest first."""
        found: list[Stream] = []
        cursor = None
        while True:
            place = {"limit": _MAX_PAGE, "cursor": cursor}
            page = yield Call("GET", "/v1/streams", StreamList.read, place)
            found += page.streams
            cursor = page.next_cursor
            if cursor is None:
                return found

    @staticmethod
    def stream(ref: str) -> Call[Stream]:
        """Return a stream by id or name. Raises StreamerError(UNKNOWN_STREAM)."""
        return Call("GET", f"/v1/streams/{_segment(ref)}", Stream.read)

    @staticmethod
    def snapshot(ref: str) -> Call[bytes]:
        """Return the newest frame of a stream as a JPEG.

        Raises StreamerError: UNKNOWN_STREAM, NO_FRAMES.
        """
        return Call("GET", f"/v1/streams/{_segment(ref)}/snapshot.jpg", bytes)

    @staticmethod
    def frames(
        ref: str, since: When, until: When = None, *, limit: int = 100
    ) -> Call[StoredFrameList]:
        """Return the frames of a range that are kept; of more than `limit`, evenly chosen ones.

        Raises StreamerError: UNKNOWN_STREAM, INVALID_REQUEST.
        """
        params = {**_range(since, until), "limit": limit}
        return Call("GET", f"/v1/streams/{_segment(ref)}/frames", StoredFrameList.read, params)

    @staticmethod
    def frames_of(query_id: str) -> Call[StoredFrameList]:
        """Return the frames behind the answer to a query. Raises StreamerError(UNKNOWN_QUERY)."""
        return Call("GET", f"/v1/queries/{_segment(query_id)}/frames", StoredFrameList.read)

    @staticmethod
    def picture(frame: StoredFrame) -> Call[bytes]:
        """Return a frame that a list named, as a JPEG. Raises StreamerError(FRAMES_EXPIRED)."""
        if frame.url is None:
            raise StreamerError(
                ErrorCode.FRAMES_EXPIRED,
                "The frame is not kept any more: raise frame_ttl or history to keep later ones.",
            )
        return Call("GET", frame.url, bytes)

    @staticmethod
    def clip(ref: str, since: When, until: When = None) -> Call[bytes]:
        """Return a video of a range, MP4, made of at most 256 frames that are kept.

        Raises StreamerError: UNKNOWN_STREAM, NO_FRAMES, INVALID_REQUEST.
        """
        path = f"/v1/streams/{_segment(ref)}/clip.mp4"
        return Call("GET", path, bytes, _range(since, until), patience=_OPENING)

    @staticmethod
    def upload(path: str | PathLike[str], *, resume: str | None = None) -> Flow[UploadedFile]:
        """Upload a video or a picture, and return its record.

        It is sent in parts, each of them again after a lost connection. `resume` is the id of an
        unfinished upload of the same file, of which only the rest is sent.

        Raises StreamerError: REQUEST_TOO_LARGE, STORAGE_FULL, a stream code for what is no video or
        picture, UNKNOWN_FILE, UPLOAD_CONFLICT; INVALID_REQUEST if the file cannot be read.
        """
        return upload(path, resume)

    @staticmethod
    def files(limit: int = 100) -> Call[list[UploadedFile]]:
        """Return up to `limit` uploaded files, newest first."""
        read = lambda body: FileList.read(body).files  # noqa: E731
        return Call("GET", "/v1/files", read, {"limit": limit})

    @staticmethod
    def file(file_id: str) -> Call[UploadedFile]:
        """Return what is known of an uploaded file. Raises StreamerError(UNKNOWN_FILE)."""
        return Call("GET", f"/v1/files/{_segment(file_id)}", UploadedFile.read)

    @staticmethod
    def delete_file(file_id: str) -> Call[UploadedFile]:
        """Delete an uploaded file and return its record. Raises StreamerError(UNKNOWN_FILE)."""
        return Call("DELETE", f"/v1/files/{_segment(file_id)}", UploadedFile.read)

    @staticmethod
    def submit(
        prompt: str,
        stream: str | None = None,
        *,
        streams: Sequence[str] | None = None,
        file: str | None = None,
        url: str | None = None,
        window: float | None = None,
        since: When = None,
        until: When = None,
        max_frames: int | None = None,
        max_tokens: int | None = None,
        response_format: ResponseFormat | None = None,
        model: str | None = None,
        stale_ok: bool = False,
    ) -> Call[Query]:
        """Ask about a stream now or, with `since`, about a past range; do not wait for the answer.

        `stream` is an id or name; it may be None if only one stream is attached. Times are aware
        datetimes, RFC 3339, or relative such as `-10m`. Several `streams`, an uploaded `file`, the
        `url` of a recording, and a range with a `window` in seconds are asked window by window, and
        the answer sums up what they show.

        Raises StreamerError: PROMPT_EMPTY, UNKNOWN_STREAM, NO_FRAMES, STREAM_STALE,
        INVALID_REQUEST, TOO_MANY_QUERIES.
        """
        body = {
            "prompt": prompt,
            "stream": stream,
            "streams": None if streams is None else list(streams),
            "file": file,
            "url": url,
            "window": window,
            "since": _time("since", since),
            "until": _time("until", until),
            "max_frames": max_frames,
            "max_tokens": max_tokens,
            "response_format": response_format,
            "model": model,
            "stale_ok": stale_ok,
        }
        return question_call(body)

    @staticmethod
    def ask(
        prompt: str,
        stream: str | None = None,
        *,
        streams: Sequence[str] | None = None,
        file: str | None = None,
        url: str | None = None,
        window: float | None = None,
        since: When = None,
        until: When = None,
        max_frames: int | None = None,
        max_tokens: int | None = None,
        response_format: ResponseFormat | None = None,
        model: str | None = None,
        stale_ok: bool = False,
        wait: float = 120.0,
    ) -> Flow[Result]:
        """Ask as `submit` does, wait up to `wait` seconds for the answer, and return it.

        Raises StreamerError: as `submit`; the error of the query if it failed; TIMEOUT if there is
        no answer in time, and the query goes on.
        """
        query = yield ServiceCalls.submit(
            prompt,
            stream,
            streams=streams,
            file=file,
            url=url,
            window=window,
            since=since,
            until=until,
            max_frames=max_frames,
            max_tokens=max_tokens,
            response_format=response_format,
            model=model,
            stale_ok=stale_ok,
        )
        return (yield from _answer(query, wait))

    @staticmethod
    def summarize(
        stream: str,
        since: When = "-1d",
        until: When = None,
        *,
        model: str | None = None,
        wait: float = 600.0,
    ) -> Flow[Result]:
        """Sum up what was recorded of a stream, wait up to `wait` seconds, and return the summary.

        Raises StreamerError: UNKNOWN_STREAM; NOT_FOUND without any result in the range; TIMEOUT.
        """
        query = yield summary_call(stream, since, until, model)
        return (yield from _answer(query, wait))

    @staticmethod
    def follow(query_id: str) -> Following:
        """Yield what becomes of a query until it has its result: its progress, and the pieces of
        its answer while it is written.

        Raises StreamerError(UNKNOWN_QUERY).
        """
        return Following(f"/v1/queries/{_segment(query_id)}/events")

    @staticmethod
    def query(query_id: str, wait: float = 0.0) -> Flow[Query]:
        """Return a query after waiting up to `wait` seconds for its result.

        Raises StreamerError(UNKNOWN_QUERY).
        """
        path = f"/v1/queries/{_segment(query_id)}"
        deadline = time.monotonic() + wait
        while True:
            left = min(_SLICE, max(0.0, deadline - time.monotonic()))
            query = yield Call("GET", path, Query.read, {"wait": round(left, 3)}, patience=left)
            if query.result is not None or time.monotonic() >= deadline:
                found: Query = query
                return found

    @staticmethod
    def queries(limit: int = 100) -> Call[list[Query]]:
        """Return up to `limit` queries, newest first."""
        read = lambda body: QueryList.read(body).queries  # noqa: E731
        return Call("GET", "/v1/queries", read, {"limit": limit})

    @staticmethod
    def cancel(query_id: str) -> Call[Query]:
        """Cancel a query; one that has a result is returned unchanged.

        Raises StreamerError(UNKNOWN_QUERY).
        """
        return Call("DELETE", f"/v1/queries/{_segment(query_id)}", Query.read)

    @staticmethod
    def results_page(
        *,
        stream: str | None = None,
        kind: Kind | None = None,
        since: When = None,
        until: When = None,
        q: str | None = None,
        limit: int = 100,
        cursor: str | None = None,
        mode: SearchMode = "words",
        verify: bool = False,
        wait: float = 0.0,
    ) -> Call[ResultPage]:
        """Return up to `limit` recorded results, newest first; see `results`.

        `cursor` is the `next_cursor` of the page before. With the mode `meaning`, those whose
        meaning is nearest to `q`, the nearest first. With `verify`, the model is asked whether the
        frames of each hit show `q`; `matches` of the page has its verdicts, for which the server
        waits up to `wait` seconds, at most 60.

        Raises StreamerError: INVALID_REQUEST, UNKNOWN_STREAM, DATABASE_UNAVAILABLE,
        SEARCH_UNAVAILABLE.
        """
        params: dict[str, str | float | None] = {
            "stream": stream,
            "kind": kind,
            "since": _time("since", since),
            "until": _time("until", until),
            "q": q,
            "limit": limit,
            "cursor": cursor,
        }
        if mode != "words" or verify:  # which an older server does not know
            params |= {"mode": mode, "verify": str(verify).lower(), "wait": wait}
        return Call("GET", "/v1/results", ResultPage.read, params, patience=wait)

    @staticmethod
    def results(
        *,
        stream: str | None = None,
        kind: Kind | None = None,
        since: When = None,
        until: When = None,
        q: str | None = None,
        limit: int | None = None,
        page_size: int = 100,
    ) -> Paged[Result]:
        """Yield recorded results, newest first, up to `limit`; pages are fetched as needed.

        `stream` is the id or name of an attached or detached stream; `q` is a text to search for.

        Raises StreamerError: INVALID_REQUEST, UNKNOWN_STREAM, DATABASE_UNAVAILABLE.
        """
        page = partial(
            ServiceCalls.results_page, stream=stream, kind=kind, since=since, until=until, q=q
        )
        return Paged(page, lambda found: found.results, limit, _page_size(page_size))

    @staticmethod
    def events(
        *,
        streams: Sequence[str] | None = None,
        types: Sequence[str] | None = None,
        after: str | None = None,
    ) -> Listening:
        """Yield what happens from the first step of the iteration on, without end.

        `streams` are ids and names, `types` such as `result.created` or `incident.*`; None: all.
        `after` is the id of an event: begin with the one that came after it. A lost connection is
        made again, and no event is missing or comes twice, except where one of the type `resync`
        says that some are no longer kept.

        Raises StreamerError: INVALID_REQUEST, TOO_MANY_LISTENERS.
        """
        return Listening(streams, types, after)

    @staticmethod
    def health() -> Call[Readiness]:
        """Return the state of the installation: of each program and server that it needs."""
        return Call("GET", "/readyz", Readiness.read, also=frozenset({503}))


class WatchCalls:
    """Calls for the watches of one stream."""

    @staticmethod
    def add(
        ref: str,
        prompt: str,
        *,
        window: float | None = None,
        max_frames: int | None = None,
        max_tokens: int | None = None,
        response_format: ResponseFormat | None = None,
        alert: AlertRule | None = None,
        model: str | None = None,
    ) -> Call[Watch]:
        """Add a watch to a stream; what is left out is set by the server's settings.

        With `alert`, its answers are yes or no, and open incidents by this rule.

        Raises StreamerError: UNKNOWN_STREAM, PROMPT_EMPTY, INVALID_REQUEST.
        """
        body = {
            "prompt": prompt,
            "window": window,
            "max_frames": max_frames,
            "max_tokens": max_tokens,
            "response_format": response_format,
            "alert": alert,
            "model": model,
        }
        return _post(f"/v1/streams/{_segment(ref)}/watches", Watch, body)

    @staticmethod
    def list(ref: str) -> Call[list[Watch]]:
        """Return the watches of a stream, oldest first. Raises StreamerError(UNKNOWN_STREAM)."""
        path = f"/v1/streams/{_segment(ref)}/watches"
        return Call("GET", path, lambda body: WatchList.read(body).watches)

    @staticmethod
    def get(ref: str, watch_id: str) -> Call[Watch]:
        """Return a watch. Raises StreamerError(UNKNOWN_STREAM | UNKNOWN_WATCH)."""
        return Call("GET", f"/v1/streams/{_segment(ref)}/watches/{_segment(watch_id)}", Watch.read)

    @staticmethod
    def edit(
        ref: str,
        watch_id: str,
        *,
        prompt: str | None = None,
        window: float | None = None,
        max_frames: int | None = None,
        max_tokens: int | None = None,
        response_format: ResponseFormat | None = None,
        alert: AlertRule | None = None,
        model: str | Unchanged | None = UNCHANGED,
    ) -> Call[Watch]:
        """Change a watch, which keeps its id; arguments that are None change nothing,
        except that `model` then is that of the stream again.

        Of an alert's rule change the fields that `alert` sets.

        Raises StreamerError: UNKNOWN_STREAM, UNKNOWN_WATCH, PROMPT_EMPTY, INVALID_REQUEST.
        """
        body = {
            "prompt": prompt,
            "window": window,
            "max_frames": max_frames,
            "max_tokens": max_tokens,
            "response_format": response_format,
            "alert": alert and alert.model_dump(mode="json", exclude_unset=True),
        }
        path = f"/v1/streams/{_segment(ref)}/watches/{_segment(watch_id)}"
        return Call("PATCH", path, Watch.read, body=_edited(body, model))

    @staticmethod
    def remove(ref: str, watch_id: str) -> Call[Watch]:
        """Remove a watch and return it. Its results stay.

        Raises StreamerError(UNKNOWN_STREAM | UNKNOWN_WATCH).
        """
        path = f"/v1/streams/{_segment(ref)}/watches/{_segment(watch_id)}"
        return Call("DELETE", path, Watch.read)


class IncidentCalls:
    """Calls for what alerts have found."""

    @staticmethod
    def page(
        *,
        state: Literal["pending", "open", "resolved"] | None = None,
        stream: str | None = None,
        watch: str | None = None,
        severity: Severity | None = None,
        since: When = None,
        unseen: bool = False,
        limit: int = 100,
        cursor: str | None = None,
    ) -> Call[IncidentList]:
        """Return up to `limit` incidents, newest first; pending ones only with that `state`.

        `since`: those that are open or have changed since then. `unseen`: those that no one has
        seen. `cursor` is the `next_cursor` of the page before.

        Raises StreamerError: INVALID_REQUEST, DATABASE_UNAVAILABLE.
        """
        params = {
            "state": state,
            "stream": stream,
            "watch": watch,
            "severity": severity,
            "since": _time("since", since),
            "unseen": unseen or None,
            "limit": limit,
            "cursor": cursor,
        }
        return Call("GET", "/v1/incidents", IncidentList.read, params)

    @staticmethod
    def list(
        *,
        state: Literal["pending", "open", "resolved"] | None = None,
        stream: str | None = None,
        watch: str | None = None,
        severity: Severity | None = None,
        since: When = None,
        unseen: bool = False,
        limit: int | None = None,
    ) -> Paged[Incident]:
        """Yield the incidents of `page`, up to `limit`; pages are fetched as needed.

        Raises StreamerError: INVALID_REQUEST, DATABASE_UNAVAILABLE.
        """
        page = partial(
            IncidentCalls.page,
            state=state,
            stream=stream,
            watch=watch,
            severity=severity,
            since=since,
            unseen=unseen,
        )
        return Paged(page, lambda found: found.incidents, limit, _page_size(100))

    @staticmethod
    def get(incident_id: str) -> Call[Incident]:
        """Return an incident. Raises StreamerError(UNKNOWN_INCIDENT)."""
        return Call("GET", f"/v1/incidents/{_segment(incident_id)}", Incident.read)

    @staticmethod
    def see(incident_id: str, by: str | None = None) -> Call[Incident]:
        """Note that a person, by default the API key's name, has seen an incident.

        Raises StreamerError(UNKNOWN_INCIDENT).
        """
        return _judgement(incident_id, {"seen": True, "by": by})

    @staticmethod
    def acknowledge(
        incident_id: str, by: str | None = None, note: str | None = None
    ) -> Call[Incident]:
        """Note who takes care of an incident; the first one stays.

        Raises StreamerError(UNKNOWN_INCIDENT).
        """
        return _judgement(incident_id, {"acknowledged": True, "by": by, "note": note})

    @staticmethod
    def judge(
        incident_id: str,
        verdict: Literal["right", "wrong", "unsure"],
        by: str | None = None,
        note: str | None = None,
    ) -> Call[Incident]:
        """Note whether an incident was right. Raises StreamerError(UNKNOWN_INCIDENT)."""
        feedback = _json({"verdict": verdict, "note": note})
        return _judgement(incident_id, {"feedback": feedback, "by": by})

    @staticmethod
    def resolve(incident_id: str) -> Call[Incident]:
        """End an incident; one that has ended is returned unchanged.

        Raises StreamerError: UNKNOWN_INCIDENT; INVALID_REQUEST for one that is pending.
        """
        return _judgement(incident_id, {"state": "resolved"})

    @staticmethod
    def snapshot(
        incident_id: str, which: Literal["opened", "best", "last"] = "best"
    ) -> Call[bytes]:
        """Return a picture of an incident as a JPEG: of the window that opened it, the most
        probable or the newest one.

        Raises StreamerError: UNKNOWN_INCIDENT, NO_FRAMES.
        """
        path = f"/v1/incidents/{_segment(incident_id)}/snapshot.jpg"
        return Call("GET", path, bytes, {"which": which})

    @staticmethod
    def clip(incident_id: str) -> Call[bytes]:
        """Return a video of an incident, MP4, made of the frames that are still kept.

        Raises StreamerError: UNKNOWN_INCIDENT, NO_FRAMES.
        """
        return Call("GET", f"/v1/incidents/{_segment(incident_id)}/clip.mp4", bytes)


class SilenceCalls:
    """Calls for silences: incidents that they match are recorded, and not delivered."""

    @staticmethod
    def add(
        matchers: Sequence[Matcher] | Mapping[str, str],
        *,
        minutes: float | None = None,
        starts_at: datetime | None = None,
        ends_at: datetime | None = None,
        reason: str = "",
        created_by: str | None = None,
    ) -> Call[Silence]:
        """Add a silence for incidents that fulfil all matchers, for some `minutes` or to `ends_at`.

        A mapping of labels to values, such as `{"stream": "lobby"}`, stands for equality.

        Raises StreamerError(INVALID_REQUEST).
        """
        if isinstance(matchers, Mapping):
            matchers = [Matcher(name=name, value=value) for name, value in matchers.items()]
        body = {
            "matchers": [_plain(matcher) for matcher in matchers],
            "minutes": minutes,
            "starts_at": _time("starts_at", starts_at),
            "ends_at": _time("ends_at", ends_at),
            "reason": reason,
            "created_by": created_by,
        }
        return _post("/v1/silences", Silence, body)

    @staticmethod
    def list() -> Call[list[Silence]]:
        """Return the silences that have not ended, those that end first first."""
        return Call("GET", "/v1/silences", lambda body: SilenceList.read(body).silences)

    @staticmethod
    def get(silence_id: str) -> Call[Silence]:
        """Return a silence. Raises StreamerError(UNKNOWN_SILENCE)."""
        return Call("GET", f"/v1/silences/{_segment(silence_id)}", Silence.read)

    @staticmethod
    def end(silence_id: str) -> Call[Silence]:
        """End a silence and return it; incidents that are still open are delivered.

        Raises StreamerError(UNKNOWN_SILENCE).
        """
        return Call("DELETE", f"/v1/silences/{_segment(silence_id)}", Silence.read)


class WebhookCalls:
    """Calls for the programs that are sent events."""

    @staticmethod
    def add(
        url: str,
        *,
        types: Sequence[str] | None = None,
        streams: Sequence[str] | None = None,
        description: str | None = None,
        enabled: bool = True,
    ) -> Call[NewWebhook]:
        """Add a program to send events to; the record has its `secret`, which is not shown again.

        `types` are such as `result.created` or `incident.*`, `streams` ids or names; None: all.

        Raises StreamerError: INVALID_REQUEST, WEBHOOK_URL_FORBIDDEN.
        """
        body = _webhook(url, types, streams, description, enabled)
        return _post("/v1/webhooks", NewWebhook, body)

    @staticmethod
    def list() -> Call[list[Webhook]]:
        """Return all webhooks, oldest first."""
        return Call("GET", "/v1/webhooks", lambda body: WebhookList.read(body).webhooks)

    @staticmethod
    def get(webhook_id: str) -> Call[Webhook]:
        """Return a webhook. Raises StreamerError(UNKNOWN_WEBHOOK)."""
        return Call("GET", f"/v1/webhooks/{_segment(webhook_id)}", Webhook.read)

    @staticmethod
    def edit(
        webhook_id: str,
        *,
        url: str | None = None,
        types: Sequence[str] | None = None,
        streams: Sequence[str] | None = None,
        description: str | None = None,
        enabled: bool | None = None,
    ) -> Call[Webhook]:
        """Change a webhook; arguments that are None change nothing.

        Raises StreamerError: UNKNOWN_WEBHOOK, INVALID_REQUEST, WEBHOOK_URL_FORBIDDEN.
        """
        body = _webhook(url, types, streams, description, enabled)
        path = f"/v1/webhooks/{_segment(webhook_id)}"
        return Call("PATCH", path, Webhook.read, body=body)

    @staticmethod
    def remove(webhook_id: str) -> Call[Webhook]:
        """Remove a webhook and its deliveries, and return it.

        Raises StreamerError(UNKNOWN_WEBHOOK).
        """
        return Call("DELETE", f"/v1/webhooks/{_segment(webhook_id)}", Webhook.read)

    @staticmethod
    def deliveries(webhook_id: str, *, limit: int | None = None) -> Paged[Delivery]:
        """Yield the deliveries of a webhook, newest first, up to `limit`.

        Raises StreamerError(UNKNOWN_WEBHOOK).
        """
        path = f"/v1/webhooks/{_segment(webhook_id)}/deliveries"

        def page(limit: int, cursor: str | None) -> Call[DeliveryPage]:
            return Call("GET", path, DeliveryPage.read, {"limit": limit, "cursor": cursor})

        return Paged(page, lambda found: found.deliveries, limit, _page_size(100))

    @staticmethod
    def retry(webhook_id: str, delivery_id: str) -> Call[Delivery]:
        """Send a message again now. Raises StreamerError: UNKNOWN_WEBHOOK, UNKNOWN_DELIVERY."""
        webhook, delivery = _segment(webhook_id), _segment(delivery_id)
        return _post(f"/v1/webhooks/{webhook}/deliveries/{delivery}/retry", Delivery, {})

    @staticmethod
    def test(webhook_id: str) -> Call[Delivery]:
        """Send a message of type `webhook.test`. Raises StreamerError(UNKNOWN_WEBHOOK)."""
        return _post(f"/v1/webhooks/{_segment(webhook_id)}/test", Delivery, {})


def question_call(fields: Mapping[str, Any]) -> Call[Query]:
    """Return the call that asks a question with these fields, which are None where not given."""
    return _post("/v1/queries", Query, fields, patience=_FIRST_FRAME)


def summary_call(stream: str, since: When, until: When, model: str | None) -> Call[Query]:
    """Return the call that lets a range of a stream be summed up."""
    path = f"/v1/streams/{_segment(stream)}/summary"
    return _post(path, Query, {**_range(since, until), "model": model}, patience=_OPENING)


def _answer(query: Query, wait: float) -> Flow[Result]:
    """Wait up to `wait` seconds for the answer to a query, and return it.

    Raises StreamerError: the error of the query; TIMEOUT if there is no answer in time.
    """
    query = yield from ServiceCalls.query(query.id, wait=wait)
    if query.result is None:
        raise StreamerError(
            ErrorCode.TIMEOUT,
            f"No answer within {wait:g} s: query {query.id} is {query.status}. Wait longer, or "
            "ask for it later by this id.",
        )
    result: Result = query.result
    if result.error is not None:
        raise StreamerError(result.error.code, result.error.message)
    return result


def _range(since: When, until: When) -> dict[str, str | None]:
    return {"since": _time("since", since), "until": _time("until", until)}


def _judgement(incident_id: str, fields: Mapping[str, Any]) -> Call[Incident]:
    path = f"/v1/incidents/{_segment(incident_id)}"
    return Call("PATCH", path, Incident.read, body=_json(fields))


def _webhook(
    url: str | None,
    types: Sequence[str] | None,
    streams: Sequence[str] | None,
    description: str | None,
    enabled: bool | None,
) -> dict[str, Any]:
    """Return the body that adds or changes a webhook: the fields that are not None."""
    return _json(
        {
            "url": url,
            "types": None if types is None else [*types],
            "streams": None if streams is None else [*streams],
            "description": description,
            "enabled": enabled,
        }
    )


def _page_size(wanted: int) -> int:
    return max(1, min(wanted, _MAX_PAGE))


def _post(
    path: str, record: type[_Record], body: Mapping[str, Any], patience: float = 0.0
) -> Call[_Record]:
    return Call("POST", path, record.read, body=_json(body), patience=patience)


def _json(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of a body that are given, records as JSON."""
    return {name: _plain(value) for name, value in fields.items() if value is not None}


def _edited(fields: Mapping[str, Any], model: str | Unchanged | None) -> dict[str, Any]:
    """Return the fields of a change: of those that are None only the model."""
    return _json(fields) if model is UNCHANGED else {**_json(fields), "model": model}


def _plain(value: Any) -> Any:
    dump: Callable[..., Any] | None = getattr(value, "model_dump", None)
    return value if dump is None else dump(mode="json", exclude_none=True)


def _watches(watches: Sequence[WatchLike] | None) -> list[dict[str, Any]] | None:
    if watches is None:
        return None
    return [{"prompt": watch} if isinstance(watch, str) else watch_body(watch) for watch in watches]


def watch_body(watch: Watch) -> dict[str, Any]:
    """Return what a watch sets, as JSON: the server has other defaults than the record."""
    return {name: v for name, v in _plain(watch).items() if name in watch.model_fields_set}


def _time(name: str, when: When) -> str | None:
    if not isinstance(when, datetime):
        return when
    if when.tzinfo is None:
        raise StreamerError(
            ErrorCode.INVALID_REQUEST,
            f"'{when.isoformat()}' has no time zone: use datetime.now(UTC), or .astimezone().",
            name,
        )
    return when.isoformat()


def _segment(ref: str) -> str:
    """Return an id or name as a part of a path."""
    if not ref:
        raise StreamerError(ErrorCode.INVALID_REQUEST, "The id is empty: give an id or a name.")
    return quote(ref, safe="")
