"""A full Redis: new work is refused before the reserve, and what was accepted drains."""

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import redis
from fastapi.testclient import TestClient

from nvila_core.resolution.policy import Measures
from streamer import redis_keys
from streamer.api.app import create_app
from streamer.domain.kinds import RequestKind
from streamer.domain.query import Query, QueryStatus
from streamer.domain.question import Question
from streamer.domain.request import ClipRequest
from streamer.domain.result import Result
from streamer.domain.stream import StreamSpec
from streamer.domain.watch import Watch
from streamer.errors import ErrorCode, StreamerError
from streamer.local.redis_server import EmbeddedServer
from streamer.questions.chats import CameraView, ChatMessage
from streamer.queues.jobs import CLIP_JOB
from streamer.queues.models import CLIP_QUEUES
from streamer.redis_client.memory_reserve import RESERVE, in_reserve, require_room
from streamer.redis_client.outage import Outage
from streamer.service import Service
from streamer.settings import Settings
from streamer.timeline.results import Timeline
from workers.ingest.clips import LiveClips
from workers.ingest.windows import Window
from workers.recorder.worker import Recorder
from workers.rq.thread_worker import ThreadWorker

LIMIT = 6 << 20


QUESTION = np.random.default_rng(0).bytes(6000).hex()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[EmbeddedServer]:
    """A server of a few megabytes that evicts nothing."""
    with EmbeddedServer(tmp_path / "small", persistent=False, max_memory=LIMIT) as started:
        yield started


@pytest.fixture
def client(server: EmbeddedServer, tmp_path: Path) -> Iterator[Service]:
    """An installation on it, with a camera that has a frame; a slow machine refuses no question."""
    settings = Settings(redis_url=server.url, data_dir=tmp_path, max_query_wait=3600)
    with Service(settings) as opened:
        attach_yard(opened)
        yield opened


def attach_yard(client: Service) -> None:
    """Attach a camera that has a frame."""
    spec = StreamSpec(name="yard", url="rtsp://cam/", live=True, watches=[watch()])
    client.registry.create(spec, spec.url)
    put(client, b"jpeg")


def watch() -> Watch:
    return Watch(prompt="What?", window=10, max_frames=4, max_tokens=8)


def put(client: Service, jpeg: bytes) -> None:
    stream = client.stream("yard")
    client.frames.put(stream.id, jpeg, Measures(32, 24, change=0.0), time=time.time(), pts=0.0)


def noise(size: int) -> bytes:
    return np.random.default_rng(size).integers(0, 256, size, np.uint8).tobytes()


def used(client: Service) -> float:
    """Return the share of the server's memory that is used."""
    return float(client.connections.main.info("memory")["used_memory"]) / LIMIT


def ask_until_refused(client: Service, most: int = 20_000) -> list[Query]:
    asked = []
    for _ in range(most):
        try:
            asked.append(client.ask(QUESTION, "yard", stale_ok=True))
        except redis.exceptions.OutOfMemoryError:
            return asked
    raise AssertionError("nothing is refused")


def fill(client: Service) -> None:
    """Fill the server to its last byte with what is not ours."""
    for size in (100_000, 1_000, 10):
        number = 0
        while True:
            try:
                client.connections.main.set(f"other:{size}:{number}", noise(size))
            except redis.exceptions.OutOfMemoryError:
                break
            number += 1


class Answerer:
    """A model worker in this process whose model says "yes" at once."""

    def __init__(self, client: Service) -> None:
        self._client = client
        self.stopping = threading.Event()
        self.runs = 0
        self.worker = ThreadWorker(
            CLIP_QUEUES,
            client.connections.main,
            slots=4,
            functions={CLIP_JOB: self.answer},
            stopping=self.stopping,
            lease=60.0,
            on_failed=lambda *_: None,
            outage=Outage(client=client.connections.main, max_pause=0.5),
        )

    def answer(self, request: dict[str, Any]) -> None:
        self.runs += 1
        clip = ClipRequest.model_validate(request)
        self._client.queue.publish(Result.answering(clip, text="yes" * 100), owner_id=None)

    def run(self) -> None:
        """Answer all that waits."""
        self.worker.work(burst=True)


