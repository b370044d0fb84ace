"""Sample the decoded frames of one stream; measure, encode and store those that are kept."""

import time
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import av
import cv2
from av.video.frame import VideoFrame

from nvila_core.resolution.meter import Meter
from nvila_core.resolution.policy import Measures
from streamer.domain.frame import FrameRef
from streamer.domain.stream import StreamCounters, StreamSpec
from streamer.frames.jpeg import Luma, jpeg_of_planes, luma_plane, to_bgr, to_jpeg
from streamer.frames.sampled_frame import SampledFrame
from streamer.frames.store import FrameStore, Retention
from streamer.media.sampler import make_sampler
from streamer.media.source import DecodedFrame
from streamer.media.source_errors import cannot_decode
from workers.context import WorkerContext
from workers.ingest.clips import frames_to_keep

_UNUSABLE = (av.FFmpegError, cv2.error, ValueError)
"""What is raised by a frame whose pixels cannot be converted."""


class _MeasuredFrame(NamedTuple):
    """A frame that is not encoded yet, unless its pixels had to be converted to measure it."""

    frame: DecodedFrame
    luma: Luma | None
    measures: Measures
    jpeg: bytes | None
    seconds: float


class FrameIntake:
    """Turns decoded frames into stored ones, as the stream's spec asks.

    `token` shows that this worker runs the stream.

    Attributes:
        sampler: decides which frames are kept.
        store: where they are stored, with the retention of the stream.
        scaled: whether a picture of more than 8 bits was scaled by its range.
    """

    def __init__(
        self,
        context: WorkerContext,
        spec: StreamSpec,
        counters: StreamCounters,
        token: int | None = None,
    ) -> None:
        self._context = context
        self._token = token
        self._spec = spec
        self._counters = counters
        self._meter = Meter(bgr=True)
        self.scaled = False
        self.sampler = make_sampler(spec.sampling)
        self.store = self._make_store()

    def follow(self, spec: StreamSpec) -> None:
        """Continue with an edited `spec`."""
        before, self._spec = self._spec, spec
        if spec.sampling != before.sampling:
            self.sampler = make_sampler(spec.sampling)
        self.store = self._make_store()

    def keeps(self, pts: float, image: VideoFrame) -> bool:
        """Return whether the frame at stream time `pts` is kept; call it for every frame."""
        return self.sampler.keep(pts, image)

    def encode(self, frames: Iterable[DecodedFrame]) -> Iterator[SampledFrame]:
        """Measure and encode frames that are kept, in order of time.

        All are measured before the first one is encoded: the processor's caches hold little of the
        code that runs once for each frame.

        Raises StreamerError(STREAM_CODEC_UNSUPPORTED) in place of a frame whose pixels cannot be
        converted.
        """
        measured: list[_MeasuredFrame] = []
        failed = False
        for frame in frames:
            try:
                measured.append(self._measure(frame))
            except _UNUSABLE:
                failed = True
                break
        for each in measured:
            try:
                sampled = self._encode(each)
            except _UNUSABLE:
                failed = True
                break
            yield sampled
        if failed:
            raise cannot_decode(self._spec.url, self._counters.codec)

    def _measure(self, frame: DecodedFrame) -> "_MeasuredFrame":
        began = time.perf_counter()
        luma, jpeg = luma_plane(frame.image), None
        if luma is not None:
            measures = self._meter.measure(*luma)
        else:
            bgr = to_bgr(frame.image, self._note_scaled)
            jpeg, measures = to_jpeg(bgr, self._quality), self._meter.measure(bgr)
        return _MeasuredFrame(frame, luma, measures, jpeg, time.perf_counter() - began)

    def _encode(self, measured: "_MeasuredFrame") -> SampledFrame:
        """Return a frame with its JPEG, of its own planes where that is possible."""
        began = time.perf_counter()
        frame, jpeg, quality = measured.frame, measured.jpeg, self._quality
        if jpeg is None:
            jpeg = jpeg_of_planes(frame.image, measured.luma, quality)
        if jpeg is None:
            jpeg = to_jpeg(to_bgr(frame.image, self._note_scaled), quality)
        size = frame.image.width, frame.image.height
        if size != (self._counters.width, self._counters.height):
            self._counters.width, self._counters.height = size
        seconds = measured.seconds + time.perf_counter() - began
        cost = frame.decode_ms + 1000 * seconds
        return SampledFrame(jpeg, measured.measures, frame.time, frame.pts, frame.epoch, cost)

    @property
    def _quality(self) -> int:
        return self._context.settings.jpeg_quality

    def put(self, sampled: Sequence[SampledFrame]) -> list[FrameRef]:
        """Store frames, in order of time. Raises Superseded, redis.exceptions.RedisError."""
        return self.store.put_all(self._spec.id, sampled, token=self._token)

    def _note_scaled(self) -> None:
        self.scaled = True

    def _make_store(self) -> FrameStore:
        needed = frames_to_keep(self._spec, self._context.settings)
        retention = Retention.of_stream(self._spec, self._context.settings, needed)
        connections = self._context.connections
        return FrameStore(
            connections.frames,
            retention,
            memory=connections.frame_memory,
            clock=self._context.clock,
        )
