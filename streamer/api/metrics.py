"""Metrics of streams, queues and workers for `GET /metrics`, read from Redis on every scrape.

Every API process reports the whole installation, so scraping one of them is enough.
"""

import re
from collections.abc import Callable, Iterator

import redis
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    InfoMetricFamily,
    Metric,
    StateSetMetricFamily,
    UntypedMetricFamily,
)
from prometheus_client.registry import Collector

from streamer import __version__
from streamer.api.videos import Videos
from streamer.domain.stream import Stream, StreamState
from streamer.events import Events
from streamer.health import CachedHealth
from streamer.results_queue import read_backlog
from streamer.service import Service
from streamer.sick_gpus import SickGpus

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

_LABELS = ("stream", "stream_id")

_COUNTERS = {
    "packets": ("Video packets received.", "packets"),
    "received_bytes": ("Bytes of video received.", "bytes"),
    "decoded_frames": ("Frames decoded.", "decoded"),
    "sampled_frames": ("Frames sampled and stored.", "sampled"),
    "reconnects": ("Reconnects after a lost connection.", "reconnects"),
    "clips": ("Clips submitted to the model.", "clips"),
    "clips_dropped": (
        "Clips of live watches dropped because the model was behind.",
        "clips_dropped",
    ),
}
"""Help and field of `StreamCounters`, by metric."""

_GAUGES: dict[str, tuple[str, Callable[[Stream], float | None]]] = {
    "fps": ("Measured frames per second.", lambda s: s.counters.measured_fps),
    "bytes_per_second": (
        "Measured bytes of video per second.",
        lambda s: None if s.counters.bit_rate is None else s.counters.bit_rate / 8,
    ),
    "last_frame_age_seconds": ("Age of the newest frame in seconds.", lambda s: s.last_frame_age),
    "position_seconds": ("Stream time reached in seconds.", lambda s: s.counters.position),
    "state_since_seconds": (
        "Unix time at which the stream entered its state.",
        lambda s: s.since.timestamp(),
    ),
}


def render(client: Service, health: CachedHealth, videos: Videos) -> bytes:
    """Return the metrics of the installation in Prometheus's text format.

    If Redis does not answer, `streamer_redis_up` is 0 and no other metrics follow.
    """
    registry = CollectorRegistry()
    registry.register(_Installation(client, health, videos))
    return generate_latest(registry)