@pytest.mark.parametrize("filled", ["by questions", "to the last byte"])
def test_a_full_server_drains_and_takes_questions_again(
    client: Service, tmp_path: Path, filled: str
) -> None:
    # given a server that is full of questions, and perhaps of what is not ours
    asked = ask_until_refused(client)
    assert len(asked) > 50
    assert used(client) < 1 - RESERVE
    if filled == "to the last byte":
        fill(client)
    # when workers start, and a recorder
    answerer = Answerer(client)
    answerer.run()
    timeline = Timeline(f"sqlite:///{tmp_path / 'timeline.db'}")
    recorder = Recorder(client.connections.main, timeline, stopping=threading.Event())
    recorder.join()
    recorder.beat()
    while recorder.step():
        pass
    # then every question is answered once, and each answer is recorded
    assert answerer.runs == len(asked)
    assert len(timeline.query(limit=1000).results) == min(len(asked), 1000)
    timeline.close()
    assert {client.query(query.id).status for query in asked} == {QueryStatus.DONE}
    assert filled == "to the last byte" or used(client) < 1 - RESERVE
    assert client.connections.main.keys("rq:job:*") == []
    # and there is room again
    for key in client.connections.main.scan_iter("other:*", count=1000):
        client.connections.main.delete(key)
    client.ask("Anyone?", "yard", stale_ok=True)


