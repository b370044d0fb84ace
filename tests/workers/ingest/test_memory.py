"""What an ingest worker keeps of its streams, and for how long; how it handles secrets."""

import gc
import weakref
from collections.abc import Callable
from pathlib import Path

import av
import pytest

from streamer import redis_keys
from streamer.demo.loopback_camera import LoopbackCamera
from streamer.domain.stream import StreamState
from streamer.errors import ErrorCode
from streamer.frames.archive import Archive
from streamer.frames.archive_writer import ArchiveWriter
from streamer.frames.jpeg import to_bgr
from streamer.local.redis_server import EmbeddedServer
from streamer.redis_client.connections import Connections
from tests.support.ingest_bench import PASSWORD, Bench
from tests.support.videos import write_video
from workers.ingest.backoff import Backoff

Eventually = Callable[..., None]


@pytest.mark.parametrize("camera", ["works", "is away"])
def test_a_stream_that_has_ended_leaves_nothing_for_the_garbage_collector(
    bench: Bench, loopback: LoopbackCamera, eventually: Eventually, camera: str
) -> None:
    """What only the collector of rings frees stays for minutes: pictures, and a decoder."""
    url = loopback.url if camera == "works" else "rtsp://127.0.0.1:1/x"
    spec = bench.attach(url, live=True, fps=10)
    left: list[weakref.ref[object]] = []
    gc.collect()
    gc.disable()
    try:
        with bench.run(spec, backoff=Backoff(0.05)) as slot:
            left += [weakref.ref(slot.run), weakref.ref(slot.run.intake)]
            if camera == "works":
                eventually(lambda: bench.frames.count(spec.id) >= 3)
            else:
                eventually(lambda: bench.status(spec).error)
            slot.stop()
            slot.outcome = None  # its traceback has the frames of the run
            del slot.run
        eventually(lambda: not any(ref() for ref in left))
    finally:
        gc.enable()


def test_a_frame_that_was_converted_is_freed_at_once(tmp_path: Path) -> None:
    write_video(tmp_path / "v.mp4", seconds=1)
    gc.collect()
    gc.disable()
    try:
        others = _frames()  # of earlier tests of this process
        with av.open(str(tmp_path / "v.mp4")) as container:
            for frame in container.decode(video=0):
                to_bgr(frame)
            del frame
            left = _frames() - others
    finally:
        gc.enable()
    assert left <= 1  # of 25: PyAV holds the last one


def _frames() -> int:
    return sum(type(each) is av.VideoFrame for each in gc.get_objects())


def test_frames_go_into_the_archive_beside_redis(
    bench: Bench, loopback: LoopbackCamera, tmp_path: Path, eventually: Eventually
) -> None:
    archive = Archive(str(tmp_path / "archive"))
    with ArchiveWriter(archive, days=7) as writer:
        bench.context.archive = writer
        spec = bench.attach(loopback.url, live=True, fps=10)
        with bench.run(spec) as slot:
            eventually(lambda: bench.frames.count(spec.id) >= 10)
            slot.stop()
    kept = bench.frames.newest(spec.id, 1000)
    found = archive.between(spec.id, kept[0].time, kept[-1].time + 1, count=1000)
    assert [frame.ref for frame in found] == kept
    assert archive.load(found) == bench.frames.load(kept)
    assert bench.status(spec).counters.dropped.archive == 0


def test_the_byte_limit_and_the_history_of_a_stream_apply(
    bench: Bench, loopback: LoopbackCamera, eventually: Eventually
) -> None:
    size = 1 << 20
    bench = bench.with_settings(frame_bytes_per_stream=size, frame_ttl=2.0)
    spec = bench.attach(loopback.url, live=True, fps=20, history=600.0)

    def thinned() -> bool:
        kept = bench.frames.newest(spec.id, 10_000)
        span = kept[-1].time - kept[0].time if kept else 0.0
        # thinned by when they arrived, which may be long after they were captured
        old = [ref for ref in kept if ref.time < kept[-1].time - 4.0]
        # one of each ten seconds, not one of each twentieth of a second
        return 1 <= len(old) <= span / 10 + 2 and len(kept) - len(old) > 5

    with bench.run(spec) as slot:
        eventually(lambda: bench.status(spec).counters.sampled >= 100 and thinned(), timeout=120.0)
        slot.stop()
    client = bench.context.connections.frames
    assert int(client.hget(redis_keys.FRAME_BYTES, spec.id) or 0) <= size
    assert client.ttl(redis_keys.frame_index(spec.id)) > 590


def test_a_redis_full_of_other_data_costs_only_frames_which_are_counted(
    bench: Bench, loopback: LoopbackCamera, tmp_path: Path, eventually: Eventually
) -> None:
    with EmbeddedServer(tmp_path / "small", persistent=False, max_memory=4 << 20) as server:
        settings = bench.settings.model_copy(update={"frames_redis_url": server.url})
        with Connections(settings) as connections:
            bench, client = Bench(settings, connections), connections.frames
            assert not connections.shared
            client.config_set("maxmemory", client.info("memory")["used_memory"])  # nothing fits in
            spec = bench.attach(loopback.url, live=True, fps=20)
            with bench.run(spec) as slot:
                eventually(lambda: bench.status(spec).counters.dropped.redis_full >= 10)
                assert bench.status(spec).state is StreamState.RUNNING
                client.config_set("maxmemory", 64 << 20)
                eventually(lambda: bench.frames.count(spec.id) >= 5)
                slot.stop()
            assert bench.status(spec).counters.reconnects == 0


def test_a_wrong_key_is_a_failed_state_and_the_right_key_corrects_it(
    bench: Bench, loopback: LoopbackCamera, eventually: Eventually
) -> None:
    sealed = bench.with_settings(secret_key=["the key with which it was attached"])
    url = loopback.url.replace("rtsp://", f"rtsp://user:{PASSWORD}@")
    spec = sealed.attach(url, live=True, fps=10)
    other = bench.with_settings(secret_key=["another key altogether"])
    with other.run(spec) as slot:
        eventually(lambda: bench.status(spec).state is StreamState.FAILED)
        slot.stop()
    assert slot.given_back
    error = bench.status(spec).error
    assert error is not None
    assert error.code is ErrorCode.SECRET_UNREADABLE
    assert "STREAMER_SECRET_KEY" in error.message
    with sealed.run(spec) as slot:
        eventually(lambda: bench.status(spec).state is StreamState.RUNNING)
        slot.stop()


@pytest.mark.parametrize("url", ["nosuchscheme://x/y", "{tmp_path}/file/archive"])
def test_an_unusable_archive_is_reported_when_the_worker_starts(
    worker_process: Callable[..., object], tmp_path: Path, url: str
) -> None:
    (tmp_path / "file").write_text("in the way")
    worker = worker_process(
        "ingest", ready=False, STREAMER_ARCHIVE_URL=url.format(tmp_path=tmp_path)
    )
    assert worker.wait(60.0) == 1  # type: ignore[attr-defined]
    output = worker.output  # type: ignore[attr-defined]
    assert "archive_url" in output.splitlines()[-1]
