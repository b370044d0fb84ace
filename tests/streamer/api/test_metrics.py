"""`GET /metrics` over a real server: what Prometheus reads is what the streams said."""

import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import httpx
import pytest
import redis
from fastapi.testclient import TestClient
from prometheus_client.parser import text_string_to_metric_families
from websockets.sync.client import connect

from streamer import redis_keys
from streamer.api.app import create_app
from streamer.api.metrics import render
from streamer.api.stream_metrics import stream_lines
from streamer.clock import ServerClock
from streamer.domain.error_info import ErrorInfo
from streamer.domain.kinds import RequestKind
from streamer.domain.request import ClipRequest
from streamer.domain.stream import Drops, StreamSpec, StreamState, StreamStatus
from streamer.domain.timestamp import utc_now
from streamer.errors import ErrorCode
from streamer.health.parts import CachedHealth
from streamer.local.redis_server import EmbeddedServer
from streamer.service import Service
from streamer.settings import Settings
from tests.support.api_server import ApiServer
from tests.support.clocks import ShiftedClock
from tests.support.redis_commands import commands_of

PASSWORD = "hunter2secret"
URL = f"rtsp://me:{PASSWORD}@camera/live?token={PASSWORD}"


@pytest.fixture
def client(settings: Settings) -> Service:
    return Service(settings)


def samples(api: TestClient | httpx.Client) -> dict[tuple[str, str], float]:
    """Values by metric name and by the labels but for `stream` and `stream_id`."""
    response = api.get("/metrics")
    assert response.status_code == 200
    assert response.headers["content-type"].startswith("text/plain; version=0.0.4")
    assert PASSWORD not in response.text
    found = {}
    for family in text_string_to_metric_families(response.text):
        for sample in family.samples:
            rest = {k: v for k, v in sample.labels.items() if k not in ("stream", "stream_id")}
            found[sample.name, ",".join(f"{k}={v}" for k, v in sorted(rest.items()))] = sample.value
    return found


def test_a_stream_tells_its_counters_its_state_and_its_trouble(
    api: TestClient, client: Service
) -> None:
    # given
    client.attach(URL, "yard", probe=False)
    spec = client.stream("yard")
    error = ErrorInfo(code=ErrorCode.STREAM_TIMEOUT, message=f"{spec.url} sent nothing for 8 s.")
    status = StreamStatus(
        state=StreamState.RECONNECTING, error=error, last_frame_at=utc_now(), reported_at=utc_now()
    )
    counters = status.counters
    counters.packets, counters.bytes, counters.decoded, counters.sampled = 50, 12_345, 49, 2
    counters.dropped = Drops(late=3, redis_full=4)
    counters.reconnects, counters.measured_fps, counters.bit_rate = 1, 24.5, 2e6
    counters.codec, counters.width, counters.height = "h264", 640, 480
    client.registry.save_status(spec.id, status)
    # when
    found = samples(api)
    # then
    expected = {
        ("streamer_redis_up", ""): 1,
        ("streamer_stream_packets_total", ""): 50,
        ("streamer_stream_received_bytes_total", ""): 12_345,
        ("streamer_stream_decoded_frames_total", ""): 49,
        ("streamer_stream_sampled_frames_total", ""): 2,
        ("streamer_stream_dropped_frames_total", "cause=late"): 3,
        ("streamer_stream_dropped_frames_total", "cause=redis_full"): 4,
        ("streamer_stream_dropped_frames_total", "cause=decode_error"): 0,
        ("streamer_stream_reconnects_total", ""): 1,
        ("streamer_stream_fps", ""): 24.5,
        ("streamer_stream_bytes_per_second", ""): 2.5e5,
        ("streamer_stream_state", "streamer_stream_state=reconnecting"): 1,
        ("streamer_stream_state", "streamer_stream_state=running"): 0,
        ("streamer_stream_error", "code=STREAM_TIMEOUT"): 1,
        ("streamer_stream_info", "codec=h264,height=480,width=640"): 1,
    }
    assert {key: found.get(key) for key in expected} == expected
    assert 0 <= found["streamer_stream_last_frame_age_seconds", ""] < 30


def test_queues_are_counted(api: TestClient, client: Service) -> None:
    for n in range(3):
        now = utc_now()
        request = ClipRequest(
            kind=RequestKind.WATCH,
            stream_id="str_x",
            stream_name="x",
            watch_id=f"wch_{n}",
            start=now,
            end=now,
            prompt="?",
            frames=[],
        )
        client.jobs.submit(request)
    found = samples(api)
    assert found["streamer_queue_jobs", "queue=watches"] == 3
    assert found["streamer_queue_jobs", "queue=queries"] == 0
    assert found["streamer_workers", "kind=ingest"] == 0


