"""A question about several windows, whose answers are summed up: the record of its job."""

from datetime import datetime, timedelta
from typing import NamedTuple

from pydantic import Field

from streamer.domain.frame import FrameRef
from streamer.domain.kinds import RequestKind
from streamer.domain.record import Record
from streamer.domain.request import ClipRequest
from streamer.domain.summaries import SummaryBlock
from streamer.limits import MAX_QUERY_STREAMS, MAX_QUERY_WINDOWS, check_prompt


class SurveyedStream(Record):
    """A stream that is asked."""

    id: str
    name: str
    model: str | None = None


class SurveyWindow(NamedTuple):
    """A window of a survey.

    Attributes:
        number: its place among all of the survey.
        stream: the stream that is asked.
        start, end: what it is about; equal: what the stream shows now.
    """

    number: int
    stream: SurveyedStream
    start: datetime
    end: datetime


class SurveyRequest(ClipRequest):
    """A question about several windows, as a job carries it.

    It is asked of each window of its `streams`, or of a `recording` that was attached for it alone;
    `blocks` are asked of nothing, but summed up. Its job has a name of its own, so that a worker of
    a release without surveys refuses it.
    """

    kind: RequestKind = RequestKind.QUERY
    stream_id: str = ""
    stream_name: str = ""
    frames: list[FrameRef] = Field(default_factory=list, max_length=0)
    streams: list[SurveyedStream] = Field(default_factory=list, max_length=MAX_QUERY_STREAMS)
    recording: bool = Field(default=False, description="whether its stream is there for it alone")
    now: bool = Field(default=False, description="whether it is about what the streams show now")
    window: float | None = Field(default=None, gt=0, description="seconds of a window")
    max_frames: int | None = Field(default=None, ge=1)
    stale_ok: bool = False
    blocks: list[SummaryBlock] = Field(default_factory=list)
    counts: dict[str, int] = Field(default_factory=dict, description="what is known of `blocks`")

    @property
    def windows(self) -> list[SurveyWindow]:
        """The windows of its streams, in order of time; none of a recording or of blocks."""
        if self.recording or self.blocks:
            return []
        found: list[SurveyWindow] = []
        for start, end in self._spans():
            for stream in self.streams:
                found.append(SurveyWindow(len(found), stream, start, end))
        return found

    def _spans(self) -> list[tuple[datetime, datetime]]:
        if self.now:
            return [(self.end, self.end)]
        if self.window is None:
            return [(self.start, self.end)]
        length = timedelta(seconds=self.window)
        spans: list[tuple[datetime, datetime]] = []
        start = self.start
        while start < self.end and len(spans) < MAX_QUERY_WINDOWS:
            spans.append((start, min(start + length, self.end)))
            start += length
        return spans

    def check(self) -> None:
        """Check the question. Raises StreamerError: PROMPT_EMPTY, PROMPT_TOO_LONG."""
        check_prompt(self.prompt)
