"""A recording whose ingest worker is killed: every window is answered once, and a program
that waits for the recording gets all of them."""

import json
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import redis
from rq.job import Job
from rq.worker import Worker
from typer.testing import CliRunner

from streamer import redis_keys
from streamer.cli.app import app
from streamer.domain.result import Result
from streamer.domain.stream import StreamState
from streamer.errors import ErrorCode
from streamer.queues.jobs import INGEST
from streamer.queues.models import FILES, QUERIES
from streamer.service import Service
from streamer.settings import Settings
from tests.support.clocks import ManualClock
from tests.support.ingest_bench import Bench, watch
from tests.support.videos import write_video
from workers.ingest.recording_run import RecordingRun

LENGTH = 8
"""Seconds of the recording, with a window for each."""


@pytest.fixture(scope="module")
def film(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("film") / "film.mp4"
    write_video(path, seconds=LENGTH, fps=5, width=96, height=64, gop=5)
    return path


class Killed(BaseException):
    """Ends a run as SIGKILL does: nothing after it is done."""


def kill_at(owner: Any, method: str, call: int, *, after: bool) -> None:
    """Let a call of a method be the last thing that is done, or the first that is not."""
    original, calls = getattr(owner, method), [0]

    def count(*arguments: Any, **keywords: Any) -> Any:
        calls[0] += 1
        if calls[0] == call and not after:
            raise Killed
        result = original(*arguments, **keywords)
        if calls[0] == call:
            raise Killed
        return result

    setattr(owner, method, count)


STEPS: dict[str, Callable[[RecordingRun, int], None]] = {
    "before a clip is submitted": lambda run, n: kill_at(run.clips, "_submit", n, after=False),
    "when a clip has been submitted": lambda run, n: kill_at(run.clips, "_submit", n, after=True),
    "when frames have been stored": lambda run, n: kill_at(run.intake, "put", n - 1, after=True),
    "before the watches see a frame": lambda run, n: kill_at(
        run.watches, "add", 3 * n, after=False
    ),
    "before the last window is closed": lambda run, n: kill_at(
        run.watches, "finish", 1, after=False
    ),
    "when the last window was closed": lambda run, n: kill_at(run.watches, "finish", 1, after=True),
}


def starts(results: list[Result]) -> list[float]:
    return sorted(result.data["media_start"] for result in results if result.data)


def published(client: Service) -> int:
    return client.connections.main.xlen(redis_keys.RESULTS)


@pytest.mark.parametrize("times", [1, 3])
@pytest.mark.parametrize("step", STEPS)
def test_whatever_a_worker_did_last_every_window_is_answered_once(
    bench: Bench, client: Service, film: Path, step: str, times: int
) -> None:
    # given workers that are killed, one after the other, and never saved a counter
    spec = bench.attach(film, watch(1.0), watch(3.0), fps=5)
    seen: list[str] = []

    def work_off() -> None:
        for request in bench.requests(FILES):
            seen.append(request.id)
            bench.answer(request)

    following = client.follow_recording(client.stream(spec.id))
    for number in range(times):
        run = RecordingRun(bench.context, spec, stop=lambda: False, clock=still())
        STEPS[step](run, 2 + number)
        with pytest.raises(Killed):
            run.run()
        if number % 2 == 0:
            work_off()
            following.advance(0.01)
    assert not following.finished
    # when another one takes over
    RecordingRun(bench.context, spec, stop=lambda: False, clock=still()).run()
    following.advance(0.01)
    assert following.finished == (not bench.requests(FILES)), "windows without answers are awaited"
    work_off()
    while not following.finished:
        following.advance(0.01)
    # then each window was asked about once, counted once, and arrived once
    windows = [*range(LENGTH), 0, 3, 6]
    assert starts(following.results) == sorted(windows)
    assert len(seen) == len(set(seen)) == published(client) == len(windows)
    status = bench.status(spec)
    assert (status.state, status.counters.clips) == (StreamState.ENDED, len(windows))
    assert following.trouble() is None
    assert client.stream(spec.id).unanswered == 0
    assert starts(list(client.results_of(client.stream(spec.id)))) == sorted(windows)


def still() -> ManualClock:
    return ManualClock(time.time())


def test_an_end_that_redis_did_not_take_is_saved_later(
    bench: Bench, film: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = bench.attach(film, watch(4.0))
    run = RecordingRun(bench.context, spec, stop=lambda: False, clock=still())
    save = bench.context.streams.save_status
    refused: list[Any] = []

    def refuse(stream_id: str, status: Any, token: int | None = None) -> bool:
        if status.state is StreamState.ENDED and len(refused) < 3:
            refused.append(status)
            raise redis.exceptions.ConnectionError("gone")
        return save(stream_id, status, token)

    monkeypatch.setattr(bench.context.streams, "save_status", refuse)
    run.run()
    assert len(refused) == 3
    assert bench.status(spec).state is StreamState.ENDED


@pytest.mark.parametrize("what", ["job", "everything about it", "in-flight set and jobs"])
def test_an_answer_that_will_never_come_is_an_error_at_its_place(
    bench: Bench, client: Service, film: Path, what: str
) -> None:
    # given a recording of which Redis loses a window before it is answered
    spec = bench.attach(film, watch(2.0))
    RecordingRun(bench.context, spec, stop=lambda: False, clock=still()).run()
    first, lost, *others = bench.requests(FILES)
    for request in (first, *others):
        bench.answer(request)
    main = client.connections.main
    main.delete(Job.key_for(lost.id))
    if what != "job":
        main.delete(redis_keys.in_flight(spec.id))
    if what == "everything about it":
        main.delete(f"rq:queue:{FILES}")
    # when its results are awaited
    found = list(client.results_of(client.stream(spec.id)))
    # then the loss is one of them
    assert starts(found) == [0, 2, 4, 6]
    (error,) = [result for result in found if result.error is not None]
    assert error.error is not None
    assert (error.request_id, error.error.code) == (lost.id, ErrorCode.JOB_LOST)
    assert error.data == {"media_start": 2.0, "media_end": 4.0}
    assert error.start == lost.start
    assert error.watch_id == lost.watch_id


def test_a_list_of_windows_that_redis_lost_is_no_success(
    bench: Bench, client: Service, film: Path
) -> None:
    spec = bench.attach(film, watch(2.0))
    RecordingRun(bench.context, spec, stop=lambda: False, clock=still()).run()
    for request in bench.requests(FILES)[:3]:
        bench.answer(request)
    client.connections.main.flushdb()
    bench.registry.create(spec, str(film))
    status = bench.status(spec)
    status.state, status.counters.clips = StreamState.ENDED, 4
    bench.registry.save_status(spec.id, status)
    following = client.follow_recording(client.stream(spec.id))
    while not following.finished:
        following.advance(0.01)
    trouble = following.trouble()
    assert trouble is not None
    assert trouble.code is ErrorCode.JOB_LOST
    assert "4 of 4 windows have no result" in trouble.message


class Model:
    """Answers the clips of a recording in a thread, as a model worker does, one by one."""

    def __init__(self, bench: Bench, at: dict[int, Callable[[], None]]) -> None:
        self._bench = bench
        self._at = at
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self.answered: list[str] = []
        self._worker = Worker([QUERIES], connection=bench.context.connections.main, name="model")

    def __enter__(self) -> "Model":
        self._worker.register_birth()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stop.is_set():
            for request in self._bench.requests(FILES)[:1]:
                self._at.pop(len(self.answered), lambda: None)()
                self._bench.answer(request)
                self.answered.append(request.id)
            self._stop.wait(0.02)


def analyze(film: Path, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("STREAMER_REDIS_URL", settings.redis_url or "")
    monkeypatch.setenv("STREAMER_DATA_DIR", str(settings.data_dir))
    return CliRunner().invoke(app, ["analyze", str(film), "--window", "1", "--fps", "5", "--json"])


@pytest.mark.parametrize("lose", [False, True])
def test_analyze_prints_every_window_although_its_worker_is_killed_again_and_again(
    bench: Bench,
    settings: Settings,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    worker_process: Callable[..., Any],
    eventually: Callable[..., None],
    lose: bool,
) -> None:
    # given a recording that is longer than its worker lives
    write_video(tmp_path / "long.mp4", seconds=30, fps=5, width=96, height=64, gop=5)
    options = {"STREAMER_LEASE": "2", "STREAMER_MAX_FILE_CLIPS": "3"}
    workers = [worker_process("ingest", **options)]

    def kill() -> None:
        workers[-1].kill()
        workers.append(worker_process("ingest", **options))

    def forget() -> None:
        eventually(lambda: len(bench.requests(FILES)) > 1)
        request = bench.requests(FILES)[-1]  # not the one that is answered next
        bench.context.connections.main.delete(Job.key_for(request.id))

    at: dict[int, Callable[[], None]] = dict.fromkeys([5] if lose else [0, 11, 26], kill)
    at |= {14: forget} if lose else {}
    # when it is analysed
    with Model(bench, at) as model:
        result = analyze(tmp_path / "long.mp4", settings, monkeypatch)
    # then all windows are printed in order, and the exit code tells whether all were answered
    printed = [json.loads(line) for line in result.stdout.splitlines()]
    assert [each["data"]["media_start"] for each in printed] == list(range(30))
    errors = [each["error"]["code"] for each in printed if each["error"]]
    assert errors == (["JOB_LOST"] if lose else [])
    assert result.exit_code == (1 if lose else 0), result.output
    assert len(model.answered) == len(set(model.answered)) == 30 - lose
    assert bench.context.jobs.depths()[INGEST] == 0
    assert not bench.context.connections.main.keys("streamer:recorded-windows:*")
