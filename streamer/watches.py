"""The standing questions of a stream: added, changed and removed one by one.

Each change is made from what the stream is at that moment and written only if it still is that
(`StreamRegistry.edit`): of many who change watches of one stream at once, none undoes another.
"""

from collections.abc import Callable
from typing import Any

from streamer.answer_form import AnswerForm, check_form
from streamer.domain import MAX_WATCHES, Stream, StreamSpec, StreamState, Watch
from streamer.errors import ErrorCode, StreamerError
from streamer.jobs import Jobs
from streamer.streams import StreamRegistry
from streamer.validation import check_prompt, validated


class Watches:
    """The watches of the streams in `registry`; an edited live stream is seen to be running."""

    def __init__(self, registry: StreamRegistry, jobs: Jobs) -> None:
        self._registry = registry
        self._jobs = jobs

    def get(self, ref: str, watch_id: str) -> Watch:
        """One watch of a stream. Raises StreamerError(UNKNOWN_STREAM | UNKNOWN_WATCH)."""
        return _find(self._registry.get(ref), watch_id)

    def add(self, ref: str, watch: Watch) -> Watch:
        """Ask a stream one more question.

        Raises StreamerError: UNKNOWN_STREAM, PROMPT_EMPTY; INVALID_REQUEST when the stream has
        this watch already or `MAX_WATCHES`, or is a recording that nothing more is read of.
        """
        check_prompt(watch.prompt)
        require_open(self._registry.get(ref))

        def change(spec: StreamSpec) -> tuple[list[Watch], Watch]:
            if any(each.id == watch.id for each in spec.watches):
                raise StreamerError(
                    ErrorCode.INVALID_REQUEST,
                    f"'{spec.name}' has the watch {watch.id} already: make another one.",
                )
            if len(spec.watches) >= MAX_WATCHES:
                raise StreamerError(
                    ErrorCode.INVALID_REQUEST,
                    f"'{spec.name}' has {MAX_WATCHES} watches, the most there may be: remove one.",
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
        form: AnswerForm | None = None,
    ) -> Watch:
        """Change a watch, which keeps its id; what is None stays as it is.

        Unless its window or its frames are changed, what was gathered of the window that is open
        is kept, and the answer to come is that to the new question.

        Raises StreamerError: UNKNOWN_STREAM, UNKNOWN_WATCH, PROMPT_EMPTY, INVALID_REQUEST.
        """
        if prompt is not None:
            check_prompt(prompt)
        if form is not None:
            check_form(form)
        given = {
            "prompt": prompt,
            "window": window,
            "max_frames": max_frames,
            "max_tokens": max_tokens,
        }
        fields = {name: value for name, value in given.items() if value is not None}
        fields |= form.form if form is not None else {}
        require_open(self._registry.get(ref))

        def change(spec: StreamSpec) -> tuple[list[Watch], Watch]:
            new = validated(Watch, **_find(spec, watch_id).model_dump() | fields)
            return [new if each.id == watch_id else each for each in spec.watches], new

        return self._change(ref, change)

    def remove(self, ref: str, watch_id: str) -> Watch:
        """Ask a question no more; what it was is returned.

        Raises StreamerError(UNKNOWN_STREAM | UNKNOWN_WATCH).
        """

        def change(spec: StreamSpec) -> tuple[list[Watch], Watch]:
            gone = _find(spec, watch_id)
            return [each for each in spec.watches if each.id != watch_id], gone

        return self._change(ref, change)

    def _change(self, ref: str, change: Callable[[StreamSpec], tuple[list[Watch], Watch]]) -> Watch:
        concerned: list[Watch] = []  # the last is that of the attempt that was written

        def fields(spec: StreamSpec) -> dict[str, Any]:
            watches, watch = change(spec)
            concerned.append(watch)
            return {"watches": watches}

        stream = self._registry.edit(ref, fields)
        if stream.live:
            self._jobs.start_ingest(stream.id)
        return concerned[-1]


def require_open(stream: Stream) -> None:
    """Raise StreamerError(INVALID_REQUEST) for a recording that nothing more will be read of."""
    if not stream.live and stream.state in (StreamState.ENDED, StreamState.FAILED):
        raise StreamerError(
            ErrorCode.INVALID_REQUEST,
            f"Nothing more is read of the recording '{stream.name}': ask about it with a query, "
            "or attach it again with these watches.",
        )


def _find(spec: StreamSpec, watch_id: str) -> Watch:
    for watch in spec.watches:
        if watch.id == watch_id:
            return watch
    raise StreamerError(
        ErrorCode.UNKNOWN_WATCH,
        f"There is no watch '{watch_id[:80]}' on the stream '{spec.name}': "
        "`streamer streams --json` shows those there are.",
    )
