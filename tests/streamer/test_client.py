"""The client against a real server and real files; where a worker is needed, its side is played
through the same public classes that workers use."""

import threading
import time
from datetime import UTC, datetime, timedelta
from itertools import count
from pathlib import Path

import cv2
import numpy as np
import pytest
import redis

from nvila_core.demo.questions import CAPTION
from nvila_core.resolution.policy import Measures
from streamer import redis_keys
from streamer.domain.error_info import ErrorInfo
from streamer.domain.query import Query, QueryStatus
from streamer.domain.result import Result
from streamer.domain.sampling import Sampling
from streamer.domain.stream import Stream
from streamer.errors import ErrorCode, StreamerError
from streamer.queues.models import QUERIES
from streamer.service import CAPTION_PROMPT, Service
from streamer.settings import Settings
from streamer.validation import derive_name
from tests.support.redis_commands import commands_of
from tests.support.videos import write_audio, write_video

PASSWORD = "hunter2secret"


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("videos") / "my holiday (1).mp4"
    write_video(path, seconds=1.0, fps=10)
    return path


def add_frames(client: Service, stream: Stream, times: list[float]) -> None:
    jpeg = cv2.imencode(".jpg", np.zeros((24, 32, 3), np.uint8))[1].tobytes()
    for n, moment in enumerate(times):
        measures = Measures(32, 24, change=0.0)
        client.frames.put(stream.id, jpeg, measures, time=moment, pts=float(n), decode_ms=1.0)


def code_of(caught: pytest.ExceptionInfo[StreamerError]) -> ErrorCode:
    return caught.value.code


# Streams


def test_the_demo_checkpoint_was_trained_on_the_default_prompt() -> None:
    assert CAPTION_PROMPT in CAPTION


def test_attach_probes_names_and_starts(client: Service, video: Path) -> None:
    stream = client.attach(str(video))
    assert stream.name == "my-holiday-1"
    assert not stream.live
    assert [watch.prompt for watch in stream.watches] == [CAPTION_PROMPT]
    assert stream.watches[0].window == client.settings.window
    assert client.stream(stream.id) == client.stream(stream.name)
    assert client.jobs.depths()["ingest"] == 1


def test_derived_names_are_made_unique_and_given_ones_are_not(client: Service, video: Path) -> None:
    names = [client.attach(str(video), probe=False).name for _ in range(3)]
    assert names == ["my-holiday-1", "my-holiday-1-2", "my-holiday-1-3"]
    with pytest.raises(StreamerError) as caught:
        client.attach(str(video), "my-holiday-1")
    assert code_of(caught) is ErrorCode.NAME_TAKEN


@pytest.mark.parametrize(
    ("url", "name"),
    [
        ("rtsp://admin:***@cam.local:554/live/ch1?token=***", "cam.local-live-ch1"),
        ("rtsp://10.0.0.7/", "10.0.0.7"),
        ("http://[::1]:8000/a.mp4", "1-a.mp4"),
        ("/data/Straße.mp4", "Stra-e"),
        ("/data/....mp4", "stream"),
        ("/data/" + "x" * 300 + ".mp4", "x" * 48),
        ("/dev/video0", "video0"),
    ],
)
def test_derive_name(url: str, name: str) -> None:
    assert derive_name(url) == name


def test_a_url_with_a_password_is_shown_without_it(client: Service) -> None:
    stream = client.attach(f"rtsp://admin:{PASSWORD}@cam.invalid/live", probe=False)
    assert PASSWORD not in stream.model_dump_json()
    assert stream.name == "cam.invalid-live"
    assert PASSWORD in client.registry.secret_url(stream.id)