class _Installation(Collector):
    """Collector that reads everything once per scrape."""

    def __init__(self, client: Service, health: CachedHealth, videos: Videos) -> None:
        self._client = client
        self._health = health
        self._videos = videos

    def describe(self) -> list[Metric]:
        """Return nothing in advance: the names are known only after Redis has been read."""
        return []

    def collect(self) -> Iterator[Metric]:
        """Yield all metrics."""
        info = InfoMetricFamily("streamer", "Version of the API process.")
        info.add_metric((), {"version": __version__})
        yield info
        try:
            found = [*self._streams(), *self._queues(), *self._workers(), *self._parts()]
        except redis.exceptions.RedisError:
            yield GaugeMetricFamily("streamer_redis_up", "Whether Redis answers.", 0)
            return
        yield GaugeMetricFamily("streamer_redis_up", "Whether Redis answers.", 1)
        yield GaugeMetricFamily(
            "streamer_clock_offset_seconds",
            "Seconds by which the clock of the API's machine is ahead of Redis.",
            self._client.connections.clock.offset,
        )
        yield GaugeMetricFamily(
            "streamer_video_viewers",
            "Viewers of live video of this API process.",
            self._videos.viewers,
        )
        yield CounterMetricFamily(
            "streamer_video_skips",
            "Times that a viewer of this API process was too slow, and frames were left out.",
            self._videos.skips,
        )
        yield from found

    def _streams(self) -> Iterator[Metric]:
        states, sums = self._client.registry.totals()
        attached = GaugeMetricFamily("streamer_streams", "Attached streams.", labels=("state",))
        for each in StreamState:
            attached.add_metric((each.value,), states.get(each.value, 0))
        yield attached
        for name, (text, field) in _COUNTERS.items():
            yield CounterMetricFamily(
                f"streamer_streams_{name}",
                f"{text} Of all streams, detached ones too.",
                sums.get(field, 0),
            )
        # Bounded: a thousand streams would be 25,000 lines.
        streams, _ = self._client.stream_page(max(1, self._client.settings.metrics_streams))
        streams = streams[: self._client.settings.metrics_streams]
        for name, (text, field) in _COUNTERS.items():
            counter = CounterMetricFamily(f"streamer_stream_{name}", text, labels=_LABELS)
            for stream in streams:
                counter.add_metric(_labels(stream), getattr(stream.counters, field))
            yield counter
        for name, (text, read) in _GAUGES.items():
            gauge = GaugeMetricFamily(f"streamer_stream_{name}", text, labels=_LABELS)
            for stream in streams:
                if (value := read(stream)) is not None:
                    gauge.add_metric(_labels(stream), value)
            yield gauge
        dropped = CounterMetricFamily(
            "streamer_stream_dropped_frames", "Dropped frames by cause.", labels=(*_LABELS, "cause")
        )
        state = StateSetMetricFamily(
            "streamer_stream_state", "State of the stream.", labels=_LABELS
        )
        error = GaugeMetricFamily(
            "streamer_stream_error", "1 while the stream has this error.", labels=(*_LABELS, "code")
        )
        media = InfoMetricFamily("streamer_stream", "Codec and size of the video.", labels=_LABELS)
        for stream in streams:
            labels, counters = _labels(stream), stream.counters
            for cause, frames in counters.dropped.model_dump().items():
                dropped.add_metric((*labels, cause), frames)
            state.add_metric(labels, {each.value: each is stream.state for each in StreamState})
            if stream.error is not None:
                error.add_metric((*labels, stream.error.code.value), 1)
            size = {"width": str(counters.width or ""), "height": str(counters.height or "")}
            media.add_metric(labels, {"codec": counters.codec or "", **size})
        yield from (dropped, state, error, media)

    def _queues(self) -> Iterator[Metric]:
        waiting = GaugeMetricFamily(
            "streamer_queue_jobs", "Jobs waiting in the queue.", labels=("queue",)
        )
        for queue, depth in self._client.jobs.depths().items():
            waiting.add_metric((queue,), depth)
        yield waiting

    def _parts(self) -> Iterator[Metric]:
        up = GaugeMetricFamily(
            "streamer_part_up", "Whether a part of the installation works.", labels=("part",)
        )
        seen = GaugeMetricFamily(
            "streamer_part_last_seen_seconds", "Unix time at which it last did.", labels=("part",)
        )
        left = CounterMetricFamily(
            "streamer_results_unreadable",
            "Results that the recorder leaves in the queue, because it cannot read or store them.",
        )
        left.add_metric((), self._client.health.unreadable_results())
        yield left
        yield from self._backlog()
        lost = CounterMetricFamily(
            "streamer_events_lost", "Events that Redis gave up because it was full."
        )
        lost.add_metric((), Events(self._client.connections.main).lost())
        yield lost
        for part in self._health.parts():
            up.add_metric((part.name,), part.up)
            if part.last_seen_at is not None:
                seen.add_metric((part.name,), part.last_seen_at.timestamp())
        yield from (up, seen)

    def _backlog(self) -> Iterator[Metric]:
        """Yield how far the recorder is behind."""
        backlog = read_backlog(self._client.connections.main)
        if backlog.results is not None:
            yield GaugeMetricFamily(
                "streamer_results_unrecorded",
                "Results that are not in the timeline yet.",
                backlog.results,
            )
        now = self._client.connections.clock.time()
        yield GaugeMetricFamily(
            "streamer_results_unrecorded_age_seconds",
            "Age of the oldest result that is not in the timeline yet; 0 if there is none.",
            0.0 if backlog.oldest is None else max(0.0, now - backlog.oldest),
        )
        lost = CounterMetricFamily(
            "streamer_results_lost",
            "Results that were given up before they were recorded, because there were too many.",
        )
        lost.add_metric((), backlog.lost)
        yield lost

    def _workers(self) -> Iterator[Metric]:
        running = GaugeMetricFamily("streamer_workers", "Running workers.", labels=("kind",))
        for kind, count in self._client.jobs.workers().items():
            running.add_metric((kind,), count)
        yield running
        yield GaugeMetricFamily(
            "streamer_gpus_out_of_service",
            "GPUs whose model workers failed too often, and that are not used at the moment.",
            len(
                SickGpus(self._client.connections.main).read(self._client.connections.clock.time())
            ),
        )
        families: dict[str, UntypedMetricFamily] = {}
        for worker, numbers in self._client.jobs.worker_stats().items():
            for key, number in numbers.items():
                name = "streamer_worker_" + re.sub(r"\W", "_", key, flags=re.ASCII)
                if name not in families:
                    text = f"`{key}` as reported by the worker."
                    families[name] = UntypedMetricFamily(name, text, labels=("worker",))
                families[name].add_metric((worker,), number)
        yield from families.values()


def _labels(stream: Stream) -> tuple[str, str]:
    return stream.name, stream.id
