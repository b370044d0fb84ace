"""A request is traced from its first sampled frame to its recorded result, across programs."""

import json
import subprocess
import sys
import threading

import pytest
import structlog
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode
from rq.job import Job
from rq.serializers import JSONSerializer

from streamer import tracing
from streamer.domain.kinds import RequestKind
from streamer.domain.result import Result
from streamer.errors import ErrorCode, StreamerError
from streamer.settings import Settings, load_settings
from streamer.timeline.results import Timeline
from streamer.tracing import end_tracing, start_tracing
from tests.support.clips import frames, request
from tests.support.receiver import Receiver
from tests.support.scripted_model import refused
from workers.gpu.clip_job import answer_clip
from workers.recorder.worker import Recorder


@pytest.fixture
def spans(settings):
    """The spans that this process has ended."""
    exporter = InMemorySpanExporter()
    start_tracing(settings, "test", SimpleSpanProcessor(exporter))
    yield exporter.get_finished_spans
    end_tracing()


def stored_request(own, request_id):
    """Return the request as its job carries it."""
    job = Job.fetch(request_id, own.connections.main, serializer=JSONSerializer)
    return job.args[0]


def answer(own, asked):
    """Submit a request, answer it from its job, and record its result."""
    own.jobs.submit(asked)
    answer_clip(stored_request(own, asked.id))
    timeline = Timeline(own.settings.timeline_url)
    recorder = Recorder(own.connections.main, timeline, stopping=threading.Event())
    recorder.join()
    recorder.step()
    found = timeline.get(asked.id)
    timeline.close()
    return found


def test_one_trace_reaches_from_the_first_frame_to_the_recorded_result(own, spans):
    # given a clip of four frames, of which the first was captured four seconds ago
    refs = frames(own, 4)
    asked = request(own, refs=refs)
    # when it is submitted, answered and recorded
    recorded = answer(own, asked)
    # then each step is a span of the same trace, below the one that caused it
    found = {span.name: span for span in spans()}
    assert set(found) == {"submit", "queue", "answer", "load", "model", "publish", "record"}
    assert len({span.context.trace_id for span in found.values()}) == 1
    above = {name: span.parent and span.parent.span_id for name, span in found.items()}
    ids = {name: span.context.span_id for name, span in found.items()}
    assert above == {
        "submit": None,
        "queue": ids["submit"],
        "answer": ids["submit"],
        "load": ids["answer"],
        "model": ids["answer"],
        "publish": ids["answer"],
        "record": ids["answer"],
    }
    # and the first begins with the first frame, and tells when each was captured
    submit = found["submit"]
    assert submit.start_time == pytest.approx(refs[0].time * 1e9, abs=1e6)
    assert [event.attributes["frame"] for event in submit.events] == [ref.id for ref in refs]
    assert [event.timestamp / 1e9 for event in submit.events] == pytest.approx(
        [ref.time for ref in refs], abs=1e-3
    )
    assert submit.attributes["stream"] == "yard"
    assert submit.start_time <= submit.end_time <= found["answer"].end_time
    assert found["queue"].end_time == found["answer"].start_time
    # and the answer says what it cost
    reported = found["answer"].attributes
    assert (reported["request"], reported["result"]) == (asked.id, "caption")
    assert reported["prompt_tokens"] == recorded.prompt_tokens > 0
    assert recorded.traceparent is None  # it is for the way, not for the shelf


def test_a_failed_answer_is_a_failed_span(own, server, spans):
    server.script = lambda _: refused(400, "no such thing")

    result = answer(own, request(own, RequestKind.QUERY))

    (span,) = (span for span in spans() if span.name == "answer")
    assert result.error is not None
    assert span.status.status_code is StatusCode.ERROR
    assert span.status.description == str(result.error.code)


