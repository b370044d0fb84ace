"""Slots are for streams that are read: those that wait for a camera, or are paused, take none."""

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import pytest

from streamer.demo.loopback_camera import LoopbackCamera
from streamer.domain.sampling import Sampling
from streamer.domain.stream import Stream, StreamState
from streamer.errors import ErrorCode
from streamer.service import Service
from tests.support.cameras import SilentServer
from tests.support.rtsp_proxy import RtspProxy
from tests.support.videos import write_video

Eventually = Callable[..., None]

SLOTS = 2


@pytest.fixture
def worker(worker_process: Callable[..., Any]) -> Any:
    return worker_process(
        "ingest",
        STREAMER_INGEST_SLOTS=str(SLOTS),
        STREAMER_OPEN_TIMEOUT="0.5",
        STREAMER_RECONNECT_CAP="2",
        STREAMER_LEASE="3",
    )


def attach(client: Service, url: str, name: str) -> Stream:
    return client.attach(url, name, sampling=Sampling(fps=5), watches=[], probe=False)


def has(client: Service, name: str, state: StreamState) -> bool:
    return client.stream(name).state is state


def code(client: Service, name: str) -> ErrorCode | None:
    error = client.stream(name).error
    return ErrorCode(error.code) if error is not None else None


def test_dead_cameras_leave_their_slots_to_those_that_live(
    client: Service,
    loopback: LoopbackCamera,
    line: RtspProxy,
    worker: Any,
    eventually: Eventually,
) -> None:
    # given more dead cameras of each kind than there are slots
    line.faults.refuse = True
    with ExitStack() as stack:
        silent = stack.enter_context(SilentServer(dribble=True))
        for number in range(SLOTS + 1):
            attach(client, f"rtsp://127.0.0.1:{number + 1}/x", f"closed{number}")
            attach(client, f"rtsp://127.0.0.1:{silent.port}/x", f"silent{number}")
        attach(client, line.through(loopback.url), "back")
        dead = [stream.name for stream in client.streams()]
        eventually(lambda: all(has(client, name, StreamState.RECONNECTING) for name in dead))
        # when a good one is attached
        attach(client, loopback.url, "good")
        # then it runs, and goes on
        eventually(lambda: has(client, "good", StreamState.RUNNING))
        sampled = client.stream("good").counters.sampled
        eventually(lambda: client.stream("good").counters.sampled > sampled + 5)
        # and those that wait can be edited, paused and detached at once, and are reported
        client.edit("closed0", source=loopback.url, probe=False)
        eventually(lambda: has(client, "closed0", StreamState.RUNNING))
        client.edit("closed1", paused=True)
        eventually(lambda: has(client, "closed1", StreamState.PAUSED))
        client.detach("closed2")
        # when all slots are taken by cameras that run, one that is back waits, and says why
        line.faults.refuse = False
        eventually(lambda: code(client, "back") is ErrorCode.NO_WORKER)
        assert has(client, "good", StreamState.RUNNING)
        assert line.open == 0
        # until one of these is paused
        client.edit("good", paused=True)
        eventually(lambda: has(client, "back", StreamState.RUNNING))
        # and the paused one goes on when there is a slot
        client.detach("closed0")
        client.edit("good", paused=False)
        eventually(lambda: has(client, "good", StreamState.RUNNING))
    worker.terminate()
    assert worker.wait() == 0


def test_a_recording_that_is_paused_takes_no_slot_and_goes_on_later(
    client: Service, tmp_path: Any, worker_process: Callable[..., Any], eventually: Eventually
) -> None:
    write_video(tmp_path / "v.mp4", seconds=20, fps=5, width=96, height=64)
    worker_process("ingest", STREAMER_INGEST_SLOTS="1", STREAMER_MAX_FILE_CLIPS="1")
    films = [client.analyze(str(tmp_path / "v.mp4"), window=1.0, probe=False) for _ in "ab"]
    eventually(lambda: client.stream(films[0].id).counters.clips)
    assert client.jobs.waits_for_slot(films[1].id)
    client.edit(films[0].id, paused=True)
    eventually(lambda: client.stream(films[1].id).counters.clips)
    client.detach(films[1].id)
    client.edit(films[0].id, paused=False)
    eventually(lambda: has(client, films[0].id, StreamState.RUNNING))
