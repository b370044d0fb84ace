"""Recordings in an ingest slot: real files, a real Valkey; nothing may be lost."""

import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest

from streamer.domain.kinds import RequestKind
from streamer.domain.request import ClipRequest
from streamer.domain.stream import StreamState, StreamStatus
from streamer.errors import ErrorCode
from streamer.queues.models import FILES
from streamer.sources.streams import StreamRegistry
from tests.support.clocks import SkippingClock
from tests.support.ingest_bench import Bench, Flaky, watch
from tests.support.videos import write_audio, write_video


def test_every_window_of_a_recording_is_asked_about(bench: Bench, tmp_path: Path) -> None:
    # given
    write_video(tmp_path / "v.mp4", seconds=5, b_frames=2)
    spec = bench.attach(tmp_path / "v.mp4", watch(2.0, max_tokens=7), fps=2)
    # when
    with bench.run(spec) as slot:
        slot.join()
    # then
    assert slot.outcome == "returned"
    requests = bench.requests(FILES)
    assert [request.data for request in requests] == [
        {"media_start": 0.0, "media_end": 2.0},
        {"media_start": 2.0, "media_end": 4.0},
        {"media_start": 4.0, "media_end": 5.0},
    ]
    assert [bench.numbers(request) for request in requests] == [
        [0, 13, 25, 38],
        [50, 63, 75, 88],
        [100, 113],
    ]
    first = requests[0]
    assert (first.kind, first.watch_id) == (RequestKind.FILE, spec.watches[0].id)
    assert (first.prompt, first.max_tokens) == ("What is there?", 7)
    assert first.start == spec.created_at
    assert (first.end - first.start).total_seconds() == 2
    assert first.frames[1].time == pytest.approx(spec.created_at.timestamp() + 0.52)
    status = bench.status(spec)
    assert (status.state, status.error) == (StreamState.ENDED, None)
    counters = status.counters
    assert (counters.packets, counters.sampled) == (125, 10)
    assert 10 <= counters.decoded <= 125
    assert counters.bytes > 0
    assert counters.measured_fps == pytest.approx(25.0)
    assert counters.bit_rate == pytest.approx(8 * counters.bytes / 5)
    assert (counters.clips, counters.clips_dropped, counters.dropped.total) == (3, 0, 0)
    assert (counters.width, counters.height, counters.codec) == (320, 240, "h264")
    assert counters.duration == pytest.approx(5.0)
    assert counters.position == pytest.approx(4.96)
    assert status.last_frame_at is not None


def test_frames_of_a_recording_carry_their_times_and_measures(bench: Bench, tmp_path: Path) -> None:
    write_video(tmp_path / "v.mp4", seconds=2)
    spec = bench.attach(tmp_path / "v.mp4", fps=5)
    with bench.run(spec) as slot:
        slot.join()
    frames = bench.frames.newest(spec.id, 100)
    assert [frame.pts for frame in frames] == pytest.approx([n / 5 for n in range(10)])
    assert {(frame.width, frame.height) for frame in frames} == {(320, 240)}
    assert frames[0].change == 1.0
    assert all(0 < frame.change < 0.5 for frame in frames[1:])
    assert frames[0].fresh == frames[0].detail  # all of the first is new
    assert all(len(frame.detail) == len(frame.fresh) >= 2 for frame in frames)
    assert all(frame.measures.detail == frame.detail for frame in frames)
    assert all(frame.decode_ms > 0 for frame in frames)
    assert bench.requests(FILES) == []


def test_many_frames_of_a_window_are_thinned(bench: Bench, tmp_path: Path) -> None:
    write_video(tmp_path / "v.mp4", seconds=4)
    spec = bench.attach(tmp_path / "v.mp4", watch(4, max_frames=5), fps=25)
    with bench.run(spec) as slot:
        slot.join()
    (request,) = bench.requests(FILES)
    numbers = bench.numbers(request)
    assert len(numbers) == 5
    assert (numbers[0], numbers[-1]) == (0, 99)
    assert all(a < b for a, b in pairwise(numbers))


