"""Metrics of streams, queues and workers for `GET /metrics`, read from Redis on every scrape.

Every API process reports the whole installation, so scraping one of them is enough, but for what it
says of itself.
"""

import re
from collections.abc import Iterator

import redis
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    InfoMetricFamily,
    Metric,
    UntypedMetricFamily,
)
from prometheus_client.registry import Collector

from streamer import __version__
from streamer.api.live.videos import Videos
from streamer.api.request_metrics import RequestMetrics
from streamer.api.stream_metrics import STREAM_COUNTERS, stream_lines
from streamer.domain.stream import StreamState
from streamer.events import Events
from streamer.health.parts import CachedHealth
from streamer.health.sick_gpus import SickGpus
from streamer.queues.results_queue import read_backlog
from streamer.service import Service

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


def render(
    client: Service, health: CachedHealth, videos: Videos, requests: RequestMetrics
) -> bytes:
    """Return metrics of the installation and of this process in Prometheus's text format.

    If Redis does not answer, `streamer_redis_up` is 0 and the installation has no other metrics.
    """
    registry = CollectorRegistry()
    installation = _Installation(client, health, videos)
    registry.register(installation)
    found = generate_latest(registry), "".join(installation.stream_lines).encode()
    return b"".join((*found, requests.render()))


class _Installation(Collector):
    """Collector that reads everything once per scrape.

    Attributes:
        stream_lines: what follows about each stream.
    """

    def __init__(self, client: Service, health: CachedHealth, videos: Videos) -> None:
        self._client = client
        self._health = health
        self._videos = videos
        self.stream_lines: list[str] = []

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
            self.stream_lines = []
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
        for name, (text, field) in STREAM_COUNTERS.items():
            yield CounterMetricFamily(
                f"streamer_streams_{name}",
                f"{text} Of all streams, detached ones too.",
                sums.get(field, 0),
            )
        # Bounded: a thousand streams would be 25,000 lines.
        streams, _ = self._client.stream_page(max(1, self._client.settings.metrics_streams))
        shown = streams[: self._client.settings.metrics_streams]
        self.stream_lines = list(stream_lines(shown))

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
