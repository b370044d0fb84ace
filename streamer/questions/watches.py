"""Add, change and remove the watches of a stream one by one.

A change is computed from the stream's current record and written only if the record has not
changed meanwhile (`StreamRegistry.edit`), so concurrent changes do not undo each other.
"""

from collections.abc import Callable
from typing import Any

from streamer.alert_rule import AlertRule, merged_rule
from streamer.domain.stream import UNCHANGED, Stream, StreamSpec, StreamState, Unchanged
from streamer.domain.watch import ALERT_FORMAT, Watch
from streamer.errors import ErrorCode, StreamerError, about
from streamer.limits import MAX_WATCHES, check_prompt
from streamer.queues.jobs import Jobs
from streamer.response_format import ResponseFormat
from streamer.sources.streams import StreamRegistry
from streamer.validation import validated


class Watches:
    """Watches of the streams in `registry`; a change also restarts a lost ingest job."""

    def __init__(self, registry: StreamRegistry, jobs: Jobs) -> None:
        self._registry = registry
        self._jobs = jobs

    def get(self, ref: str, watch_id: str) -> Watch:
        """Return a watch of a stream. Raises StreamerError(UNKNOWN_STREAM | UNKNOWN_WATCH)."""
        return _find(self._registry.get(ref), watch_id)

    def add(self, ref: str, watch: Watch) -> Watch:
        """Add a watch to a stream and return it.

        Raises StreamerError: UNKNOWN_STREAM, PROMPT_EMPTY; INVALID_REQUEST if the stream already
        has this watch or `MAX_WATCHES` watches, or is a recording that has been read to its end;
        UNKNOWN_MODEL.
        """
        check_watch(watch)
        self._jobs.served.require(watch.model)
        require_open(self._registry.get(ref))

        def change(spec: StreamSpec) -> tuple[list[Watch], Watch]:
            if any(each.id == watch.id for each in spec.watches):
                raise StreamerError(
                    ErrorCode.INVALID_REQUEST,
                    f"'{spec.name}' already has the watch {watch.id}: create a new one.",
                )
            if len(spec.watches) >= MAX_WATCHES:
                raise StreamerError(
                    ErrorCode.INVALID_REQUEST,
                    f"'{spec.name}' has the maximum of {MAX_WATCHES} watches: remove one first.",
                )
            return [*spec.watches, watch], watch

        return self._change(ref, change)

    def edit(
        self,
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
    ) -> Watch:
        """Change a watch, which keeps its id; arguments that are None change nothing,
        except that `model` then is that of the stream again.

        Of an alert's rule change the fields that `alert` sets. Unless `window` or `max_frames`
        changes, the open window keeps its frames and is answered with the new question.

        Raises StreamerError: UNKNOWN_STREAM, UNKNOWN_WATCH, UNKNOWN_MODEL, PROMPT_EMPTY,
        INVALID_REQUEST.
        """
        if model is not UNCHANGED:
            self._jobs.served.require(model)
        if prompt is not None:
            check_prompt(prompt)
        if response_format is not None:
            with about("response_format"):
                response_format.check()
        check_alert(alert)
        given: dict[str, Any] = {
            "prompt": prompt,
            "window": window,
            "max_frames": max_frames,
            "max_tokens": max_tokens,
            "response_format": response_format,
        }
        fields = {name: value for name, value in given.items() if value is not None}
        if model is not UNCHANGED:
            fields["model"] = model
        require_open(self._registry.get(ref))

        def change(spec: StreamSpec) -> tuple[list[Watch], Watch]:
            old = _find(spec, watch_id)
            if alert is not None:
                fields["alert"] = alert if old.alert is None else _changed(old.alert, alert)
                # of a watch that was none, unless the caller gives it one
                fields.setdefault("response_format", ALERT_FORMAT)
            new = validated(Watch, **old.model_dump() | fields)
            return [new if each.id == watch_id else each for each in spec.watches], new

        return self._change(ref, change)

    def remove(self, ref: str, watch_id: str) -> Watch:
        """Remove a watch and return it.

        Raises StreamerError(UNKNOWN_STREAM | UNKNOWN_WATCH).
        """

        def change(spec: StreamSpec) -> tuple[list[Watch], Watch]:
            gone = _find(spec, watch_id)
            return [each for each in spec.watches if each.id != watch_id], gone

        return self._change(ref, change)

    def _change(self, ref: str, change: Callable[[StreamSpec], tuple[list[Watch], Watch]]) -> Watch:
        concerned: list[Watch] = []  # one per attempt; the last attempt was written

        def fields(spec: StreamSpec) -> dict[str, Any]:
            watches, watch = change(spec)
            concerned.append(watch)
            return {"watches": watches}

        stream = self._registry.edit(ref, fields)
        if stream.live:
            self._jobs.start_ingest(stream.id)
        return concerned[-1]


def check_watch(watch: Watch) -> None:
    """Raise StreamerError: PROMPT_EMPTY, PROMPT_TOO_LONG; INVALID_REQUEST for a form that no answer
    can have."""
    check_prompt(watch.prompt)
    with about("response_format"):
        watch.response_format.check()
    check_alert(watch.alert)


def check_alert(alert: AlertRule | None) -> None:
    """Raise StreamerError(PROMPT_EMPTY) for a rule that would ask the model nothing."""
    if alert is not None and isinstance(alert.describe, str):
        with about("alert.describe"):
            check_prompt(alert.describe)


def _changed(rule: AlertRule, changes: AlertRule) -> AlertRule:
    with about("alert"):
        return validated(AlertRule, **merged_rule(rule, changes))


def require_open(stream: Stream) -> None:
    """Raise StreamerError(INVALID_REQUEST) for a recording that has been read to its end."""
    if not stream.live and stream.state in (StreamState.ENDED, StreamState.FAILED):
        raise StreamerError(
            ErrorCode.INVALID_REQUEST,
            f"The recording '{stream.name}' has been read to its end: ask about it with a query, "
            "or attach it again with these watches.",
        )


def _find(spec: StreamSpec, watch_id: str) -> Watch:
    for watch in spec.watches:
        if watch.id == watch_id:
            return watch
    raise StreamerError(
        ErrorCode.UNKNOWN_WATCH,
        f"The stream '{spec.name}' has no watch '{watch_id[:80]}': "
        "`streamer watch list` shows its watches.",
    )