def test_a_recording_waits_for_its_answers_and_loses_nothing(
    bench: Bench, tmp_path: Path, eventually: Callable[..., None]
) -> None:
    bench = bench.with_settings(max_file_clips=2)
    write_video(tmp_path / "v.mp4", seconds=10)
    spec = bench.attach(tmp_path / "v.mp4", watch(1.0), fps=2)
    answered: dict[str, dict[str, object]] = {}
    with bench.run(spec, clock=SkippingClock()) as slot:
        while len(answered) < 10:
            eventually(lambda: bench.requests(FILES))
            waiting = bench.requests(FILES)
            assert len(waiting) <= 2
            assert waiting[0].id not in answered
            answered[waiting[0].id] = waiting[0].data or {}
            assert len(bench.numbers(waiting[0])) == 2
            bench.answer(waiting[0])
        slot.join()
    assert [data["media_start"] for data in answered.values()] == list(range(10))
    assert bench.status(spec).state is StreamState.ENDED
    assert bench.status(spec).counters.clips_dropped == 0


def test_a_recording_that_a_worker_left_half_way_is_continued(
    bench: Bench, tmp_path: Path, eventually: Callable[..., None]
) -> None:
    # given a worker that stopped in the middle, and one that stopped right after it
    bench = bench.with_settings(max_file_clips=2)
    write_video(tmp_path / "v.mp4", seconds=8, gop=30)
    spec = bench.attach(tmp_path / "v.mp4", watch(1.0), watch(3.0), fps=3)
    seen: dict[str, ClipRequest] = {}

    def work_off() -> None:
        for request in bench.requests(FILES):
            assert request.id not in seen
            seen[request.id] = request
            assert len(bench.numbers(request)) == len(request.frames)
            bench.answer(request)

    for half in (4, 7):
        with bench.run(spec) as slot:
            while len(seen) < half:
                work_off()
            slot.stop()
        assert slot.given_back
        assert bench.status(spec).state is StreamState.RUNNING
    # when
    with bench.run(spec) as slot:
        eventually(lambda: work_off() or slot.outcome)
    work_off()
    # then every window was asked about once, with all of its frames
    windows: dict[str | None, list[tuple[float, int]]] = {}
    for request in seen.values():
        start = (request.data or {})["media_start"]
        windows.setdefault(request.watch_id, []).append((start, len(request.frames)))
    short, long = spec.watches
    assert sorted(windows[short.id]) == [(n, 3) for n in range(8)]
    assert sorted(windows[long.id]) == [(0, 9), (3, 9), (6, 6)]
    assert bench.status(spec).state is StreamState.ENDED
    # and running it once more does nothing
    with bench.run(spec) as slot:
        slot.join()
    assert bench.requests(FILES) == []


def test_a_recording_that_cannot_be_read_has_failed(bench: Bench, tmp_path: Path) -> None:
    write_audio(tmp_path / "sound.m4a")
    (tmp_path / "empty.mp4").touch()
    for name, code in (
        ("none.mp4", ErrorCode.STREAM_NOT_FOUND),
        ("sound.m4a", ErrorCode.STREAM_NO_VIDEO),
        ("empty.mp4", ErrorCode.STREAM_NO_VIDEO),
    ):
        spec = bench.attach(tmp_path / name, watch(), name=name)
        with bench.run(spec) as slot:
            slot.join()
        status = bench.status(spec)
        assert status.state is StreamState.FAILED
        assert status.error is not None
        assert status.error.code is code
        assert name in status.error.message


