"""Define the records of frames: references, what is stored, and the parts of a range without any.

Frame times are float seconds since the Unix epoch, because they are often sorted, compared and
subtracted.
"""

from collections.abc import Sequence
from typing import Self

from pydantic import ConfigDict, Field

from nvila_core.resolution.policy import Measures, subsample
from streamer.domain.record import Record
from streamer.domain.timestamp import Timestamp, to_datetime


class FrameRef(Record):
    """Reference to one sampled frame; its JPEG is in Redis, under a TTL."""

    stream_id: str
    id: str = Field(description="id in the stream's frame index: '<milliseconds>-<sequence>'")
    time: float = Field(description="wall clock, seconds since the Unix epoch")
    pts: float = Field(description="stream time, seconds")
    epoch: int = Field(
        default=0,
        description="how often the clocks that date the stream have stepped since it was opened",
    )
    width: int = Field(description="width of the JPEG, pixels")
    height: int = Field(description="height of the JPEG, pixels")
    change: float = Field(description="mean absolute luma difference to the previous frame, 0 to 1")
    decode_ms: float = Field(
        default=0.0, description="milliseconds to decode, sample and encode the frame"
    )
    detail: tuple[float, ...] = Field(
        default=(),
        description="edge strength per octave, finest first, 0 to 255; see docs/resolution.md",
    )
    fresh: tuple[float, ...] = Field(
        default=(), description="the same, of the parts that differ from the previous frame"
    )

    @property
    def measures(self) -> Measures:
        """The measures that a resolution policy plans from."""
        return Measures(self.width, self.height, self.detail, self.fresh, self.change)


def thinned(refs: Sequence[FrameRef], indices: Sequence[int]) -> list[FrameRef]:
    """Return the frames at `indices` (ascending).

    The change of a frame that is left out is added to the next one that is kept.
    """
    measures = subsample([ref.measures for ref in refs], indices)
    return [
        refs[index].model_copy(update={"change": now.change, "fresh": now.fresh})
        for index, now in zip(indices, measures, strict=True)
    ]


class Gap(Record):
    """A part of a range of which no frame is kept: longer than the sampling explains."""

    start: Timestamp
    end: Timestamp


MAX_GAPS = 32
"""Gaps that a result names: the longest ones."""


class FrameResolution(Record):
    """The resolution at which one frame was processed, and why."""

    model_config = ConfigDict(frozen=True)  # results share it

    grid: tuple[int, int] = Field(
        description="columns and rows of tiles, in addition to a thumbnail"
    )
    reason: str = Field(description="why the policy chose this grid")


class StoredFrame(Record):
    """A sampled frame, and where its JPEG is."""

    time: Timestamp = Field(description="when it was captured")
    id: str | None = Field(default=None, description="null: it is not kept any more")
    url: str | None = Field(default=None, description="path of its JPEG; null: it is not kept")
    width: int | None = None
    height: int | None = None
    grid: tuple[int, int] | None = Field(
        default=None, description="columns and rows of tiles in which the model saw it"
    )

    @classmethod
    def of(cls, ref: FrameRef, grid: tuple[int, int] | None = None) -> Self:
        """Return what can be said of a frame that is kept."""
        return cls(
            time=to_datetime(ref.time),
            id=ref.id,
            url=f"/v1/frames/{ref.stream_id}/{ref.id}.jpg",
            width=ref.width,
            height=ref.height,
            grid=grid,
        )


class StoredFrameList(Record):
    """Frames of a range, in order of time, and the parts of it of which none is kept."""

    frames: list[StoredFrame]
    gaps: list[Gap] = Field(default_factory=list)
