"""Following a recording, with the workers' side played through the same public classes."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from streamer.cli.recording_analysis import Analysis
from streamer.client import Client
from streamer.domain import ErrorInfo, Result, StreamCounters, StreamState, StreamStatus
from streamer.errors import ErrorCode, StreamerError
from streamer.settings import Settings
from tests.support.videos import write_video


@pytest.fixture
def client(settings: Settings) -> Iterator[Client]:
    with Client(settings) as opened:
        yield opened


@pytest.fixture
def analysis(client: Client, tmp_path: Path) -> Analysis:
    path = tmp_path / "clip.mp4"
    write_video(path, seconds=0.5)
    last_id = client.queue.last_id()
    return Analysis(client, client.analyze(str(path), window=4.0), last_id)


def publish(
    client: Client, analysis: Analysis, start: float, error: ErrorInfo | None = None
) -> None:
    client.queue.publish(
        Result(
            request_id=f"req_{start}",
            kind="error" if error else "caption",
            stream_id=analysis.stream.id,
            stream_name=analysis.stream.name,
            prompt="?",
            text=None if error else f"At {start:g}.",
            error=error,
            data={"media_start": start, "media_end": start + 4.0},
        ),
        owner_id=analysis.stream.id,
    )


def enter(
    client: Client,
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


def test_results_come_in_any_order_and_go_out_in_order(client: Client, analysis: Analysis) -> None:
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


def test_a_gap_is_closed_at_the_end(client: Client, analysis: Analysis) -> None:
    enter(client, analysis, StreamState.RUNNING, 2)
    for start in (0.0, 8.0):
        publish(client, analysis, start)
    analysis.advance(0.1)
    assert starts(analysis.in_order()) == [0.0]
    enter(client, analysis, StreamState.ENDED, 2)
    analysis.advance(0.1)
    assert starts(analysis.in_order()) == [8.0]


def test_a_window_without_caption_is_trouble(client: Client, analysis: Analysis) -> None:
    publish(client, analysis, 0.0)
    publish(client, analysis, 4.0, ErrorInfo(code=ErrorCode.WORKER_LOST, message="It died."))
    enter(client, analysis, StreamState.ENDED, 2)
    analysis.advance(0.1)
    assert analysis.finished
    trouble = analysis.trouble()
    assert trouble is not None
    assert trouble.code is ErrorCode.WORKER_LOST
    assert trouble.message == "1 of 2 windows have no caption. First error: It died."


def test_a_file_that_breaks_off_is_trouble(client: Client, analysis: Analysis) -> None:
    publish(client, analysis, 0.0)
    error = ErrorInfo(code=ErrorCode.STREAM_CODEC_UNSUPPORTED, message="It breaks off.")
    enter(client, analysis, StreamState.FAILED, 1, error)
    analysis.advance(0.1)
    assert analysis.finished
    trouble = analysis.trouble()
    assert trouble is not None
    assert (trouble.code, trouble.message) == (error.code, error.message)


def test_a_file_that_ended_early_is_trouble(client: Client, analysis: Analysis) -> None:
    publish(client, analysis, 0.0)
    warning = ErrorInfo(code=ErrorCode.STREAM_ENDED_EARLY, message="It ended early.")
    enter(client, analysis, StreamState.ENDED, 1, warnings=[warning])
    analysis.advance(0.1)
    assert analysis.finished
    trouble = analysis.trouble()
    assert trouble is not None
    assert (trouble.code, trouble.message) == (warning.code, warning.message)


def test_no_frame_at_all_is_trouble(client: Client, analysis: Analysis) -> None:
    enter(client, analysis, StreamState.ENDED, 0)
    analysis.advance(0.1)
    trouble = analysis.trouble()
    assert trouble is not None
    assert trouble.code is ErrorCode.NO_FRAMES


def test_somebody_detached_it(client: Client, analysis: Analysis) -> None:
    client.detach(analysis.stream.id)
    with pytest.raises(StreamerError, match="was detached"):
        analysis.advance(0.1)
