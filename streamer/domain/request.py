"""Define the record of a request: a question about one clip, as a job carries it."""

from datetime import datetime
from typing import Any, Self

from pydantic import Field, model_validator

from streamer.alert_rule import AlertRule
from streamer.domain.frame import MAX_GAPS, FrameRef, Gap
from streamer.domain.ids import new_id
from streamer.domain.kinds import RequestKind, ResultKind
from streamer.domain.record import Record
from streamer.domain.stream import StreamSpec
from streamer.domain.timestamp import Timestamp, utc_now
from streamer.domain.watch import ALERT_FORMAT, Watch
from streamer.domain.yes_or_no import MIN_YES_NO_TOKENS, SPELLED_FORMAT
from streamer.limits import MAX_LOGPROBS
from streamer.response_format import ResponseFormat, TextFormat, with_response_format

VERIFIES = "verifies"
"""Entry of the `data` of a request that asks whether a hit of a search is one: the hit's request.
Such an answer is neither recorded nor announced: it says nothing new about the stream."""


def is_verification(data: dict[str, Any] | None) -> bool:
    """Return whether a request or a result with this `data` is about a hit of a search."""
    return VERIFIES in (data or {})


class ClipRequest(Record):
    """A question about the frames of one clip, as a job carries it."""

    version: int = Field(
        default=1, description="of the record: see `streamer/redis_client/record_version.py`"
    )
    id: str = Field(default_factory=lambda: new_id("req"))
    kind: RequestKind
    stream_id: str
    stream_name: str
    watch_id: str | None = None
    start: Timestamp
    end: Timestamp
    prompt: str
    frames: list[FrameRef]
    max_tokens: int = 128
    model: str | None = Field(default=None, description="model that is to answer; null: default")
    response_format: ResponseFormat = Field(default_factory=TextFormat)
    logprobs: int | None = Field(
        default=None,
        ge=0,
        le=MAX_LOGPROBS,
        description="see `nvila_core.SamplingParams`; with any number, the result of a choice has "
        "`data.probabilities`",
    )
    created_at: Timestamp = Field(default_factory=utc_now)
    data: dict[str, Any] | None = Field(default=None, description="copied to the result's data")
    warning: str | None = Field(default=None, description="copied to the result")
    gaps: list[Gap] = Field(default_factory=list, max_length=MAX_GAPS)
    stale: bool = Field(default=False, description="about now, but without a recent frame")
    alert: AlertRule | None = Field(default=None, description="the rule of an alert's window")
    part_of: str | None = Field(default=None, description="the query that this is one part of")
    traceparent: str | None = Field(
        default=None,
        description="trace context (W3C) of its submission, while traces are collected",
    )

    _read_old = model_validator(mode="before")(with_response_format)

    @property
    def answer_kind(self) -> "ResultKind":
        """The kind of its result, unless that is an error."""
        if self.kind is RequestKind.QUERY or self.part_of is not None:
            return ResultKind.ANSWER
        return ResultKind.CAPTION if self.alert is None else ResultKind.ALERT

    @property
    def delta_id(self) -> str | None:
        """The query whose answer people read while it is generated; None if they do not."""
        asked = self.kind is RequestKind.QUERY and self.part_of is None
        return self.id if asked and not is_verification(self.data) else None

    @property
    def asks_yes_or_no(self) -> bool:
        """Whether the service itself asks for yes or no, so that their spelling is its own matter:
        an alert, or whether a hit of a search is one."""
        of_service = self.alert is not None or is_verification(self.data)
        return of_service and self.response_format == ALERT_FORMAT

    @property
    def allowed_format(self) -> ResponseFormat:
        """The format to which the model is held: `response_format`, or all spellings of yes and no;
        then `yes_or_no.in_one_spelling` reads the answer."""
        return SPELLED_FORMAT if self.asks_yes_or_no else self.response_format

    @property
    def sampling(self) -> dict[str, Any]:
        """Arguments of `nvila_core.SamplingParams`."""
        # a spelling that takes more tokens than another is not cut
        least = MIN_YES_NO_TOKENS if self.asks_yes_or_no else self.max_tokens
        return {
            "max_tokens": max(self.max_tokens, least),
            "logprobs": self.logprobs,
            **self.allowed_format.constraint,
        }

    @classmethod
    def for_watch(
        cls,
        stream: StreamSpec,
        watch: Watch,
        *,
        start: datetime,
        end: datetime,
        frames: list[FrameRef],
        **fields: Any,
    ) -> Self:
        """Build the request that asks a watch's question about one window of its stream.

        `fields` are those that neither the stream nor the watch determines: `id`, `data`, `gaps`.
        """
        # what the stream and its watch say was searched for what cannot be stored when it was given
        return cls.of_storable(
            {
                "kind": RequestKind.WATCH if stream.live else RequestKind.FILE,
                "stream_id": stream.id,
                "stream_name": stream.name,
                "watch_id": watch.id,
                "start": start,
                "end": end,
                "prompt": watch.prompt,
                "frames": frames,
                "max_tokens": watch.max_tokens,
                "model": watch.model or stream.model,
                "response_format": watch.response_format,
                "alert": watch.alert,
                # the probabilities of yes and no
                "logprobs": None if watch.alert is None else 0,
                **fields,
            }
        )