@pytest.mark.parametrize("share", [0.3, 0.5, 0.8])
def test_a_recording_that_ends_early_says_so(bench: Bench, tmp_path: Path, share: float) -> None:
    # given the beginning of a file, whose index announces all of it
    path = tmp_path / "v.mp4"
    write_video(path, seconds=10, fps=10, container_options={"movflags": "faststart"})
    path.write_bytes(path.read_bytes()[: round(share * path.stat().st_size)])
    spec = bench.attach(path, watch(4.0))

    with bench.run(spec) as slot:
        slot.join()

    # then its state and its last clip say what is missing, and the clip ends where the video does
    status = bench.status(spec)
    (warning,) = status.warnings
    assert status.state is StreamState.ENDED
    assert warning.code is ErrorCode.STREAM_ENDED_EARLY
    assert f"ended after {status.counters.position + 0.1:.1f} of 10.0 s" in warning.message
    last = bench.requests(FILES)[-1]
    assert last.warning == warning.message
    assert last.data is not None
    assert last.data["media_end"] <= status.counters.position + 0.11


def test_a_whole_recording_has_no_warning(bench: Bench, tmp_path: Path) -> None:
    for name, b_frames in (("a.mp4", 0), ("b.mp4", 3), ("c.ts", 0), ("d.mkv", 3), ("e.avi", 2)):
        write_video(tmp_path / name, seconds=3, fps=10, b_frames=b_frames)
        spec = bench.attach(tmp_path / name, watch(4.0), name=name)
        with bench.run(spec) as slot:
            slot.join()
        assert bench.status(spec).warnings == []


def test_detaching_a_recording_stops_it(
    bench: Bench, tmp_path: Path, eventually: Callable[..., None]
) -> None:
    bench = bench.with_settings(max_file_clips=1)
    write_video(tmp_path / "v.mp4", seconds=4)
    spec = bench.attach(tmp_path / "v.mp4", watch(1.0))
    with bench.run(spec) as slot:
        eventually(lambda: bench.requests(FILES))
        bench.registry.delete(spec.id)
        slot.join()
    assert bench.frames.count(spec.id) == 0


def test_redis_away_loses_nothing_of_a_recording(bench: Bench, tmp_path: Path) -> None:
    write_video(tmp_path / "v.mp4", seconds=4)
    spec = bench.attach(tmp_path / "v.mp4", watch(1.0), fps=5)
    slot = bench.run(spec, clock=SkippingClock())
    slot.run.intake.store = Flaky(slot.run.intake.store, "put_all")
    slot.run.clips.jobs = Flaky(bench.context.jobs, "submit")
    with slot:
        slot.join()
    assert [len(request.frames) for request in bench.requests(FILES)] == [5, 5, 5, 5]
    assert bench.status(spec).counters.dropped.total == 0


def test_the_status_is_not_written_for_every_frame(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved = []
    save = StreamRegistry.save_status

    def count(
        self: StreamRegistry, stream_id: str, status: StreamStatus, token: int | None
    ) -> bool:
        saved.append((time.monotonic(), status.state))
        return save(self, stream_id, status, token)

    monkeypatch.setattr(StreamRegistry, "save_status", count)
    write_video(tmp_path / "v.mp4", seconds=3)
    with bench.run(bench.attach(tmp_path / "v.mp4", fps=25)) as slot:
        began = time.monotonic()
        slot.join()
        took = time.monotonic() - began
    assert len(saved) <= 3 + took  # connecting, running, ended, and one a second
    assert saved[-1][1] is StreamState.ENDED


def test_a_codec_that_changes_in_mid_stream_is_reported(bench: Bench, tmp_path: Path) -> None:
    # given a broadcast that continues in another size and codec
    write_video(tmp_path / "a.ts", seconds=1, width=160, height=120)
    later = [1 + n / 25 for n in range(50)]
    write_video(tmp_path / "b.ts", times=later, width=240, height=136, codec="libx265")
    parts = [(tmp_path / name).read_bytes() for name in ("a.ts", "b.ts")]
    (tmp_path / "v.ts").write_bytes(b"".join(parts))
    spec = bench.attach(tmp_path / "v.ts", fps=5)
    with bench.run(spec) as slot:
        slot.join()
    counters = bench.status(spec).counters
    assert (counters.codec, counters.width, counters.height) == ("hevc", 240, 136)