def test_old_answers_make_room_for_new_questions_for_ever(
    client: Service, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # given a server that takes rounds of as many questions as it has room for, all answered
    timeline = Timeline(f"sqlite:///{tmp_path / 'timeline.db'}")
    recorder = Recorder(client.connections.main, timeline, stopping=threading.Event())
    recorder.join()
    first: list[Query] = []
    for _ in range(4):
        asked = ask_until_refused(client)
        assert asked, "the answers of the rounds before fill the server for good"
        first = first or asked
        Answerer(client).run()
        while recorder.step():
            pass
        # when a minute has passed
        answers: Any = client.connections.main.zrange(redis_keys.ANSWERS, 0, -1, withscores=True)
        client.connections.main.zadd(redis_keys.ANSWERS, {i: s - 61 for i, s in answers})
    timeline.close()
    # then the oldest answers have gone, and are still not given a second time
    with pytest.raises(StreamerError) as caught:
        client.query(first[0].id)
    assert caught.value.code is ErrorCode.UNKNOWN_QUERY
    again = Result(
        request_id=first[0].id, kind="answer", stream_id="str_1", stream_name="yard", prompt="?"
    )
    assert not client.queue.publish(again, owner_id=None)
    # and the newest are there
    assert client.query(asked[-1].id).result is not None


def test_results_that_are_not_recorded_yet_are_kept(client: Service, tmp_path: Path) -> None:
    # given answers of which a recorder has recorded some, and another reader fewer
    for _ in range(20):
        client.ask("Anyone?", "yard", stale_ok=True)
    Answerer(client).run()
    timeline = Timeline(f"sqlite:///{tmp_path / 'timeline.db'}")
    recorder = Recorder(client.connections.main, timeline, stopping=threading.Event())
    recorder.join()
    recorder.step()
    main = client.connections.main
    main.xgroup_create(redis_keys.RESULTS, "mine", id="0")
    answer: Any = main.xreadgroup("mine", "me", {redis_keys.RESULTS: ">"}, count=7)
    read = [entry_id for entry_id, _ in answer[0][1]]
    main.xack(redis_keys.RESULTS, "mine", *read[:5])
    # when the server is full
    ask_until_refused(client)
    # then what the other reader has not acknowledged is still there
    left: Any = main.xrange(redis_keys.RESULTS)
    assert left[0][0] == read[5]
    assert len(left) == 15
    timeline.close()


def test_frames_leave_the_reserve_free(client: Service) -> None:
    # given a server that is full of questions
    asked = ask_until_refused(client)
    # when a camera stores frames
    for _ in range(100):
        put(client, noise(60_000))
        # then they get no more than what new work may use
        assert used(client) <= 1 - RESERVE + 0.02
    stored = client.frames.count(client.stream("yard").id)
    assert 1 < stored < 100
    # and nothing when something else has filled the server
    client.frames.discard(client.stream("yard").id)
    fill(client)
    with pytest.raises(redis.exceptions.OutOfMemoryError):
        put(client, noise(60_000))
    # and the questions are answered
    answerer = Answerer(client)
    answerer.run()
    assert answerer.runs == len(asked)


def infos(client: redis.Redis) -> int:
    """Return how often the server has been asked for its memory."""
    commands = cast("dict[str, dict[str, int]]", client.info("commandstats"))
    return commands.get("cmdstat_info", {"calls": 0})["calls"]


def test_a_server_is_asked_for_its_memory_now_and_then_only(client: Service) -> None:
    main = client.connections.main
    # given an answer of the server, which here does not end after a second
    main.set(redis_keys.ROOM, 20_000)
    before = infos(main)

    # when frames are stored
    for _ in range(4):
        put(client, noise(3_000))

    # then nothing asks again, and each takes its part
    assert infos(main) - before == 1  # that of this test
    left = int(cast(bytes, main.get(redis_keys.ROOM)))
    assert 4_000 < left < 20_000 - 4 * 3_000

    # and what is larger than the rest asks again, and is granted a part of what is free
    put(client, noise(left + 1))
    assert infos(main) - before == 3
    free = (1 - RESERVE) * LIMIT - main.info("memory")["used_memory"]
    granted = cast("bytes | None", main.get(redis_keys.ROOM))  # None after a second
    assert 0 < int(granted or 1) <= free / 60
    assert main.pttl(redis_keys.ROOM) != -1


def test_what_was_granted_ends_when_the_server_refuses_work(client: Service) -> None:
    put(client, noise(3_000))
    fill(client)
    client.connections.main.delete(redis_keys.ROOM)  # as after a second
    with pytest.raises(redis.exceptions.OutOfMemoryError):
        require_room(client.connections.main)
    assert not client.connections.main.exists(redis_keys.ROOM)


@pytest.mark.parametrize("door", ["ask", "attach", "API", "watch", "recording"])
def test_new_work_is_refused_at_every_door_with_one_sentence(
    client: Service, server: EmbeddedServer, tmp_path: Path, door: str
) -> None:
    # given a full server
    ask_until_refused(client)
    stream = client.stream("yard")
    frames = client.frames.newest(stream.id)
    # when new work comes, then it is refused, and nothing of it is stored
    main = client.connections.main
    keys = main.dbsize()
    if door == "ask":
        with pytest.raises(redis.exceptions.OutOfMemoryError):
            client.ask("Anyone?", "yard", stale_ok=True)
    elif door == "attach":
        with pytest.raises(redis.exceptions.OutOfMemoryError):
            client.attach("rtsp://127.0.0.1:1/", "two", probe=False)
    elif door == "API":
        own = Service(Settings(redis_url=server.url, data_dir=tmp_path))
        with TestClient(create_app(own), base_url="http://127.0.0.1") as api:
            body = {"prompt": "Anyone?", "stream": "yard", "stale_ok": True}
            answer = api.post("/v1/queries", json=body)
        assert answer.status_code == 503
        assert answer.json()["error"]["code"] == "REDIS_FULL"
        assert answer.json()["error"]["message"].startswith("Redis is full: ")
        assert int(answer.headers["Retry-After"]) > 0
        return  # the API notes when it last saw the parts of the installation
    elif door == "watch":
        counters = client.registry.status(stream.id).counters
        clips = LiveClips(client.jobs, client.settings, counters, Outage())
        window = Window(0.0, 10.0, frames, epoch=0.0)
        clips.submit(stream, stream.watches[0], window)
        assert (counters.clips, counters.clips_dropped) == (1, 1)
    else:
        request = ClipRequest.for_watch(
            stream, watch(), start=stream.created_at, end=stream.created_at, frames=frames
        ).model_copy(update={"kind": RequestKind.FILE})
        with pytest.raises(redis.exceptions.OutOfMemoryError):
            client.jobs.submit(request)
    assert main.dbsize() == keys


@pytest.mark.parametrize("door", ["now", "range", "conversation"])
def test_a_full_server_that_has_deleted_all_frames_is_the_reason_why_a_question_is_refused(
    client: Service, door: str
) -> None:
    # given a camera without frames, as a server has deleted them that something else has filled
    fill(client)
    client.frames.discard(client.stream("yard").id)
    fill(client)
    # when a question comes, then it is refused because the server is full
    view = ChatMessage("user", ["Anyone?", CameraView.of("yard", {})])
    ask: dict[str, Callable[[], object]] = {
        "now": lambda: client.submit(Question(prompt="Anyone?", stream="yard"), wait=0.0),
        "range": lambda: client.ask("Anyone?", "yard", since="-1h"),
        "conversation": lambda: client.chats.prepare([view]),
    }
    with pytest.raises(redis.exceptions.OutOfMemoryError):
        ask[door]()


def test_waiting_questions_are_bounded_by_number_and_several_programs_do_not_exceed_it(
    settings: Settings,
) -> None:
    # given several programs that take at most 20 questions together
    settings.max_queries = 20
    clients = [Service(settings) for _ in range(4)]
    attach_yard(clients[0])
    lock, accepted, refused = threading.Lock(), [], []

    def ask(number: int) -> None:
        try:
            query = clients[number % 4].ask("Anyone?", "yard", stale_ok=True)
        except StreamerError as error:
            with lock:
                refused.append(error)
        else:
            with lock:
                accepted.append(query.id)

    # when many ask at once
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(ask, range(100)))
    # then exactly as many are accepted, and the others are refused with the reason
    assert (len(accepted), len(refused)) == (20, 80)
    assert {error.code for error in refused} == {ErrorCode.TOO_MANY_QUERIES}
    assert "max_queries" in refused[0].message
    assert refused[0].http_status == 429
    with TestClient(create_app(Service(settings)), base_url="http://127.0.0.1") as api:
        body = {"prompt": "Anyone?", "stream": "yard", "stale_ok": True}
        answer = api.post("/v1/queries", json=body)
        assert (answer.status_code, answer.headers["Retry-After"]) == (429, "5")
    # and each that is answered, cancelled or lost makes room for one
    clients[0].cancel(accepted[0])
    clients[0].connections.main.delete(f"rq:job:{accepted[1]}")
    clients[0].query(accepted[1])
    Answerer(clients[0]).run()
    for _ in range(20):
        clients[1].ask("Anyone?", "yard", stale_ok=True)
    for opened in clients:
        opened.close()