def test_what_fails_its_probe_is_not_attached(client: Service, tmp_path: Path) -> None:
    audio, text = tmp_path / "sound.m4a", tmp_path / "notes.mp4"
    write_audio(audio)
    text.write_text("not a video")
    for source, code in [
        (str(tmp_path / "absent.mp4"), ErrorCode.STREAM_NOT_FOUND),
        (str(audio), ErrorCode.STREAM_NO_VIDEO),
        (str(text), None),
        (f"rtsp://admin:{PASSWORD}@127.0.0.1:1/live", ErrorCode.STREAM_CONNECTION_FAILED),
        ("gopher://example.invalid/x", ErrorCode.STREAM_URL_FORBIDDEN),
    ]:
        with pytest.raises(StreamerError) as caught:
            client.attach(source)
        assert code is None or code_of(caught) is code, caught.value.message
        assert PASSWORD not in caught.value.message
    assert client.streams() == []


@pytest.mark.parametrize("name", ["", "a b", "-x", "x" * 65, "ümlaut", "a/b"])
def test_bad_names_are_refused(client: Service, video: Path, name: str) -> None:
    with pytest.raises(StreamerError, match="is not a valid name") as caught:
        client.attach(str(video), name, probe=False)
    assert code_of(caught) is ErrorCode.INVALID_REQUEST


def test_watches_of_ones_own_or_none(client: Service, video: Path) -> None:
    none = client.attach(str(video), watches=[], probe=False)
    assert none.watches == []
    watch = client.watch("Is the gate open?", window=3.0, max_tokens=4)
    assert (watch.window, watch.max_frames, watch.max_tokens) == (3.0, 16, 4)
    for prompt in ("", " \n"):
        with pytest.raises(StreamerError) as caught:
            client.watch(prompt)
        assert code_of(caught) is ErrorCode.PROMPT_EMPTY
    with pytest.raises(StreamerError, match="window") as caught:
        client.watch("x", window=-1)
    assert code_of(caught) is ErrorCode.INVALID_REQUEST


def test_detach_forgets_stream_frames_and_job(client: Service, video: Path) -> None:
    stream = client.attach(str(video), "door", probe=False)
    add_frames(client, stream, [time.time()])
    assert client.detach("door").id == stream.id
    assert client.streams() == []
    assert client.frames.count(stream.id) == 0
    assert client.jobs.depths()["ingest"] == 0
    with pytest.raises(StreamerError) as caught:
        client.detach("door")
    assert code_of(caught) is ErrorCode.UNKNOWN_STREAM


def test_the_only_stream_may_go_unnamed(client: Service, video: Path) -> None:
    with pytest.raises(StreamerError, match="No stream is attached"):
        client.stream()
    only = client.attach(str(video), "a", probe=False)
    assert client.stream().id == only.id
    client.attach(str(video), "b", probe=False)
    with pytest.raises(StreamerError, match="name one of a, b"):
        client.stream()


def test_analyze_refuses_what_has_no_end(client: Service) -> None:
    with pytest.raises(StreamerError, match="live") as caught:
        client.analyze(f"rtsp://u:{PASSWORD}@cam.invalid/x")
    assert PASSWORD not in caught.value.message


# Questions


def live(client: Service, name: str = "door") -> Stream:
    return client.attach("rtsp://cam.invalid/live", name, probe=False, sampling=Sampling(fps=1))


def asked_frames(client: Service, query_id: str) -> list[float]:
    from rq.job import Job
    from rq.serializers import JSONSerializer

    job = Job.fetch(query_id, connection=client.connections.main, serializer=JSONSerializer)
    assert job.origin == QUERIES
    return [frame["time"] for frame in job.args[0]["frames"]]


def test_now_is_the_newest_frame(client: Service) -> None:
    stream = live(client)
    now = time.time()
    add_frames(client, stream, [now - 3, now - 2, now - 1])
    query = client.ask("Anybody there?", "door")
    assert asked_frames(client, query.id) == [now - 1]
    assert query.start == query.end
    assert query.status is QueryStatus.QUEUED
    two = client.ask("Anybody there?", "door", max_frames=2)
    assert asked_frames(client, two.id) == [now - 2, now - 1]