def test_the_log_names_stream_and_trace(own, spans):
    asked = request(own)
    own.jobs.submit(asked)
    reported = stored_request(own, asked.id)["traceparent"]

    with structlog.testing.capture_logs(
        processors=[structlog.contextvars.merge_contextvars]
    ) as lines:
        answer_clip(stored_request(own, asked.id))

    (line,) = (line for line in lines if line["event"] == "answered")
    assert line["trace_id"] == reported.split("-")[1]
    assert (line["request"], line["stream"]) == (asked.id, "yard")


def test_spans_reach_a_collector(own, server):
    # given a collector, as the settings name it
    with Receiver(lambda _: (200, {})) as collector:
        url = collector.url.rsplit("/", 1)[0] if collector.url.count("/") > 2 else collector.url
        start_tracing(own.settings.model_copy(update={"otlp_url": url}), "worker")
        answer(own, request(own))
        # when the program ends
        end_tracing()
        # then it has sent what it had
        sent = [received for received in collector.received if received.path == "/v1/traces"]
    bodies = [ExportTraceServiceRequest.FromString(each.body) for each in sent]
    resources = [resource for body in bodies for resource in body.resource_spans]
    facts = {a.key: a.value.string_value for a in resources[0].resource.attributes}
    names = [s.name for r in resources for scope in r.scope_spans for s in scope.spans]
    assert facts["service.name"] == "nvila-streamer-worker"
    assert {"submit", "answer", "record"} <= set(names)


def test_a_collector_that_is_away_stops_nothing(own):
    start_tracing(own.settings.model_copy(update={"otlp_url": "http://127.0.0.1:1"}), "worker")

    result = answer(own, request(own))
    end_tracing()

    assert result.error is None


def test_without_a_collector_records_carry_no_trace_and_nothing_is_imported(own):
    start_tracing(own.settings, "worker")
    asked = request(own)
    own.jobs.submit(asked)
    answer_clip(stored_request(own, asked.id))

    assert "traceparent" not in stored_request(own, asked.id)
    assert own.results.get(asked.id).traceparent is None
    code = (
        "import sys, streamer.queues.jobs, streamer.tracing as tracing\n"
        "from streamer.settings import Settings\n"
        "tracing.start_tracing(Settings(), 'test')\n"
        # redis-py imports some of OpenTelemetry where it is installed
        "print([n for n in sys.modules if n.startswith('opentelemetry.exporter')])\n"
        "print('opentelemetry.trace.propagation.tracecontext' in sys.modules)"
    )
    reported = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=100
    )
    assert reported.stdout.splitlines() == ["[]", "False"]


def test_a_missing_extra_says_what_to_install(settings, monkeypatch):
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace", None)

    with pytest.raises(StreamerError, match=r"nvila-streamer\[otel\]") as refusal:
        start_tracing(settings.model_copy(update={"otlp_url": "http://127.0.0.1:1"}), "worker")

    assert refusal.value.code is ErrorCode.SETTINGS_INVALID


@pytest.mark.parametrize(
    "stored", ["", "nonsense", "00-0-0-00", "00-" + "g" * 32 + "-" + "1" * 16 + "-01"]
)
def test_a_trace_that_cannot_be_read_costs_nothing(own, spans, stored):
    asked = request(own)
    own.jobs.submit(asked)

    answer_clip(stored_request(own, asked.id) | {"traceparent": stored})

    assert own.results.get(asked.id).error is None
    assert {span.name for span in spans()} >= {"answer"}


def test_an_older_record_has_no_trace(own):
    stored = json.loads(request(own).model_dump_json())
    del stored["traceparent"]
    assert type(request(own)).read(stored).traceparent is None
    assert Result.model_fields["traceparent"].default is None


@pytest.mark.parametrize("url", ["ftp://host", "host:4318", "http://host/?x=1"])
def test_what_is_no_address_of_a_collector_is_refused(url):
    with pytest.raises(StreamerError, match="4318"):
        load_settings(otlp_url=url)


def test_the_address_may_have_the_path_of_traces():
    url = "http://collector:4318/v1/traces/"
    assert load_settings(otlp_url=url).otlp_url == "http://collector:4318"
    assert "collector" not in repr(Settings(otlp_url=url))
    assert tracing.trace_fields(None) == {}
