"""Answers that are ready when Redis is away, and frames whose server is: none becomes an error."""

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import redis

from streamer import redis_keys
from streamer.domain.request import ClipRequest
from streamer.domain.result import Result
from streamer.local.redis_server import EmbeddedServer
from streamer.queues.jobs import CLIP_JOB
from streamer.queues.models import CLIP_QUEUES
from streamer.redis_client import connections as connections_module
from streamer.redis_client.connections import Connections
from streamer.service import Service
from streamer.settings import Settings
from tests.support.clips import frames, request
from tests.support.clocks import SkippingClock
from tests.support.forgetful_redis import ForgetfulLine
from tests.support.relay import Relay
from workers import context
from workers.context import Abandon, GiveBack, WorkerContext
from workers.gpu import clip_job
from workers.rq.thread_worker import ThreadWorker

Eventually = Callable[..., None]


class Line(ForgetfulLine):
    """A line to a Redis that can be cut, or lose the scripts that it has been sent."""

    def __init__(self, port: int) -> None:
        super().__init__(port)
        self.cut = False
        self.forget: Callable[[], object] | None = None
        self.forgotten = 0

    def admits(self) -> bool:
        return not self.cut

    async def read_request(self, reader: asyncio.StreamReader) -> bytes:
        data = await super().read_request(reader)
        if b"EVALSHA" in data and self.forgotten > 0 and self.forget is not None:
            self.forgotten -= 1
            self.forget()
        return data


@pytest.fixture
def line(valkey: EmbeddedServer, redis_client: redis.Redis) -> Iterator[Line]:
    with Line(valkey.port) as relay:
        relay.forget = redis_client.script_flush
        yield relay


@pytest.fixture
def own(line: Line, settings: Settings) -> Iterator[WorkerContext]:
    """This process as a model worker whose Redis is at the end of `line`."""
    assert settings.redis_url is not None
    address = settings.redis_url.rpartition(":")[0]
    there = settings.model_copy(update={"redis_url": f"{address}:{line.port}/0"})
    with Connections(there) as opened:
        installed = WorkerContext(settings=there, connections=opened, model_name="m")
        context.install(installed)
        context.enter_slot(threading.Event())
        yield installed
    context.install(None)


@pytest.fixture
def asked(settings: Settings) -> Iterator[ClipRequest]:
    """A request about frames, submitted by another program."""
    with Service(settings) as client:
        clip = request(client)
        client.jobs.submit(clip)
        yield clip


@pytest.fixture
def computed(monkeypatch: pytest.MonkeyPatch) -> list[Callable[[], object]]:
    """What happens each time that an answer has been computed, before it is published."""
    steps: list[Callable[[], object]] = []

    def answer(_: WorkerContext, clip: ClipRequest, started: float) -> Result:
        result = Result.answering(clip, text=f"answer {len(steps)}")
        steps.pop(0)()
        return result

    monkeypatch.setattr(clip_job, "_answer", answer)
    return steps


def published(client: redis.Redis) -> list[str | None]:
    """Return the texts of all results."""
    entries: Any = client.xrange(redis_keys.RESULTS)
    return [Result.model_validate_json(fields[b"json"]).text for _, fields in entries]


def test_an_answer_is_published_when_redis_returns(
    own: WorkerContext,
    line: Line,
    asked: ClipRequest,
    computed: list[Callable[[], object]],
    redis_client: redis.Redis,
    eventually: Eventually,
) -> None:
    # given a Redis that goes away when the answer has been computed
    def away() -> None:
        line.cut = True
        line.hang_up()

    computed.append(away)

    def run() -> None:
        context.enter_slot(threading.Event())
        clip_job.answer_clip(asked.model_dump(mode="json"))

    job = threading.Thread(target=run)
    job.start()
    eventually(lambda: own.connections.outage.reason is not None)
    assert published(redis_client) == []
    # when it returns
    line.cut = False
    job.join(60)
    # then it gets the answer that was computed, once
    assert published(redis_client) == ["answer 1"]
    assert computed == []


@pytest.mark.parametrize("times", [1, 2, 5])
def test_a_redis_that_forgets_its_scripts_gets_them_again(
    own: WorkerContext,
    line: Line,
    asked: ClipRequest,
    computed: list[Callable[[], object]],
    redis_client: redis.Redis,
    times: int,
) -> None:
    # given a Redis that restarts between the script and its call, several times
    computed.append(lambda: setattr(line, "forgotten", times))
    own.clock = SkippingClock()
    # when the answer is published
    clip_job.answer_clip(asked.model_dump(mode="json"))
    # then it arrives
    assert line.forgotten == 0
    assert published(redis_client) == ["answer 1"]


def test_an_answer_whose_acknowledgement_is_lost_is_published_once(
    own: WorkerContext,
    line: Line,
    asked: ClipRequest,
    computed: list[Callable[[], object]],
    redis_client: redis.Redis,
) -> None:
    # given an answer that Redis has taken, although the worker does not hear of it
    computed += [lambda: line.lose_answer_to(b"answer 2"), lambda: None]
    clip_job.answer_clip(asked.model_dump(mode="json"))
    assert line.lost == 1
    # when the job is run once more, as if the worker had died
    clip_job.answer_clip(asked.model_dump(mode="json"))
    # then there is one result, and no second one is computed
    assert published(redis_client) == ["answer 2"]
    assert len(computed) == 1
    # and a worker that has computed it meanwhile adds none
    assert not own.results.publish(Result.answering(asked, text="late"), owner_id="wch_1")
    assert published(redis_client) == ["answer 2"]


