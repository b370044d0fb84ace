"""For how long the frames of streams are kept, as people and programs read it."""

from datetime import timedelta

import pytest
import redis
from fastapi.testclient import TestClient
from typer.testing import CliRunner

from nvila_core.resolution.policy import Measures
from streamer.cli.app import app
from streamer.doctor import frames
from streamer.domain.stream import Stream, StreamSpec, StreamState, StreamStatus
from streamer.domain.timestamp import to_datetime
from streamer.domain.watch import Watch
from streamer.errors import ErrorCode
from streamer.service import Service
from tests.support.redis_commands import commands_of


def attach(client: Service, name: str, *, kept: float, runs: float, live: bool = True) -> Stream:
    """Attach a camera with a watch of 10 s that runs for so many seconds, and whose oldest frame is
    so old."""
    now = client.connections.clock.time()
    watch = Watch(prompt="What?", window=10, max_frames=4, max_tokens=8)
    spec = StreamSpec(name=name, url="rtsp://cam/", live=live, watches=[watch])
    client.registry.create(spec, spec.url)
    since = to_datetime(now) - timedelta(seconds=runs)
    client.registry.save_status(spec.id, StreamStatus(state=StreamState.RUNNING, since=since))
    for age in (kept, kept / 2, 0.5):
        client.frames.put(spec.id, b"jpeg", Measures(32, 24, change=0.0), time=now - age, pts=0.0)
    return client.stream(name)


@pytest.mark.parametrize(
    ("kept", "runs", "short"),
    [(900, 1000, False), (21, 1000, False), (12, 1000, True), (12, 12, False)],
    ids=["long", "just enough", "too short", "just started"],
)
def test_a_stream_tells_the_span_that_is_kept_and_warns_below_two_windows(
    client: Service, kept: float, runs: float, short: bool
) -> None:
    stream = attach(client, "yard", kept=kept, runs=runs)
    assert stream.kept_seconds == pytest.approx(kept, abs=5)
    assert [warning.code for warning in stream.warnings] == [ErrorCode.FRAMES_KEPT_SHORT] * short
    (listed,) = client.streams()
    assert len(listed.warnings) == short


def test_it_is_in_the_api_the_command_line_and_the_doctor(
    client: Service, api: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    # given one stream that keeps enough, and one that does not
    attach(client, "yard", kept=300, runs=1000)
    (well,) = frames.spans(client.settings)
    attach(client, "door", kept=12, runs=1000)
    # then each door tells
    found = {stream["name"]: stream for stream in api.get("/v1/streams").json()["streams"]}
    assert found["yard"]["kept_seconds"] == pytest.approx(300, abs=30)
    assert found["door"]["warnings"][0]["code"] == "FRAMES_KEPT_SHORT"
    monkeypatch.setenv("STREAMER_REDIS_URL", client.settings.redis_url or "")
    shown = CliRunner().invoke(app, ["streams", "door"]).output
    assert "frames kept" in shown
    assert "FRAMES_KEPT_SHORT" in shown
    assert (well.state, "yard: 30" in well.message) == ("ok", True)
    (bad,) = frames.spans(client.settings)
    assert bad.state == "warn"
    assert "are kept of door," in bad.message


def test_a_stream_without_frames_and_a_recording_have_no_span(client: Service) -> None:
    spec = StreamSpec(name="hall", url="rtsp://cam/", live=True)
    client.registry.create(spec, spec.url)
    assert client.stream("hall").kept_seconds is None
    assert attach(client, "film", kept=60, runs=60, live=False).kept_seconds is None
    assert [check.message for check in frames.spans(client.settings)] == []


def test_a_page_of_streams_takes_as_many_commands_as_one_stream(
    client: Service, redis_client: redis.Redis
) -> None:
    # given one stream, listed
    attach(client, "yard", kept=60, runs=60)
    client.stream_page()
    alone = commands_of(redis_client, client.stream_page)
    # when there are ten
    for number in range(9):
        attach(client, f"door-{number}", kept=60, runs=60)
    page, _ = client.stream_page()
    # then a list asks Redis no more often
    assert [stream.kept_seconds is not None for stream in page] == [True] * 10
    assert commands_of(redis_client, client.stream_page) == alone
    assert len(alone) <= 4
