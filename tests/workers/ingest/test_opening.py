"""Recordings that are opened while Redis is away: each is read whole when it returns."""

import threading
from pathlib import Path
from typing import Any

import pytest
import redis

from streamer.domain.stream import StreamState
from streamer.queues.models import FILES
from tests.support.ingest_bench import Bench, watch
from tests.support.videos import write_video
from workers import context
from workers.ingest.job import run_stream


@pytest.mark.parametrize(
    "error",
    [
        redis.exceptions.ConnectionError("gone"),
        redis.exceptions.NoScriptError("No matching script. Please use EVAL."),
    ],
    ids=["away", "restarted"],
)
def test_redis_may_be_away_at_any_step_of_opening_a_recording(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    write_video(tmp_path / "v.mp4", seconds=1)
    context.install(bench.context)
    pool = bench.context.connections.main.connection_pool
    connect = pool.get_connection
    for step in range(1, 14):
        spec = bench.attach(tmp_path / "v.mp4", watch(0.5), name=f"film-{step}")
        # given a Redis that is away from one command of the run on, for a moment
        left = [step, 2]  # commands before, and that fail

        def get(*args: Any, left: list[int] = left, **options: Any) -> Any:
            left[0] -= 1
            if left[0] < 0 < left[1]:
                left[1] -= 1
                raise error
            return connect(*args, **options)

        # when the recording is read
        with monkeypatch.context() as patch:
            patch.setattr(pool, "get_connection", get)
            context.enter_slot(threading.Event())
            run_stream(spec.id)
        # then nothing of it is missing
        assert left[1] == 0
        status = bench.status(spec)
        assert (status.state, status.error) == (StreamState.ENDED, None)
        asked = [clip for clip in bench.requests(FILES) if clip.stream_id == spec.id]
        assert [clip.data for clip in asked] == [
            {"media_start": 0.0, "media_end": 0.5},
            {"media_start": 0.5, "media_end": 1.0},
        ]
    context.install(None)