def test_waiting_questions_are_bounded_by_bytes(settings: Settings) -> None:
    settings.max_query_bytes = 1 << 20
    with Service(settings) as client:
        attach_yard(client)
        # given as many long questions as may wait
        asked, refusal = [], None
        for _ in range(100):
            try:
                asked.append(client.ask(QUESTION, "yard", stale_ok=True))
            except StreamerError as error:
                refusal = error
                break
        # then one more is refused, for as long as none of them is answered
        assert refusal is not None
        assert refusal.code is ErrorCode.TOO_MANY_QUERIES
        assert "max_query_bytes" in refusal.message
        assert 10 < len(asked) < 60
        client.cancel(asked[0].id)
        client.ask(QUESTION, "yard", stale_ok=True)


def test_a_question_that_an_older_worker_answered_no_longer_counts(client: Service) -> None:
    # given a question that a worker of 0.1.0 has answered: it does not count it out
    asked = client.ask("Anyone?", "yard", stale_ok=True)
    waiting = client.ask("Anyone?", "yard", stale_ok=True)
    main = client.connections.main
    result = Result(
        request_id=asked.id, kind="answer", stream_id="str_1", stream_name="yard", prompt="?"
    )
    main.set(redis_keys.answer(asked.id), result.model_dump_json(), ex=60)
    # when a worker sweeps
    from streamer.queues.lost_requests import LostRequests

    assert LostRequests(main, client.queue).sweep() == 0
    # then only the other one counts
    held = main.hgetall(redis_keys.OPEN_QUERIES)
    assert set(held) == {b"total", waiting.id.encode()}
    assert held[b"total"] == held[waiting.id.encode()]


def test_a_request_whose_submission_is_repeated_is_run_once(client: Service) -> None:
    stream = client.stream("yard")
    request = ClipRequest.for_watch(
        stream,
        stream.watches[0],
        start=stream.created_at,
        end=stream.created_at,
        frames=client.frames.newest(stream.id),
    )
    # given a request whose acceptance was not heard, so that it is submitted again
    client.jobs.submit(request)
    client.jobs.submit(request)
    assert client.jobs.depths()["watches"] == 1
    # when it is answered and submitted once more
    answerer = Answerer(client)
    answerer.run()
    client.jobs.submit(request)
    # then it has run once, and waits no more
    assert answerer.runs == 1
    assert client.jobs.depths()["watches"] == 0
    assert client.jobs.status(request.id) is QueryStatus.DONE


def test_a_client_for_bookkeeping_writes_to_a_full_server_as_to_any_other(client: Service) -> None:
    main = client.connections.main
    fill(client)
    with pytest.raises(redis.exceptions.OutOfMemoryError):
        require_room(main)
    own = in_reserve(main)
    # commands and transactions give what they give elsewhere
    assert own.hset("h", mapping={"a": 1, "b": 2}) == 2
    assert own.set("x", 1, nx=True, ex=60) is True
    assert own.set("x", 2, nx=True) is None
    assert own.xgroup_create("s", "g", id="0", mkstream=True) is True
    with own.pipeline() as pipeline:
        pipeline.hset("h", "c", 3)
        pipeline.hgetall("h")
        pipeline.zscore("z", "m")
        pipeline.zadd("z", {"m": 1.5})
        pipeline.zscore("z", "m")
        assert pipeline.execute() == [1, {b"a": b"1", b"b": b"2", b"c": b"3"}, None, 1, 1.5]
    # and errors are errors
    with pytest.raises(redis.exceptions.ResponseError, match="WRONGTYPE"):
        own.lpush("h", 1)
    with own.pipeline() as pipeline:
        pipeline.hset("h", "d", 4)
        pipeline.lpush("h", 1)
        with pytest.raises(redis.exceptions.ResponseError, match="WRONGTYPE"):
            pipeline.execute()
    # but nothing else does
    with pytest.raises(redis.exceptions.OutOfMemoryError):
        main.hset("h", "e", 5)
