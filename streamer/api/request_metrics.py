"""Measure this API process: its requests by route, and what the process uses."""

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
)
from starlette.types import Scope

_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})

_OTHER = "other"
"""Label of what clients make up, so that they cannot add metrics without end."""

_BUCKETS = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)

# The time at which a counter was made would be one more line for each.
disable_created_metrics()  # type: ignore[no-untyped-call]


class RequestMetrics:
    """Counters of one API process, in Prometheus's text format."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        ProcessCollector(namespace="streamer_api", registry=self._registry)
        self._requests = Counter(
            "streamer_api_requests",
            "Requests to this API process, by the class of their status: 2xx, 4xx and so on, or "
            "none if the client left before.",
            ("route", "method", "status"),
            registry=self._registry,
        )
        self._seconds = Histogram(
            "streamer_api_response_seconds",
            "Seconds from a request to the beginning of its response.",
            ("route", "method"),
            registry=self._registry,
            buckets=_BUCKETS,
        )

    def count(self, scope: Scope, status: int, seconds: float) -> None:
        """Count a request when its response begins, or when it ends without one (`status` 0).

        `seconds` have passed until then. A route has its template, such as `/v1/streams/{ref}`;
        what was refused before a route was found, and files of the web page, count as `other`.
        """
        route = getattr(scope.get("route"), "path", _OTHER)
        if scope["type"] == "websocket":
            method = "WEBSOCKET"
        else:
            method = scope["method"] if scope["method"] in _METHODS else _OTHER
            if status:
                self._seconds.labels(route, method).observe(seconds)
        self._requests.labels(route, method, f"{status // 100}xx" if status else "none").inc()

    def render(self) -> bytes:
        """Return the metrics in Prometheus's text format."""
        return generate_latest(self._registry)