def test_a_past_range_is_spread_over(now: float, client: Service) -> None:
    stream = live(client)
    add_frames(client, stream, [now - 60 + n for n in range(60)])
    query = client.ask("What happened?", "door", since="-41.5s", until="-20.5s", max_frames=5)
    ages = [round(now - moment) for moment in asked_frames(client, query.id)]
    assert ages == [41, 36, 31, 26, 21]
    assert (query.end - query.start).total_seconds() == pytest.approx(21.0)


def test_without_frames_the_sentence_says_why(client: Service) -> None:
    stream = live(client)
    client.first_frame_wait = 0.0
    with pytest.raises(StreamerError, match="connecting") as caught:
        client.ask("?", "door")
    assert code_of(caught) is ErrorCode.NO_FRAMES
    status = client.registry.status(stream.id)
    status.error = ErrorInfo(code=ErrorCode.STREAM_AUTH_FAILED, message="Refused.")
    client.registry.save_status(stream.id, status)
    with pytest.raises(StreamerError, match=r"\(Refused\.\)"):
        client.ask("?", "door")
    add_frames(client, stream, [time.time()])
    with pytest.raises(StreamerError, match="frames are kept from"):
        client.ask("?", "door", since="-2h", until="-1h")


def test_bad_questions(client: Service) -> None:
    live(client)
    for arguments, code in [
        ({"prompt": " "}, ErrorCode.PROMPT_EMPTY),
        ({"prompt": "?", "stream": "nobody"}, ErrorCode.UNKNOWN_STREAM),
        ({"prompt": "?", "until": "-1m"}, ErrorCode.INVALID_REQUEST),
        ({"prompt": "?", "since": "-1m", "until": "-2m"}, ErrorCode.INVALID_REQUEST),
        ({"prompt": "?", "since": "tomorrow"}, ErrorCode.INVALID_REQUEST),
    ]:
        with pytest.raises(StreamerError) as caught:
            client.ask(**arguments)
        assert code_of(caught) is code


def answer(client: Service, query_id: str, **fields: object) -> None:
    result = Result(
        request_id=query_id,
        kind="error" if "error" in fields else "answer",
        stream_id=None,
        stream_name=None,
        prompt="?",
        **fields,
    )
    assert client.queue.publish(result, owner_id=None)


def test_a_query_gets_its_answer(client: Service) -> None:
    add_frames(client, live(client), [time.time()])
    query = client.ask("?", "door")
    assert client.query(query.id).result is None
    answer(client, query.id, text="Yes.")
    done = client.query(query.id, wait=5.0)
    assert (done.status, done.result and done.result.text) == (QueryStatus.DONE, "Yes.")
    assert client.cancel(query.id) == done, "what is done stays done"


def test_a_query_that_fails_and_one_that_is_cancelled(client: Service) -> None:
    add_frames(client, live(client), [time.time()])
    failed, cancelled = client.ask("?", "door"), client.ask("?", "door")
    answer(client, failed.id, error=ErrorInfo(code=ErrorCode.MODEL_FAILED, message="No."))
    assert client.query(failed.id).status is QueryStatus.FAILED
    gone = client.cancel(cancelled.id)
    assert gone.status is QueryStatus.CANCELLED
    assert gone.result is not None
    assert gone.result.error is not None
    assert client.jobs.depths()[QUERIES] == 1, "only the other one waits"


def test_queries_are_listed_newest_first_and_bounded(client: Service) -> None:
    add_frames(client, live(client), [time.time()])
    ids = []
    for _ in range(3):
        ids.append(client.ask("?", "door").id)
        time.sleep(0.002)
    assert [query.id for query in client.queries()] == ids[::-1]
    assert [query.id for query in client.queries(limit=1)] == [ids[-1]]
    redis_client: redis.Redis = client.connections.main
    assert redis_client.ttl(redis_keys.query(ids[0])) > 0
    assert redis_client.ttl(redis_keys.QUERIES) > 0