def test_a_real_worker_tells_how_it_is_and_is_forgotten_with_its_end(
    api: TestClient,
    client: Service,
    worker_process: Callable[..., Any],
    eventually: Callable[..., None],
) -> None:
    worker = worker_process("ingest", STREAMER_INGEST_SLOTS="7")
    (name,) = client.jobs.worker_stats()
    found = samples(api)
    assert found["streamer_workers", "kind=ingest"] == 1
    assert found["streamer_worker_slots", f"worker={name}"] == 7
    assert found["streamer_worker_slots_busy", f"worker={name}"] == 0
    assert found["streamer_worker_threads", f"worker={name}"] >= 2
    assert found["streamer_worker_resident_bytes", f"worker={name}"] > 2**20
    assert client.connections.main.ttl(redis_keys.worker(name)) > 0
    worker.terminate()
    worker.wait()
    assert client.connections.main.exists(redis_keys.worker(name)) == 0
    assert ("streamer_worker_slots", f"worker={name}") not in samples(api)


def test_a_recorder_reports_what_it_uses_until_it_ends(
    api: TestClient,
    client: Service,
    worker_process: Callable[..., Any],
    eventually: Callable[..., None],
) -> None:
    # given a recorder
    recorder = worker_process("recorder")
    eventually(client.jobs.worker_stats)
    (name,) = client.jobs.worker_stats()
    # when metrics are read
    found = samples(api)
    # then its process is among the workers', but it takes no jobs
    assert name.startswith("recorder-")
    assert found["streamer_worker_resident_bytes", f"worker={name}"] > 2**20
    assert found["streamer_worker_open_descriptors", f"worker={name}"] > 3
    assert found["streamer_worker_cpu_seconds", f"worker={name}"] > 0
    assert found["streamer_workers", "kind=clips"] == found["streamer_workers", "kind=ingest"] == 0
    assert client.connections.main.ttl(redis_keys.worker(name)) > 0
    # and is forgotten with its end
    recorder.terminate()
    recorder.wait()
    assert client.jobs.worker_stats() == {}


def test_requests_are_counted_by_the_template_of_their_route(api_server: ApiServer) -> None:
    api_server.client.attach(URL, "yard", probe=False)
    with (
        httpx.Client(base_url=api_server.url, timeout=120) as api,
        connect(api_server.url.replace("http", "ws") + "/v1/ws") as socket,
        api.stream("GET", "/v1/events") as events,
    ):
        # given requests: found and not, of methods and paths made up, and two that go on
        for path in ("/v1/streams/yard", "/v1/streams/yard", "/v1/streams/gone", "/v1/streams?x=1"):
            api.get(path)
        api.request("BREW", "/v1/streams/yard")
        for number in range(5):
            api.request(f"PING{number}", f"/made-up/{number}")
        assert events.status_code == 200
        socket.ping().wait(60)
        # when they are read
        found = samples(api)
        # then each has counted for its route, and what clients make up has no label of its own
        counts = {key[1]: n for key, n in found.items() if key[0] == "streamer_api_requests_total"}
        assert counts == {
            "method=GET,route=/v1/streams/{ref},status=2xx": 2,
            "method=GET,route=/v1/streams/{ref},status=4xx": 1,
            "method=GET,route=/v1/streams,status=4xx": 1,
            "method=other,route=/v1/streams/{ref},status=4xx": 1,
            "method=other,route=other,status=4xx": 5,
            "method=GET,route=/v1/events,status=2xx": 1,
            "method=WEBSOCKET,route=/v1/ws,status=1xx": 1,
        }
        answered = "streamer_api_response_seconds_count"
        assert found[answered, "method=GET,route=/v1/streams/{ref}"] == 3
        assert (answered, "method=WEBSOCKET,route=/v1/ws") not in found
        assert found["streamer_api_response_seconds_sum", "method=GET,route=/v1/streams/{ref}"] > 0
        bucket = "le=+Inf,method=GET,route=/v1/streams/{ref}"
        assert found["streamer_api_response_seconds_bucket", bucket] == 3
        # and the request for the metrics itself is there the next time
        own = "method=GET,route=/metrics,status=2xx"
        assert samples(api)["streamer_api_requests_total", own] == 1


def test_the_api_reports_what_its_process_uses(api: TestClient) -> None:
    found = samples(api)
    assert found["streamer_api_process_cpu_seconds_total", ""] > 0
    assert found["streamer_api_process_resident_memory_bytes", ""] > 2**20
    assert found["streamer_api_process_open_fds", ""] > 3


def test_the_engine_of_a_gpu_worker_is_told_of(
    api: TestClient, client: Service, worker_process: Callable[..., Any], random_checkpoint: Any
) -> None:
    worker_process("gpu", STREAMER_MODEL=str(random_checkpoint), STREAMER_KV_CACHE_TOKENS="4096")
    (name,) = client.jobs.worker_stats()
    found = samples(api)
    assert found["streamer_worker_kv_cache_tokens", f"worker={name}"] == 4096
    assert found["streamer_worker_running", f"worker={name}"] == 0


