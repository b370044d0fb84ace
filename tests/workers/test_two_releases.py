"""Programs of release 0.1.0 and of this one share a Redis: each request gets one answer."""

import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from streamer import redis_keys
from streamer.domain.kinds import RequestKind
from streamer.domain.result import Result
from streamer.domain.stream import StreamState
from streamer.domain.watch import Watch
from streamer.local.process import spawn, stop
from streamer.service import Service
from streamer.settings import ENV_PREFIX, Settings
from tests.support.gpu_service import Service as Questions
from tests.support.videos import write_video

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

LONG = 600.0
"""Seconds."""

ROOT = Path(__file__).parents[2]

OLD_RELEASE = ("v0.1.0", "4b1389afb4294109fae1e15f34bb1b2a5401baee")
"""The tag of release 0.1.0, and the commit that dated it, for clones without tags."""

NEEDED = "OLD_RELEASE_NEEDED"
"""Environment variable with which a clone without release 0.1.0 fails instead of being skipped."""

SUBMIT = """
import sys
from streamer.connections import connect
from streamer.domain import RequestKind
from streamer.settings import Settings
from tests.support.gpu_service import Service

settings = Settings()
service = Service(connect(settings.redis_url), settings, None, None)
for kind in (RequestKind.QUERY, RequestKind.WATCH):
    for request in service.submit(int(sys.argv[1]), kind=kind):
        print(request.id)
"""