def test_queries_in_any_state_are_listed_with_one_command(
    client: Service, redis_client: redis.Redis
) -> None:
    # given queries that wait, are being answered, have ended, are lost, and one of a newer release
    add_frames(client, live(client), [time.time()])
    waiting, running, done, failed, lost = (client.ask("?", "door") for _ in range(5))
    redis_client.hset(f"rq:job:{running.id}", "status", "started")
    answer(client, done.id, text="yes")
    answer(client, failed.id, error=ErrorInfo(code=ErrorCode.MODEL_FAILED, message="No."))
    redis_client.delete(f"rq:job:{lost.id}")
    newer = client.ask("?", "door")
    redis_client.set(redis_keys.query(newer.id), '{"id": 7}')
    expected = [client.query(each.id) for each in (lost, failed, done, running, waiting)]
    client.queries()  # loads the script
    # when
    listed: list[Query] = []
    sent = commands_of(redis_client, lambda: listed.extend(client.queries(1000)))
    # then
    assert listed == expected
    assert [query.status for query in listed] == ["failed", "failed", "done", "running", "queued"]
    assert sent == ["EVALSHA"]


def test_an_answer_is_fetched_with_two_commands(client: Service, redis_client: redis.Redis) -> None:
    add_frames(client, live(client), [time.time()])
    query = client.ask("?", "door")
    answer(client, query.id, text="yes")

    sent = commands_of(redis_client, lambda: client.query(query.id))

    assert sent == ["GET", "GET"]


def test_a_query_whose_job_was_lost_is_failed(client: Service) -> None:
    add_frames(client, live(client), [time.time()])
    query = client.ask("?", "door")
    client.connections.main.delete(f"rq:job:{query.id}")
    assert client.query(query.id).status is QueryStatus.FAILED


def test_unknown_query_and_missing_workers(client: Service) -> None:
    for unknown in ("qry_0", "", "x" * 1000):
        with pytest.raises(StreamerError) as caught:
            client.query(unknown)
        assert code_of(caught) is ErrorCode.UNKNOWN_QUERY
    for require in (client.require_worker, client.require_ingest):
        with pytest.raises(StreamerError) as caught:
            require()
        assert code_of(caught) is ErrorCode.NO_WORKER


# Results


def test_follow_yields_what_comes_from_now_on(client: Service) -> None:
    answer(client, "before", text="old")
    following = client.follow()
    seen: list[str | None] = []
    thread = threading.Thread(target=lambda: seen.append(next(following).text))
    thread.start()
    for number in count():
        answer(client, f"after-{number}", text="new")  # until the follower has begun
        thread.join(0.02)
        if not thread.is_alive():
            break
    assert seen == ["new"]


def test_results_come_from_the_timeline(client: Service) -> None:
    moment = datetime.now(UTC)
    old, new = (
        Result(
            request_id=f"req_{n}",
            kind="caption",
            stream_id="str_1",
            stream_name="door",
            start=moment - timedelta(minutes=age),
            end=moment - timedelta(minutes=age),
            created_at=moment - timedelta(minutes=age),
            prompt="?",
            text=f"A {n}.",
        )
        for n, age in ((1, 30), (2, 1))
    )
    client.timeline.record([old, new])
    assert [r.text for r in client.results(stream="door").results] == ["A 2.", "A 1."]
    assert [r.text for r in client.results(since="-10m").results] == ["A 2."]
    assert [r.text for r in client.results(until="-10m", stream="str_1").results] == ["A 1."]


def test_nothing_is_running(tmp_path: Path) -> None:
    with pytest.raises(StreamerError, match="streamer up") as caught:
        Service(Settings(data_dir=tmp_path))
    assert code_of(caught) is ErrorCode.REDIS_UNAVAILABLE
