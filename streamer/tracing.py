"""Trace each request from its first sampled frame to its recorded result, with OpenTelemetry.

Off unless the setting `otlp_url` names a collector; then nothing is imported and no request has a
trace. The context of a trace travels in the records, as a W3C `traceparent`: program -> job ->
worker -> result -> recorder. The variables of OpenTelemetry's own (OTEL_TRACES_SAMPLER,
OTEL_RESOURCE_ATTRIBUTES, OTEL_EXPORTER_OTLP_HEADERS, ...) apply.
"""

import threading
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

import structlog

from streamer import __version__, clock
from streamer.domain.kinds import RequestKind
from streamer.domain.request import ClipRequest
from streamer.domain.result import Result
from streamer.errors import ErrorCode, StreamerError
from streamer.settings import Settings

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
    from opentelemetry.trace import Span

INSTALL_OTEL = (
    "The setting otlp_url needs the extra 'otel': pip install 'nvila-streamer[otel]', for each "
    "program, or leave otlp_url empty."
)

SEND_TIMEOUT = 2.0
"""Seconds that one attempt to send spans may take, and that the end of a program waits for it."""

MAX_FRAME_EVENTS = 64
"""Frames of a clip that its span tells apart."""

_provider: "TracerProvider | None" = None

_UNTRACED = nullcontext()


def start_tracing(
    settings: Settings, program: str, processor: "SpanProcessor | None" = None
) -> None:
    """Send the spans of this process, as those of `program`, to the collector of the settings.

    Without a collector nothing is done. A test gives a `processor` to receive them instead.

    Raises StreamerError(SETTINGS_INVALID) if the extra `otel` is not installed.
    """
    global _provider
    if settings.otlp_url is None and processor is None:
        return
    try:
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
    except ImportError:
        raise StreamerError(ErrorCode.SETTINGS_INVALID, INSTALL_OTEL) from None
    facts = {"service.name": f"nvila-streamer-{program}", "service.version": __version__}
    provider = TracerProvider(resource=Resource.create(facts), shutdown_on_exit=False)
    provider.add_span_processor(processor or _sender(settings))
    _provider = provider


def _sender(settings: Settings) -> "SpanProcessor":
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError:
        raise StreamerError(ErrorCode.SETTINGS_INVALID, INSTALL_OTEL) from None
    endpoint = f"{settings.otlp_url}/v1/traces"
    # in a thread, from a queue of bounded length: a collector that is away delays nothing
    return BatchSpanProcessor(OTLPSpanExporter(endpoint=endpoint, timeout=SEND_TIMEOUT))


def end_tracing() -> None:
    """Send what is left, within SEND_TIMEOUT seconds, and end tracing in this process."""
    global _provider
    provider, _provider = _provider, None
    if provider is not None:
        thread = threading.Thread(target=provider.shutdown, name="end-tracing", daemon=True)
        thread.start()
        thread.join(SEND_TIMEOUT)


@contextmanager
def submitting(request: ClipRequest) -> Iterator[ClipRequest]:
    """Begin the trace of a request that is submitted, or a part of the current trace; yield the
    request as its job carries it.

    Of a live stream, the span begins when the first frame was captured.
    """
    if _provider is None:
        yield request
        return
    from opentelemetry.trace import SpanKind

    live = request.kind is RequestKind.WATCH and request.frames
    began = request.frames[0].time if live else request.created_at.timestamp()
    span = _tracer().start_span(
        "submit",
        kind=SpanKind.PRODUCER,
        attributes=_attributes(request),
        start_time=_ns(began),
    )
    if live:
        for frame in request.frames[:MAX_FRAME_EVENTS]:
            seen = {"frame": frame.id, "decode_ms": frame.decode_ms}
            span.add_event("sampled", seen, timestamp=_ns(frame.time))
    try:
        yield request.model_copy(update={"traceparent": _traceparent(span)})
    finally:
        span.end(_now())


