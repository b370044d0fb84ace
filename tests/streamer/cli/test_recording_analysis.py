"""Following a recording, with the workers' side played through the same public classes."""

from collections.abc import Callable, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from rq import Worker
from rq.job import Job, JobStatus
from rq.serializers import JSONSerializer

from streamer import redis_keys
from streamer.cli.recording_analysis import PATIENCE, Analysis
from streamer.demo.loopback_camera import LoopbackCamera
from streamer.domain.error_info import ErrorInfo
from streamer.domain.request import ClipRequest
from streamer.domain.result import Result
from streamer.domain.stream import StreamCounters, StreamState, StreamStatus
from streamer.errors import ErrorCode, StreamerError
from streamer.service import Service
from tests.support.clocks import ManualClock
from tests.support.videos import write_video


@pytest.fixture
def analysis(client: Service, tmp_path: Path) -> Analysis:
    path = tmp_path / "clip.mp4"
    write_video(path, seconds=0.5)
    last_id = client.queue.last_id()
    return Analysis(client, client.analyze(str(path), window=4.0), last_id)


def ask(client: Service, analysis: Analysis, start: float) -> ClipRequest:
    """Submit the request of a window, as an ingest worker does."""
    stream = analysis.stream
    request = ClipRequest.for_watch(
        stream,
        stream.watches[0],
        start=stream.created_at + timedelta(seconds=start),
        end=stream.created_at + timedelta(seconds=start + 4.0),
        frames=[],
        id=f"req_{round(start)}",
        data={"media_start": start, "media_end": start + 4.0},
    )
    client.jobs.submit(request)
    return request


def publish(
    client: Service, analysis: Analysis, start: float, error: ErrorInfo | None = None
) -> None:
    request = ask(client, analysis, start)
    outcome = {"error": error} if error else {"text": f"At {start:g}."}
    client.queue.publish(Result.answering(request, **outcome), owner_id=analysis.stream.id)


def enter(
    client: Service,
    analysis: Analysis,
    state: StreamState,
    clips: int,
    error: ErrorInfo | None = None,
    warnings: Sequence[ErrorInfo] = (),
) -> None:
    counters = StreamCounters(clips=clips, duration=12.0)
    status = StreamStatus(state=state, counters=counters, error=error, warnings=list(warnings))
    assert client.registry.save_status(analysis.stream.id, status)


def starts(results: list[Result]) -> list[float]:
    return [result.data["media_start"] for result in results if result.data]


def test_results_come_in_any_order_and_go_out_in_order(client: Service, analysis: Analysis) -> None:
    enter(client, analysis, StreamState.RUNNING, 2)
    publish(client, analysis, 4.0)
    assert starts(analysis.advance(0.1)) == [4.0]
    assert analysis.in_order() == [], "the first window is still to come"
    publish(client, analysis, 0.0)
    analysis.advance(0.1)
    assert starts(analysis.in_order()) == [0.0, 4.0]
    assert analysis.in_order() == []
    assert not analysis.finished
    assert analysis.done_seconds == 8.0

    ask(client, analysis, 8.0)
    enter(client, analysis, StreamState.ENDED, 3)
    analysis.advance(0.1)
    assert not analysis.finished, "it has ended, but one clip has no result yet"
    publish(client, analysis, 8.0)
    analysis.advance(0.1)
    assert analysis.finished
    assert starts(analysis.in_order()) == [8.0]
    assert starts(analysis.timeline) == [0.0, 4.0, 8.0]
    assert analysis.trouble() is None
    assert analysis.duration == 12.0


def test_a_gap_is_closed_at_the_end(client: Service, analysis: Analysis) -> None:
    enter(client, analysis, StreamState.RUNNING, 2)
    for start in (0.0, 8.0):
        publish(client, analysis, start)
    analysis.advance(0.1)
    assert starts(analysis.in_order()) == [0.0]
    enter(client, analysis, StreamState.ENDED, 2)
    analysis.advance(0.1)
    assert starts(analysis.in_order()) == [8.0]


def test_a_counter_that_is_out_of_date_does_not_end_it(client: Service, analysis: Analysis) -> None:
    # given a worker that was killed before it saved how many clips it had submitted
    for start in (0.0, 4.0, 8.0):
        ask(client, analysis, start)
    enter(client, analysis, StreamState.ENDED, 1)
    publish(client, analysis, 0.0)
    analysis.advance(0.1)
    assert not analysis.finished
    publish(client, analysis, 4.0)
    publish(client, analysis, 8.0)
    analysis.advance(0.1)
    assert analysis.finished
    assert starts(analysis.in_order()) == [0.0, 4.0, 8.0]


def test_results_that_the_queue_has_trimmed_are_found(client: Service, analysis: Analysis) -> None:
    for start in (0.0, 4.0, 8.0):
        publish(client, analysis, start)
    client.connections.main.xtrim(redis_keys.RESULTS, maxlen=1, approximate=False)
    enter(client, analysis, StreamState.ENDED, 3)
    analysis.advance(0.1)
    assert analysis.finished
    assert starts(analysis.in_order()) == [0.0, 4.0, 8.0]


def test_clips_that_an_earlier_release_submitted_are_waited_for(
    client: Service, analysis: Analysis
) -> None:
    # given a worker that counts its clips and does not record them
    requests = [ask(client, analysis, start) for start in (0.0, 4.0)]
    client.windows.forget(analysis.stream.id)
    enter(client, analysis, StreamState.ENDED, 2)
    for request in requests:
        analysis.advance(0.01)
        analysis.advance(0.01)
        assert not analysis.finished
        client.queue.publish(Result.answering(request, text="Yes."), owner_id=analysis.stream.id)
    analysis.advance(0.1)
    assert analysis.finished
    assert analysis.trouble() is None