def test_a_worker_that_stops_while_redis_is_away_puts_the_job_back(
    own: WorkerContext,
    line: Line,
    asked: ClipRequest,
    computed: list[Callable[[], object]],
    redis_client: redis.Redis,
) -> None:
    # given a worker that is asked to stop while Redis is away
    def away() -> None:
        line.cut = True
        line.hang_up()
        own.stopping.set()

    computed += [away, lambda: None]
    with pytest.raises(GiveBack):
        clip_job.answer_clip(asked.model_dump(mode="json"))
    # when another worker runs the job later
    line.cut = False
    own.stopping.clear()
    clip_job.answer_clip(asked.model_dump(mode="json"))
    # then it has one result
    assert published(redis_client) == ["answer 1"]


def test_an_answer_that_redis_calls_wrong_is_left_to_another_worker(
    own: WorkerContext,
    asked: ClipRequest,
    computed: list[Callable[[], object]],
    redis_client: redis.Redis,
) -> None:
    # given a results queue that something has replaced by a string
    redis_client.set(redis_keys.RESULTS, "not a stream")
    own.clock = SkippingClock()
    computed += [lambda: None, lambda: None]
    # when the answer is published, then it becomes no error: the job waits for another attempt
    with pytest.raises(Abandon):
        clip_job.answer_clip(asked.model_dump(mode="json"))
    assert not own.results.answered(asked.id)
    # and is answered once that is repaired
    redis_client.delete(redis_keys.RESULTS)
    clip_job.answer_clip(asked.model_dump(mode="json"))
    assert published(redis_client) == ["answer 1"]


def test_no_answer_of_a_busy_worker_is_lost_or_an_error_over_a_cut(
    own: WorkerContext,
    line: Line,
    settings: Settings,
    monkeypatch: pytest.MonkeyPatch,
    redis_client: redis.Redis,
    eventually: Eventually,
) -> None:
    # given a worker with jobs in all of its slots
    monkeypatch.setattr(
        clip_job, "_answer", lambda _, clip, started: Result.answering(clip, text=clip.id)
    )
    failed: list[str] = []
    with Service(settings) as client:
        asked = [request(client, refs=frames(client, 1)) for _ in range(40)]
        for clip in asked:
            client.jobs.submit(clip)
        worker = ThreadWorker(
            CLIP_QUEUES,
            own.connections.main,
            slots=8,
            functions={CLIP_JOB: clip_job.answer_clip},
            stopping=own.stopping,
            lease=12.0,
            on_failed=lambda job, code, _: failed.append(f"{job.id} {code}"),
            outage=own.connections.outage,
        )
        thread = threading.Thread(target=worker.work)
        thread.start()
        # when the line is cut again and again while it works
        for _ in range(4):
            line.cut = True
            line.hang_up()
            time.sleep(0.05)
            line.cut = False
            more = request(client, refs=frames(client, 1))
            asked.append(more)
            client.jobs.submit(more)
            time.sleep(0.2)
        eventually(lambda: len(published(redis_client)) >= len(asked))
        own.stopping.set()
        thread.join(60)
    # then each request has its one answer
    assert sorted(text or "" for text in published(redis_client)) == sorted(c.id for c in asked)
    assert failed == []


class _Silent(Relay):
    """A line to a server whose requests vanish while it is `down`."""

    def __init__(self, port: int) -> None:
        super().__init__(port)
        self.down = False
        self.swallowed = 0

    async def read_request(self, reader: asyncio.StreamReader) -> bytes:
        data = await super().read_request(reader)
        if self.down:
            self.swallowed += 1
            return b""
        return data


@pytest.mark.parametrize("fault", ["silent", "away"])
def test_frames_are_loaded_when_their_server_returns(
    own: WorkerContext,
    valkey: EmbeddedServer,
    settings: Settings,
    monkeypatch: pytest.MonkeyPatch,
    asked: ClipRequest,
    eventually: Eventually,
    fault: str,
) -> None:
    monkeypatch.setattr(connections_module, "FRAMES_TIMEOUT", 0.2)
    with _Silent(valkey.port) as line, Line(valkey.port) as cable:
        there = cable if fault == "away" else line
        assert settings.redis_url is not None
        frames_url = f"{settings.redis_url.rpartition(':')[0]}:{there.port}/0"
        two = settings.model_copy(update={"frames_redis_url": frames_url})
        with Connections(two) as opened:
            clock = SkippingClock()
            installed = WorkerContext(settings=two, connections=opened, clock=clock)
            context.install(installed)
            # given a server of frames that is silent or away, with its frames intact
            line.down = cable.cut = True
            cable.hang_up()
            loaded: list[list[bytes]] = []

            def load() -> None:
                context.enter_slot(threading.Event())
                loaded.append(clip_job._load(installed, asked))

            job = threading.Thread(target=load)
            job.start()
            # when it returns after far more than half a minute, within the time of the job
            eventually(lambda: opened.frames_outage.reason is not None)
            clock.slept += 45
            tried = line.swallowed, clock.slept
            eventually(lambda: (line.swallowed, clock.slept) > tried)
            assert loaded == []
            line.down = cable.cut = False
            job.join(60)
        # then the frames are there
        assert [len(jpegs) for jpegs in loaded] == [len(asked.frames)]
