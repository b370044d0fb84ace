"""Define the records of results, and of the hits of a search."""

from typing import Any, Literal, Self

from pydantic import Field

from streamer.alert_rule import AlertRule
from streamer.domain.error_info import ErrorInfo
from streamer.domain.frame import FrameResolution, Gap
from streamer.domain.ids import new_id
from streamer.domain.kinds import RequestKind, ResultKind
from streamer.domain.record import Record, unstorable
from streamer.domain.request import ClipRequest, is_verification
from streamer.domain.timestamp import Timestamp, to_datetime, utc_now
from streamer.errors import StreamerError


class Result(Record):
    """The outcome of a request: exactly one per accepted request."""

    id: str = Field(default_factory=lambda: new_id("res"))
    request_id: str = Field(description="the query, or the request that a watch made")
    kind: ResultKind = Field(
        description="caption: of a watch; alert: of an alert, see data; answer: to a query; "
        "summary: of a part of a longer text, on the way to an answer; error: no answer, see error"
    )
    stream_id: str | None
    stream_name: str | None
    watch_id: str | None = Field(default=None, description="the watch that asked; null: a query")
    start: Timestamp | None = Field(default=None, description="start of the clip")
    end: Timestamp | None = Field(default=None, description="end of the clip")
    created_at: Timestamp = Field(default_factory=utc_now)
    prompt: str
    text: str | None = Field(
        default=None,
        description="the answer; with FORM_UNFINISHED the beginning of it, with other errors null",
    )
    data: dict[str, Any] | None = Field(
        default=None,
        description="choice or json: the answer in the requested form; probabilities: that of "
        "each choice, together 1, if the request asked for them; yes and probability: those of an "
        "alert; media_start and media_end: position in a recording, seconds; windows: the answers "
        "of a query about several windows, and unknown: how many have none; blocks: the parts of "
        "a summary",
    )
    warning: str | None = Field(
        default=None, description="what was wrong with the source although it could be read"
    )
    finish_reason: str | None = Field(default=None, description="why generation ended")
    error: ErrorInfo | None = None
    model: str | None = Field(default=None, description="name of the model that answered")
    frames: int = Field(default=0, description="frames of the clip")
    frames_from: Timestamp | None = Field(
        default=None, description="when the oldest frame of the clip was captured"
    )
    frames_to: Timestamp | None = Field(
        default=None, description="when the newest frame of the clip was captured"
    )
    frame_times: list[Timestamp] = Field(
        default_factory=list, description="when each frame of the clip was captured, in order"
    )
    newest_frame_age: float | None = Field(
        default=None,
        description="age of the newest frame when the question was asked, seconds; null for a "
        "recording",
    )
    gaps: list[Gap] = Field(
        default_factory=list,
        description="parts of the range of which no frame is kept, the longest ones; the answer "
        "says nothing about them",
    )
    stale: bool = Field(
        default=False,
        description="the question was about now, but its newest frame is too old for that",
    )
    tiles: int = Field(default=0, description="tiles that the frames were split into")
    plan: list[FrameResolution] | None = Field(
        default=None, description="resolution of each frame, in the order of the frames"
    )
    vision_tokens: int = Field(default=0, description="tokens of the prompt that show frames")
    prompt_tokens: int = Field(default=0, description="tokens of the whole prompt")
    cached_tokens: int = Field(default=0, description="tokens of the prompt found in the KV cache")
    completion_tokens: int = Field(default=0, description="tokens generated")
    decode_ms: float = Field(default=0.0, description="ms to decode, sample and encode the frames")
    queue_ms: float = Field(default=0.0, description="ms of waiting for a worker and in the engine")
    encode_ms: float = Field(default=0.0, description="ms of encoding tiles")
    generate_ms: float = Field(default=0.0, description="ms of reading the prompt and generating")
    alert: AlertRule | None = Field(
        default=None,
        description="the rule of the alert whose window this is; null in the timeline",
    )
    traceparent: str | None = Field(
        default=None,
        description="trace context (W3C) of the answer, while traces are collected; null in the "
        "timeline",
    )
    total_ms: float = Field(
        default=0.0,
        description="ms to the result: from the capture of the newest frame for a live watch, "
        "from the request otherwise",
    )

    @classmethod
    def shown(cls, stored: bytes | dict[str, Any], request_id: str = "") -> Self:
        """Return a stored result; in place of one that cannot be read an error result that says
        so, with what can be read of it."""
        try:
            return cls.read(stored)
        except StreamerError as error:
            part = cls.read_in_part(
                stored,
                request_id=request_id,
                kind=ResultKind.ERROR,
                stream_id=None,
                stream_name=None,
                prompt="",
            )
            reason = ErrorInfo(code=error.code, message=error.message)
            return part.model_copy(update={"kind": ResultKind.ERROR, "error": reason})

    @classmethod
    def answering(cls, request: ClipRequest, **outcome: Any) -> Self:
        """Build the result of a request from what it asked and its `outcome`: fields of a result.

        Its kind is `error` with an error, else the request's `answer_kind`.
        """
        failed = outcome.get("error") is not None
        kind = ResultKind.ERROR if failed else request.answer_kind
        asked: dict[str, Any] = {
            "request_id": request.id,
            "kind": kind,
            "stream_id": request.stream_id or None,
            "stream_name": request.stream_name or None,
            "watch_id": request.watch_id,
            "start": request.start,
            "end": request.end,
            "prompt": request.prompt,
            "data": request.data,
            "warning": request.warning,
            "frames": len(request.frames),
            "gaps": request.gaps,
            "stale": request.stale,
            "alert": request.alert,
            "traceparent": request.traceparent,
            **_seen(request),
        }
        if unstorable(outcome) is None:  # the request was looked at when it was made
            return cls.of_storable(asked | outcome)
        return cls(**asked | outcome)

    @property
    def verifies(self) -> bool:
        """Whether it is about a hit of a search; see `VERIFIES`."""
        return is_verification(self.data)


SearchMode = Literal["words", "meaning"]
"""How a text is searched for."""


class Match(Record):
    """How well a result fits a search by meaning, and what the model says about it."""

    request_id: str = Field(description="of the result")
    similarity: float | None = Field(
        default=None, description="of its meaning, at most 1; null: found by its words"
    )
    verdict: Literal["yes", "no", "pending", "unverified"] | None = Field(
        default=None,
        description="whether its frames show what is searched for, says the model; pending: it is "
        "being asked; unverified: it cannot be asked, see reason; null: not asked (verify)",
    )
    probability: float | None = Field(default=None, description="of yes")
    reason: str | None = Field(default=None, description="what is to be known about the verdict")


class Hit(Record):
    """A result, and how well it fits the search that found it."""

    result: Result
    match: Match


def _seen(request: ClipRequest) -> dict[str, Any]:
    """Return the fields of a result that say when its frames were captured."""
    times = [to_datetime(frame.time) for frame in request.frames]
    if not times:
        return {}
    newest = max(times)
    # The frames of a recording are dated by their place in it, so they have no age.
    recorded = request.kind is RequestKind.FILE or "media_start" in (request.data or {})
    age = round(max(0.0, (request.created_at - newest).total_seconds()), 3)
    return {
        "frames_from": min(times),
        "frames_to": newest,
        "frame_times": times,
        "newest_frame_age": None if recorded else age,
    }
