"""An installation on another machine: what commands use of `Service`, through the HTTP API."""

import sys
from collections.abc import Iterator
from datetime import datetime
from typing import TYPE_CHECKING, Any, Literal, Self

from streamer.domain.part import Part
from streamer.domain.query import Query
from streamer.domain.result import Result
from streamer.domain.stream import Stream
from streamer.domain.timestamp import to_datetime
from streamer.domain.watch import Watch
from streamer.errors import ErrorCode, StreamerError
from streamer.http_client import Client
from streamer.http_client.calls import question_call, summary_call, watch_body
from streamer.http_client.listening import FirstEvent
from streamer.limits import check_prompt
from streamer.validation import validated

if TYPE_CHECKING:
    from streamer.api.schemas import IncidentList
    from streamer.domain.question import Question
    from streamer.domain.summaries import Summary
    from streamer.incidents.records import Feedback, Incident
    from streamer.incidents.silences import Silence
    from streamer.times import When

_MAX_RECORDED = 1000
"""Results of the timeline that are shown before those that are followed."""


class RemoteInstallation:
    """The methods of `streamer.service.Service` that commands use; close it when done.

    Its methods raise StreamerError, as those of Client do.
    """

    def __init__(self, client: Client) -> None:
        self._client = client
        self.watches = _Watches(client)
        self.incidents = _Incidents(client)
        self.queue = _Queue(client)
        self.health = self.jobs = _Health(client)
        self.attach = client.attach
        self.discover = client.discover
        self.edit = client.edit
        self.streams = client.streams
        self.detach = client.detach
        self.query = client.query
        self.cancel = client.cancel
        self.results = client.results_page
        self.upload = client.upload

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close()

    def stream(self, ref: str) -> Stream:
        """Return a stream by id or name."""
        return self._client.stream(ref)

    def now(self) -> datetime:
        """Return the time of the service, from which `-10m` counts."""
        return next(self._client.listen(FirstEvent())).now

    def watch(self, prompt: str, **given: Any) -> Watch:
        """Make a watch; what is None is not set, so that the server's settings decide."""
        check_prompt(prompt)
        fields = {name: value for name, value in given.items() if value is not None}
        return validated(Watch, prompt=prompt, **fields)

    def submit(self, question: "Question", wait: float | None = None) -> Query:
        """Submit a question; the server decides how long it waits for a first frame."""
        return self._client.send(question_call(question.as_asked))

    def summarize(
        self, stream: str, since: "When", until: "When" = None, *, model: str | None = None
    ) -> Query:
        """Submit what was recorded of a stream to be summed up."""
        return self._client.send(summary_call(stream, since, until, model))

    def summary_of(self, stream: str, since: "When", until: "When" = None) -> "Summary":
        """Return what was recorded of a stream in a range, in blocks, without a summary."""
        from streamer.domain.summaries import MAX_SUMMARISED, summary_of
        from streamer.terminal import by_time
        from streamer.times import moment

        found = self._client.results(
            stream=stream, since=since, until=until, limit=MAX_SUMMARISED, page_size=1000
        )
        now = self.now()
        start, end = moment(since, now) or now, moment(until, now) or now
        return summary_of(stream, start, end, by_time(list(found)))

    def require_worker(self) -> None:
        """Raise StreamerError(NO_WORKER) if no model worker is running, nor loading its model."""
        for part in self.health.missing():
            if part.name == "model worker" and part.state in ("missing", None):
                raise StreamerError(ErrorCode.NO_WORKER, part.message or "No model worker runs.")

    def require_results_of(self, stream: str) -> None:
        """Raise StreamerError(UNKNOWN_STREAM) unless `stream` is attached or has results."""
        self._client.results_page(stream=stream, limit=1)