def answering(request: ClipRequest, started: float) -> AbstractContextManager[None]:
    """Return a context that traces the answer to a request whose job `started`, in seconds since
    the Unix epoch; its wait in the queue is a span too. The log names the trace meanwhile."""
    if _provider is not None:
        return _traced_answer(request, started)
    fields = trace_fields(request.traceparent)
    return structlog.contextvars.bound_contextvars(**fields) if fields else _UNTRACED


@contextmanager
def _traced_answer(request: ClipRequest, started: float) -> Iterator[None]:
    from opentelemetry.trace import SpanKind, use_span

    parent = _context(request.traceparent)
    waited = _tracer().start_span(
        "queue", context=parent, start_time=_ns(request.created_at.timestamp())
    )
    waited.end(_ns(started))
    span = _tracer().start_span(
        "answer",
        context=parent,
        kind=SpanKind.CONSUMER,
        attributes=_attributes(request),
        start_time=_ns(started),
    )
    with (
        structlog.contextvars.bound_contextvars(**trace_fields(_traceparent(span))),
        # a job that is given back has not failed
        use_span(span, record_exception=False, set_status_on_exception=False),
    ):
        try:
            yield
        finally:
            span.end(_now())


def step(name: str) -> AbstractContextManager[None]:
    """Return a context that traces one step of the current span."""
    return _UNTRACED if _provider is None else _traced_step(name)


@contextmanager
def _traced_step(name: str) -> Iterator[None]:
    from opentelemetry.trace import use_span

    span = _tracer().start_span(name, start_time=_now())
    with use_span(span, record_exception=False, set_status_on_exception=False):
        try:
            yield
        finally:
            span.end(_now())


def note_result(result: Result) -> None:
    """Let the current span tell of a result, and the result carry the trace to its recorder."""
    if _provider is None:
        return
    from opentelemetry.trace import StatusCode, get_current_span

    span = get_current_span()
    if not span.get_span_context().is_valid:
        return
    span.set_attributes(
        {
            "result": str(result.kind),
            "model": result.model or "",
            "tiles": result.tiles,
            "vision_tokens": result.vision_tokens,
            "prompt_tokens": result.prompt_tokens,
            "cached_tokens": result.cached_tokens,
            "completion_tokens": result.completion_tokens,
            "encode_ms": result.encode_ms,
            "generate_ms": result.generate_ms,
        }
    )
    if result.error is not None:
        span.set_status(StatusCode.ERROR, str(result.error.code))
    result.traceparent = _traceparent(span)


@contextmanager
def recording(results: Iterable[Result]) -> Iterator[None]:
    """Trace how results are recorded, each as the end of its own trace."""
    if _provider is None:
        yield
        return
    from opentelemetry.trace import SpanKind

    spans = [
        _tracer().start_span(
            "record",
            context=_context(result.traceparent),
            kind=SpanKind.CONSUMER,
            attributes={"request": result.request_id},
            start_time=_now(),
        )
        for result in results
        if result.traceparent is not None
    ]
    try:
        yield
    finally:
        for span in spans:
            span.end(_now())


def trace_fields(traceparent: str | None) -> dict[str, str]:
    """Return what the log says of a trace: its id."""
    parts = (traceparent or "").split("-")
    return {"trace_id": parts[1]} if len(parts) == 4 else {}


def _tracer() -> Any:
    assert _provider is not None
    return _provider.get_tracer("streamer", __version__)


def _attributes(request: ClipRequest) -> dict[str, str | int]:
    return {
        "request": request.id,
        "kind": request.kind.value,
        "stream": request.stream_name,
        "stream_id": request.stream_id,
        "watch_id": request.watch_id or "",
        "frames": len(request.frames),
    }


def _now() -> int:
    return _ns(clock.shared().time())


def _ns(seconds: float) -> int:
    return round(seconds * 1e9)


def _traceparent(span: "Span") -> str:
    from opentelemetry.trace import set_span_in_context
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    carrier: dict[str, str] = {}
    TraceContextTextMapPropagator().inject(carrier, set_span_in_context(span))
    return carrier["traceparent"]


def _context(traceparent: str | None) -> "Context | None":
    """Return the context that a record carries; None, the current one, if it has none."""
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    if traceparent is None:
        return None
    return TraceContextTextMapPropagator().extract({"traceparent": traceparent})
