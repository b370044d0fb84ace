"""Sample the decoded frames of one stream; measure, encode and store those that are kept."""

import time
from collections.abc import Sequence

import av
import cv2
from av.video.frame import VideoFrame

from nvila_core.resolution.meter import Meter
from nvila_core.resolution.policy import Measures
from streamer.domain.frame import FrameRef
from streamer.domain.stream import StreamCounters, StreamSpec
from streamer.frames.jpeg import jpeg_of_planes, luma_plane, to_bgr, to_jpeg
from streamer.frames.sampled_frame import SampledFrame
from streamer.frames.store import FrameStore, Retention
from streamer.media.sampler import make_sampler
from streamer.media.source import DecodedFrame
from streamer.media.source_errors import cannot_decode
from workers.context import WorkerContext
from workers.ingest.clips import frames_to_keep


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

    def encode(self, frame: DecodedFrame, pts: float) -> SampledFrame:
        """Measure and encode a frame that is kept.

        Raises StreamerError(STREAM_CODEC_UNSUPPORTED) when its pixels cannot be converted.
        """
        began = time.perf_counter()
        try:
            jpeg, measures = self._compress(frame.image)
        except (av.FFmpegError, cv2.error, ValueError):
            raise cannot_decode(self._spec.url, self._counters.codec) from None
        size = frame.image.width, frame.image.height
        if size != (self._counters.width, self._counters.height):
            self._counters.width, self._counters.height = size
        cost = frame.decode_ms + (time.perf_counter() - began) * 1000
        return SampledFrame(jpeg, measures, frame.time, pts, frame.epoch, cost)

    def _compress(self, image: VideoFrame) -> tuple[bytes, Measures]:
        """Return a frame as a JPEG, and its measures; by its own planes where that is possible."""
        quality = self._context.settings.jpeg_quality
        luma = luma_plane(image)
        jpeg = jpeg_of_planes(image, luma, quality)
        if luma is not None and jpeg is not None:
            return jpeg, self._meter.measure(*luma)
        bgr = to_bgr(image, self._note_scaled)
        return to_jpeg(bgr, quality), self._meter.measure(*(luma or (bgr,)))

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