class _Watches:
    def __init__(self, client: Client) -> None:
        self._watches = client.watches
        self.edit, self.remove = client.watches.edit, client.watches.remove

    def add(self, ref: str, watch: Watch) -> Watch:
        """Add a watch to a stream."""
        given = {name: getattr(watch, name) for name in watch_body(watch)}
        return self._watches.add(ref, **given)


class _Incidents:
    def __init__(self, client: Client) -> None:
        self._incidents, self._silences = client.incidents, client.silences
        self.get, self.acknowledge = client.incidents.get, client.incidents.acknowledge
        self.silences, self.end_silence = client.silences.list, client.silences.end

    def page(
        self,
        *,
        state: Literal["pending", "open", "resolved"] | None = None,
        stream: str | None = None,
        severity: Literal["info", "warning", "critical"] | None = None,
        since: "When" = None,
        unseen: bool = False,
        limit: int = 100,
    ) -> "IncidentList":
        """Return incidents, newest first."""
        return self._incidents.page(
            state=state, stream=stream, severity=severity, since=since, unseen=unseen, limit=limit
        )

    def judge(self, incident_id: str, feedback: "Feedback") -> "Incident":
        """Note whether an incident was right."""
        return self._incidents.judge(incident_id, feedback.verdict, feedback.by, feedback.note)

    def resolve(self, incident_id: str) -> "Incident":
        """End an incident."""
        return self._incidents.resolve(incident_id)

    def silence(self, silence: "Silence") -> "Silence":
        """Add a silence."""
        return self._silences.add(
            silence.matchers,
            starts_at=silence.starts_at,
            ends_at=silence.ends_at,
            reason=silence.reason,
            created_by=silence.created_by,
        )


class _Queue:
    def __init__(self, client: Client) -> None:
        self._client = client

    def follow(self, last_id: str = "$") -> Iterator[tuple[str, Result]]:
        """Yield results that come after `last_id`, with their ids; `$`: from now on.

        Those that are older than the oldest event that is kept are of the timeline.
        """
        after = None if last_id == "$" else last_id
        shown: set[str] = set()
        hello = next(self._client.listen(FirstEvent())) if after is not None else None
        if after is not None and hello is not None and not _is_kept(after, hello.oldest):
            after = hello.oldest or hello.position
            for result in self._recorded(_time_of(last_id), _time_of(after)):
                shown.add(result.id)
                yield last_id, result
        for event in self._client.events(types=["result.created"], after=after):
            if event.result is not None:
                if event.result.id not in shown:
                    yield event.id, event.result
            else:
                print("Some results are missing here: see `streamer results`.", file=sys.stderr)

    def _recorded(self, since: datetime, until: datetime) -> "list[Result]":
        from streamer.terminal import by_time

        found = self._client.results(
            since=since, until=until, limit=_MAX_RECORDED, page_size=_MAX_RECORDED
        )
        return by_time(list(found))


def _is_kept(after: str, oldest: str | None) -> bool:
    """Return whether all events after the id `after` are kept."""
    return oldest is not None and _order(oldest) <= _order(after)


def _order(event_id: str) -> tuple[int, int]:
    milliseconds, _, number = event_id.partition("-")
    return int(milliseconds), int(number or 0)


def _time_of(event_id: str) -> datetime:
    return to_datetime(_order(event_id)[0] / 1000)


class _Health:
    """The parts of the installation, asked for once."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._parts: list[Part] | None = None

    def missing(self) -> list[Part]:
        """Return the parts that do not work."""
        if self._parts is None:
            self._parts = self._client.health().parts
        return [part for part in self._parts if not part.up]

    def workers(self) -> dict[str, int]:
        """Return 0 or 1 for `ingest` and `clips`: whether workers of that kind run."""
        away = {part.name for part in self.missing() if part.state != "impaired"}
        return {
            "ingest": int("ingest worker" not in away),
            "clips": int("model worker" not in away),
        }

    def model_loading(self) -> bool:
        """Return whether a model worker is loading its model."""
        return any(part.state == "loading" for part in self.missing())