def test_without_an_ingest_worker_that_goes_on_it_ends(client: Service, analysis: Analysis) -> None:
    # given a recording whose only worker died
    job = Job.fetch(
        f"ingest-{analysis.stream.id}",
        connection=client.connections.main,
        serializer=JSONSerializer,
    )
    job.set_status(JobStatus.STARTED)
    enter(client, analysis, StreamState.RUNNING, 1)
    said: list[str] = []
    clock = ManualClock()
    waiting = Analysis(client, analysis.stream, "0-0", say=said.append, clock=clock)
    waiting.advance(0.01)
    assert "No ingest worker is running" in said[0]
    clock.now += PATIENCE
    with pytest.raises(StreamerError) as caught:
        waiting.advance(0.01)
    assert caught.value.code is ErrorCode.NO_WORKER


def test_a_window_without_caption_is_trouble(client: Service, analysis: Analysis) -> None:
    publish(client, analysis, 0.0)
    publish(client, analysis, 4.0, ErrorInfo(code=ErrorCode.WORKER_LOST, message="It died."))
    enter(client, analysis, StreamState.ENDED, 2)
    analysis.advance(0.1)
    assert analysis.finished
    trouble = analysis.trouble()
    assert trouble is not None
    assert trouble.code is ErrorCode.WORKER_LOST
    assert trouble.message == "1 of 2 windows have no caption. First error: It died."


def test_a_file_that_breaks_off_is_trouble(client: Service, analysis: Analysis) -> None:
    publish(client, analysis, 0.0)
    error = ErrorInfo(code=ErrorCode.STREAM_CODEC_UNSUPPORTED, message="It breaks off.")
    enter(client, analysis, StreamState.FAILED, 1, error)
    analysis.advance(0.1)
    assert analysis.finished
    trouble = analysis.trouble()
    assert trouble is not None
    assert (trouble.code, trouble.message) == (error.code, error.message)


def test_a_file_that_ended_early_is_trouble(client: Service, analysis: Analysis) -> None:
    publish(client, analysis, 0.0)
    warning = ErrorInfo(code=ErrorCode.STREAM_ENDED_EARLY, message="It ended early.")
    enter(client, analysis, StreamState.ENDED, 1, warnings=[warning])
    analysis.advance(0.1)
    assert analysis.finished
    trouble = analysis.trouble()
    assert trouble is not None
    assert (trouble.code, trouble.message) == (warning.code, warning.message)


def test_no_frame_at_all_is_trouble(client: Service, analysis: Analysis) -> None:
    enter(client, analysis, StreamState.ENDED, 0)
    analysis.advance(0.1)
    trouble = analysis.trouble()
    assert trouble is not None
    assert trouble.code is ErrorCode.NO_FRAMES


def test_somebody_detached_it(client: Service, analysis: Analysis) -> None:
    client.detach(analysis.stream.id)
    with pytest.raises(StreamerError, match="was detached"):
        analysis.advance(0.1)


def test_a_recording_that_finds_all_slots_taken_says_so_and_ends(
    client: Service,
    loopback: LoopbackCamera,
    tmp_path: Path,
    worker_process: Callable[..., Any],
    eventually: Callable[..., None],
) -> None:
    # given an ingest worker with one slot, which a camera takes
    worker_process("ingest", STREAMER_INGEST_SLOTS="1", STREAMER_LEASE="3")
    camera = client.attach(loopback.url, "camera", probe=False)
    eventually(lambda: client.stream(camera.id).state is StreamState.RUNNING)
    eventually(lambda: client.jobs.ingest_slots() == (1, 1))
    # when a recording is analysed
    write_video(tmp_path / "clip.mp4", seconds=0.5)
    last_id = client.queue.last_id()
    stream = client.analyze(str(tmp_path / "clip.mp4"), window=4.0, probe=False)
    said: list[str] = []
    clock = ManualClock()
    waiting = Analysis(client, stream, last_id, say=said.append, clock=clock)
    for _ in range(3):
        waiting.advance(0.01)
        clock.now += 2.0
    # then it says once why it waits, and after a while the analysis ends
    assert len(said) == 1
    assert "1 stream (1 live) takes all 1 ingest slot" in said[0]
    assert "streamer ingest" in said[0]
    clock.now += PATIENCE
    with pytest.raises(StreamerError) as caught:
        waiting.advance(0.01)
    assert caught.value.code is ErrorCode.NO_WORKER
    assert said[0] in caught.value.message
    # and one that is patient is read when the slot is free
    client.detach(camera.id)
    patient = Analysis(client, stream, last_id, say=said.append)
    eventually(lambda: patient.advance(0.1) == [] and patient.duration)


def test_a_recording_behind_another_one_waits_without_end(
    client: Service, analysis: Analysis, tmp_path: Path
) -> None:
    # given a slot that a recording has, which ends some day
    other = client.analyze(str(tmp_path / "clip.mp4"), window=4.0, probe=False)
    job = Job.fetch(
        f"ingest-{other.id}", connection=client.connections.main, serializer=JSONSerializer
    )
    job.set_status(JobStatus.STARTED)
    worker = Worker(["ingest"], connection=client.connections.main, name="other")
    worker.register_birth()
    client.connections.main.hset(redis_keys.worker("other"), mapping={"slots": 1, "slots_busy": 1})
    said: list[str] = []
    clock = ManualClock()
    waiting = Analysis(client, analysis.stream, "0-0", say=said.append, clock=clock)
    # when more time passes than it waits for a camera
    for _ in range(4):
        waiting.advance(0.01)
        clock.now += PATIENCE
    # then it goes on waiting, and has said why
    assert len(said) == 1
    assert "1 stream (0 live) takes all 1 ingest slot" in said[0]
