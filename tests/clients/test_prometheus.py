"""Prometheus's own tools on what the service tells of itself. Debian's package `prometheus`."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml
from fastapi.testclient import TestClient

from streamer.api.app import create_app
from streamer.domain.error_info import ErrorInfo
from streamer.domain.stream import Drops, StreamState, StreamStatus
from streamer.domain.timestamp import utc_now
from streamer.errors import ErrorCode
from streamer.service import Service

pytestmark = pytest.mark.clients

CONFIGS = Path(__file__).parents[2] / "configs" / "prometheus"


@pytest.fixture
def promtool():
    """Run promtool: `promtool(*arguments, input=...)` returns what it printed."""
    program = shutil.which("promtool")
    if program is None:
        pytest.skip("promtool is not installed: apt-get install prometheus")

    def run(*arguments: str, input: str = "") -> str:
        command = [program, *arguments]
        done = subprocess.run(command, input=input, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout + done.stderr

    return run


@pytest.fixture
def metrics(settings, worker_process, random_checkpoint):
    """What an installation tells with a stream in trouble, a model worker and a recorder, and then
    with an ingest worker, which takes the stream."""
    worker_process("gpu", STREAMER_MODEL=str(random_checkpoint), STREAMER_KV_CACHE_TOKENS="4096")
    with Service(settings) as client:
        spec = client.attach("rtsp://camera/yard", "yard", probe=False)
        error = ErrorInfo(code=ErrorCode.STREAM_TIMEOUT, message="It sent nothing for 8 s.")
        now = utc_now()
        status = StreamStatus(
            state=StreamState.RECONNECTING, error=error, last_frame_at=now, reported_at=now
        )
        counters = status.counters
        counters.dropped, counters.codec = Drops(late=3), "h264"
        counters.measured_fps, counters.bit_rate, counters.position = 24.5, 2e6, 8.0
        client.registry.save_status(spec.id, status)
        worker_process("recorder")
        api = TestClient(create_app(client), base_url="http://127.0.0.1:8080")
        api.get("/v1/streams/yard")
        in_trouble = api.get("/metrics").text
        worker_process("ingest")
        yield in_trouble, api.get("/metrics").text


def test_promtool_finds_nothing_wrong_with_the_metrics(promtool, metrics):
    in_trouble, with_ingest = metrics
    assert 'code="STREAM_TIMEOUT"' in in_trouble
    assert "streamer_worker_kv_cache_tokens" in in_trouble
    assert 'streamer_worker_cpu_seconds{worker="recorder-' in in_trouble
    assert "streamer_api_process_open_fds" in in_trouble
    assert 'streamer_api_response_seconds_sum{method="GET",route="/v1/streams/{ref}"}' in in_trouble
    assert 'streamer_workers{kind="ingest"} 1.0' in with_ingest
    for reported in metrics:
        assert promtool("check", "metrics", input=reported) == ""


def test_promtool_accepts_the_rules_and_their_tests(promtool):
    promtool("check", "config", str(CONFIGS / "prometheus.yml"))
    promtool("check", "rules", str(CONFIGS / "alerts.yml"))
    promtool("test", "rules", str(CONFIGS / "alerts.test.yml"))


def test_rules_and_dashboard_ask_for_metrics_that_there_are(metrics):
    # a model worker with a server elsewhere tells whether it is there
    reported = set(re.findall(r"^(\w+)[{ ]", metrics[0], re.MULTILINE)) | {
        "streamer_worker_model_server_up"
    }
    rules = yaml.safe_load((CONFIGS / "alerts.yml").read_text())
    asked = [rule["expr"] for group in rules["groups"] for rule in group["rules"]]
    panels = json.loads((CONFIGS.parent / "grafana" / "dashboard.json").read_text())["panels"]
    asked += [target["expr"] for panel in panels for target in panel["targets"]]
    names = {name for expression in asked for name in re.findall(r"streamer_\w+", expression)}
    assert len(names) > 20
    assert names <= reported