def test_a_machine_whose_clock_is_wrong_says_so(api: TestClient, client: Service) -> None:
    client.connections.clock = ServerClock(client.connections.clock.time, ShiftedClock(-60.0))
    client.connections.clock.measure()
    assert samples(api)["streamer_clock_offset_seconds", ""] == pytest.approx(-60, abs=20)


def test_redis_away_is_a_metric(settings: Settings, tmp_path: Any) -> None:
    server = EmbeddedServer(tmp_path / "server", persistent=False, max_memory=None)
    server.start()
    lost = Service(settings.model_copy(update={"redis_url": server.url}))
    with TestClient(create_app(lost), base_url="http://127.0.0.1:8080") as api:
        assert samples(api)["streamer_redis_up", ""] == 1
        server.stop()
        away = samples(api)
    assert away["streamer_redis_up", ""] == 0
    assert ("streamer_workers", "kind=ingest") not in away
    assert away["streamer_api_requests_total", "method=GET,route=/metrics,status=2xx"] == 1


def test_a_stream_that_nobody_runs_says_so(client: Service) -> None:
    spec = StreamSpec(name="yard", url="rtsp://camera/live", live=True)
    client.registry.create(spec, spec.url)
    assert client.stream("yard").error is None
    long_ago = time.time() - 3600
    client.registry.save_status(
        spec.id,
        StreamStatus.model_validate({"state": "running", "reported_at": long_ago}),
    )
    stream = client.stream("yard")
    assert stream.state is StreamState.CONNECTING
    assert stream.error is not None
    assert stream.error.code is ErrorCode.NO_WORKER
    assert "streamer ingest" in stream.error.message
    assert client.streams()[0].error == stream.error
    client.close()


def test_events_that_redis_gave_up_are_counted(api: TestClient, client: Service) -> None:
    assert samples(api)["streamer_events_lost_total", ""] == 0
    client.connections.main.set(redis_keys.EVENTS_LOST, 3)
    assert samples(api)["streamer_events_lost_total", ""] == 3


def test_many_streams_have_bounded_metrics_and_totals(
    settings: Settings, redis_client: redis.Redis
) -> None:
    # given more streams than have metrics of their own, one of which nobody reports
    client = Service(settings.model_copy(update={"metrics_streams": 2}))
    first = utc_now()
    for number in range(5):
        spec = StreamSpec(
            name=f"cam-{number}",
            url="rtsp://camera/x",
            live=True,
            created_at=first + timedelta(seconds=number),
        )
        client.registry.create(spec, spec.url)
        reported = utc_now() - timedelta(seconds=60 if number == 4 else 0)
        status = StreamStatus(state=StreamState.RUNNING, reported_at=reported)
        status.counters.packets = 10
        client.registry.save_status(spec.id, status)
    # when
    state = create_app(client).state
    found = render(client, CachedHealth(client.health), state.videos, state.requests)
    lines = found.decode().splitlines()
    sent = commands_of(redis_client, lambda: client.registry.totals())
    # then
    shown = [line for line in lines if line.startswith("streamer_stream_packets_total{")]
    assert len(shown) == 2
    assert 'stream="cam-0"' in shown[0]
    assert 'stream="cam-1"' in shown[1]
    assert 'streamer_streams{state="running"} 4.0' in lines
    assert 'streamer_streams{state="connecting"} 1.0' in lines
    assert "streamer_streams_packets_total 50.0" in lines
    assert sent == ["HKEYS", "MULTI", "HGETALL", "MGET", "EXEC"]
    # and the sums, which are counters, do not fall when streams are detached
    for number in range(5):
        client.detach(f"cam-{number}")
        states, sums = client.registry.totals()
        assert (sum(states.values()), sums["packets"]) == (4 - number, 50)


def test_labels_may_hold_any_character(client: Service) -> None:
    # given a stream whose codec has every character that the format escapes
    codec = 'h"26\\4\n}'
    client.attach(URL, "yard", probe=False)
    stream = client.stream("yard")
    stream.counters.codec = codec
    # when its lines are read as Prometheus reads them
    text = "".join(stream_lines([stream]))
    families = {family.name: family for family in text_string_to_metric_families(text)}
    # then each has its labels
    (media,) = families["streamer_stream_info"].samples
    assert media.labels["codec"] == codec
    for family in families.values():
        assert {sample.labels["stream_id"] for sample in family.samples} <= {stream.id}
    states = families["streamer_stream_state"].samples
    assert {s.labels["streamer_stream_state"] for s in states} == {s.value for s in StreamState}
    assert sum(sample.value for sample in states) == 1