@pytest.fixture(scope="module")
def old_release(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The programs of release 0.1.0, and their tests, from git's history."""
    folder = tmp_path_factory.mktemp("release-0.1.0")
    packed = folder / "source.tar"
    for name in OLD_RELEASE:
        command = ["git", "archive", "--output", str(packed), name]
        if subprocess.run(command, cwd=ROOT, capture_output=True).returncode == 0:
            break
    else:
        missing = pytest.fail if os.environ.get(NEEDED) else pytest.skip
        missing("this clone is too shallow for release 0.1.0: git fetch --unshallow")
    subprocess.run(["tar", "-xf", packed, "-C", folder], check=True)
    packed.unlink()
    assert '__version__ = "0.1.0"' in (folder / "streamer" / "__init__.py").read_text()
    return folder


class OldPrograms:
    """Starts programs of release 0.1.0."""

    def __init__(self, folder: Path, settings: Settings, logs: Path) -> None:
        self._logs = logs
        self.started: list[subprocess.Popen[bytes]] = []
        self.environment = {
            **{k: v for k, v in os.environ.items() if not k.startswith(ENV_PREFIX)},
            "STREAMER_REDIS_URL": settings.redis_url or "",
            "STREAMER_DATA_DIR": str(settings.data_dir),
            "PYTHONPATH": str(folder),
            "PYTHONSAFEPATH": "1",  # the folder of this test has the other release
        }

    def start(self, module: str, **environment: str) -> Path:
        """Start a program; return its log."""
        log = self._logs / f"old-{module}.log"
        program = [sys.executable, "-m", module]
        self.started.append(spawn(program, env=self.environment | environment, log=log))
        return log

    def submit(self, number: int) -> list[str]:
        """Ask so many questions, and submit as many clips of a watch; return their ids."""
        program = [sys.executable, "-c", SUBMIT, str(number)]
        done = subprocess.run(program, env=self.environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout.split()

    def stop(self) -> None:
        """Stop all programs."""
        for process in self.started:
            stop(process, timeout=30.0)


@pytest.fixture
def old(old_release: Path, settings: Settings, tmp_path: Path) -> Iterator[OldPrograms]:
    programs = OldPrograms(old_release, settings, tmp_path)
    yield programs
    programs.stop()


def results(client: Any) -> list[Result]:
    """Return everything in the results queue."""
    entries = client.xrange(redis_keys.RESULTS)
    return [Result.model_validate_json(fields[b"json"]) for _, fields in entries]


def test_workers_of_both_answer_the_questions_of_both(
    old: OldPrograms,
    redis_client: Any,
    settings: Settings,
    random_checkpoint: Path,
    worker_process: Callable[..., Any],
    eventually: Callable[..., None],
) -> None:
    # given a model worker of each release, with few slots, so that both get something to do
    model = {"STREAMER_MODEL": str(random_checkpoint), "STREAMER_WORKER_SLOTS": "2"}
    log = old.start("workers.gpu", **model)
    new = worker_process("gpu", **model)
    eventually(lambda: log.exists() and '"ready"' in log.read_text(), timeout=LONG)
    # when programs of both submit
    patient = settings.model_copy(update={"max_query_wait": LONG})
    questions = Questions(redis_client, patient, None, None)
    asked = old.submit(10)
    for kind in (RequestKind.QUERY, RequestKind.WATCH):
        asked += [request.id for request in questions.submit(10, kind=kind)]
    asked += old.submit(10)
    # then each request has one result, and none is an error
    eventually(lambda: redis_client.xlen(redis_keys.RESULTS) >= len(asked), timeout=LONG)
    found = results(redis_client)
    assert Counter(result.request_id for result in found) == Counter(asked)
    assert [result.error for result in found if result.error is not None] == []
    # and both have answered some
    counts = [
        redis_client.hget(key, "successful_job_count") for key in redis_client.keys("rq:worker:*")
    ]
    assert len(counts) == 2
    assert sum(map(int, counts)) == len(asked)
    assert all(int(count) > 0 for count in counts)
    assert new.output.count('"level": "error"') == 0, new.output
    assert log.read_text().count('"level": "error"') == 0, log.read_text()


def test_what_a_killed_worker_of_the_old_release_had_taken_is_answered_by_the_new_one(
    old: OldPrograms,
    redis_client: Any,
    random_checkpoint: Path,
    worker_process: Callable[..., Any],
    eventually: Callable[..., None],
) -> None:
    # given a worker of 0.1.0 that is killed while it works
    model = {"STREAMER_MODEL": str(random_checkpoint), "STREAMER_LEASE": "4"}
    log = old.start("workers.gpu", **model)
    eventually(lambda: log.exists() and '"ready"' in log.read_text(), timeout=LONG)
    asked = old.submit(40)
    old.started[0].kill()
    # when a worker of this release runs
    worker_process("gpu", **model)
    # then it takes over what the other had, and each request has one result
    eventually(lambda: redis_client.xlen(redis_keys.RESULTS) >= len(asked), timeout=LONG)
    assert Counter(r.request_id for r in results(redis_client)) == Counter(asked)


def test_ingest_workers_of_both_read_the_streams_of_both(
    old: OldPrograms,
    redis_client: Any,
    settings: Settings,
    tmp_path: Path,
    random_checkpoint: Path,
    worker_process: Callable[..., Any],
    eventually: Callable[..., None],
) -> None:
    # given an ingest worker of each release with one slot each, and a model worker of this one
    slots = {"STREAMER_INGEST_SLOTS": "1"}
    log = old.start("workers.ingest", **slots)
    worker_process("ingest", **slots)
    worker_process("gpu", STREAMER_MODEL=str(random_checkpoint))
    eventually(lambda: log.exists() and '"ready"' in log.read_text(), timeout=LONG)
    # when four recordings of six seconds are attached, with a window of two seconds
    watch = Watch(prompt="What is there?", window=2.0, max_tokens=4)
    with Service(settings.model_copy(update={"allowed_dirs": [tmp_path]})) as service:
        for number in range(4):
            path = tmp_path / f"{number}.mp4"
            write_video(path, seconds=6.0)
            service.attach(str(path), f"file-{number}", watches=[watch], probe=False)
        streams = {stream.id for stream in service.streams()}
        # then all are read to their ends
        eventually(
            lambda: all(stream.state is StreamState.ENDED for stream in service.streams()),
            timeout=LONG,
        )
        eventually(lambda: redis_client.xlen(redis_keys.RESULTS) >= 3 * len(streams), timeout=LONG)
    # and each window has exactly one result
    found = results(redis_client)
    assert [result.error for result in found if result.error is not None] == []
    windows = Counter((result.stream_id, (result.data or {})["media_start"]) for result in found)
    assert set(windows.values()) == {1}
    assert Counter(stream for stream, _ in windows) == dict.fromkeys(streams, 3)
