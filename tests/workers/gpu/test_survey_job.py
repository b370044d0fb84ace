"""Questions about several windows: a real Redis, real workers in threads, a scripted model."""

import threading
import time
from contextlib import contextmanager
from datetime import timedelta

import pytest
from rq.job import Job
from rq.serializers import JSONSerializer

from nvila_core.resolution.policy import Measures
from streamer.domain.conversation import ChatRequest, TextPart, Turn
from streamer.domain.query import QueryStatus
from streamer.domain.question import Question
from streamer.domain.result import Result
from streamer.domain.stream import StreamSpec
from streamer.domain.timestamp import rfc3339, to_datetime, utc_now
from streamer.errors import ErrorCode, StreamerError
from streamer.limits import MAX_QUERY_WINDOWS
from streamer.questions.surveys import release_ended
from streamer.queues.deltas import Deltas
from streamer.queues.jobs import CHAT_JOB, CLIP_JOB, INGEST, INGEST_JOB, SURVEY_JOB
from streamer.queues.models import CLIP_QUEUES
from streamer.response_format import ChoiceFormat
from tests.support.clips import jpeg_of, picture
from tests.support.scripted_model import MODEL, ScriptedModel, refused, said
from tests.support.videos import write_video
from workers import context
from workers.context import WorkerContext
from workers.gpu.chat_job import answer_chat
from workers.gpu.clip_job import answer_clip, publish_failure
from workers.gpu.survey_job import answer_survey
from workers.ingest.job import run_stream
from workers.remote.backend import RemoteBackend
from workers.rq.thread_worker import ThreadWorker

WAIT = 120.0


class Script:
    """Answers of a model: `seen` of each window with pictures, `summary` of a list of answers.

    Attributes:
        windows: how many windows were asked about.
        lists: the lists that were to be summed up.
        gate: windows wait for it.
        summary_gate: summaries wait for it.
    """

    def __init__(self) -> None:
        self.windows = 0
        self.lists: list[str] = []
        self.seen = "A street."
        self.gate, self.summary_gate = threading.Event(), threading.Event()
        self.gate.set()
        self.summary_gate.set()
        self._lock = threading.Lock()

    def __call__(self, body):
        (message,) = body["messages"]
        if isinstance(message["content"], str) or len(message["content"]) == 1:
            content = message["content"]
            text = content if isinstance(content, str) else content[0]["text"]
            self.lists.append(text)
            self.summary_gate.wait(WAIT)
            return said(f"It began at {text[:10]}, and at [23:59:59] it ended.")
        with self._lock:
            self.windows += 1
            number = self.windows
        self.gate.wait(WAIT)
        seen = self.seen(number) if callable(self.seen) else self.seen
        return said(seen) if isinstance(seen, str) else seen


@pytest.fixture
def script():
    return Script()


@pytest.fixture
def own(settings, connections, script):
    """This process as a worker of every kind, whose model is a server with a script."""
    with ScriptedModel(script) as server:
        remote = settings.model_copy(
            update={
                "backend": "openai",
                "base_url": server.url,
                "model": MODEL,
                "max_file_clips": 4,
                "lease": 2.0,
            }
        )
        with RemoteBackend(remote, connections.clock) as backend:
            own = WorkerContext(
                settings=remote, connections=connections, model_name=MODEL, backend=backend
            )
            context.install(own)
            yield own
            own.stopping.set()
    context.install(None)


@contextmanager
def working(own):
    """Run jobs of models and streams."""
    stopping = threading.Event()
    workers = [
        ThreadWorker(
            queues,
            own.connections.main,
            slots=4,
            functions=functions,
            stopping=stopping,
            lease=own.settings.lease,
            on_failed=publish_failure,
            resting=8,
            grace=0.1,
            poll=0.1,
        )
        for queues, functions in (
            (
                CLIP_QUEUES,
                {CLIP_JOB: answer_clip, CHAT_JOB: answer_chat, SURVEY_JOB: answer_survey},
            ),
            ([INGEST], {INGEST_JOB: run_stream}),
        )
    ]
    threads = [threading.Thread(target=worker.work) for worker in workers]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        stopping.set()
        for thread in threads:
            thread.join(WAIT)


def camera(client, name="lobby", seconds=60, every=1.0):
    """Attach a camera that has seen a frame `every` second, the last just now."""
    spec = StreamSpec(name=name, url=f"rtsp://camera/{name}", live=True)
    client.registry.create(spec, spec.url)
    now = time.time()
    for number in range(round(seconds / every)):
        client.frames.put(
            spec.id,
            jpeg_of(picture(number)),
            Measures(320, 240, change=0.5),
            time=now - seconds + every * (number + 1),
            pts=every * number,
        )
    return spec


def ask(client, **fields):
    return client.submit(Question(prompt="Is a car there?", **fields))


def chat_of(query_id):
    """Return a request for a summary of a survey."""
    now = utc_now()
    turns = [Turn(role="user", content=[TextPart(text="Sum up.")])]
    return ChatRequest(start=now, end=now, prompt="?", frames=[], turns=turns, part_of=query_id)


def finished(client, query):
    query = client.query(query.id, wait=WAIT)
    assert query.result is not None
    return query


def test_a_long_range_is_answered_window_by_window_and_summed_up(own, client, script):
    camera(client)
    now = time.time()
    since, until = to_datetime(now - 60), to_datetime(now)

    with working(own):
        query = ask(client, stream="lobby", since=since, until=until, window=10)
        query = finished(client, query)

    result = query.result
    assert (query.status, result.kind, result.error) == (QueryStatus.DONE, "answer", None)
    windows = result.data["windows"]
    assert [window["text"] for window in windows] == ["A street."] * 6
    assert [window["start"] for window in windows] == [
        rfc3339(query.since + timedelta(seconds=10 * number)) for number in range(6)
    ]
    assert query.progress.model_dump() == {"windows": 6, "done": 6, "unknown": 0}
    # the summary was made of the answers, and cites no time but theirs
    (asked,) = script.lists
    assert "Is a car there?" in asked
    assert result.text == f"It began at {asked[:10]}, and at it ended."
    assert result.frames == sum(window["frames"] for window in windows) > 0
    assert result.prompt_tokens == 7 * 900
    # and it was written while it was waited for
    assert Deltas(client.connections.main).read(query.id)[0][1].text.startswith("It began at")
    assert client.jobs.in_flight(query.id) == 0


def test_several_streams_are_asked_at_once(own, client, script):
    for name in ("lobby", "gate"):
        camera(client, name, seconds=5)

    with working(own):
        query = finished(client, ask(client, streams=["lobby", "gate"]))

    windows = query.result.data["windows"]
    assert {window["stream"] for window in windows} == {"lobby", "gate"}
    assert [window["frames"] for window in windows] == [1, 1]
    assert query.streams == [client.stream(name).id for name in ("lobby", "gate")]
    assert "lobby: A street." in script.lists[0]
    assert "gate: A street." in script.lists[0]


def test_windows_without_an_answer_are_counted(own, client, script):
    # given a camera that was away for the first half, and a model that fails once
    camera(client, seconds=30)
    now = time.time()
    script.seen = lambda number: refused(400, "too hot") if number == 1 else "A street."

    with working(own):
        query = ask(
            client,
            stream="lobby",
            since=to_datetime(now - 60),
            until=to_datetime(now),
            window=10,
        )
        query = finished(client, query)

    result = query.result
    assert result.error is None
    errors = [window["error"] for window in result.data["windows"]]
    assert errors[:2] == ["NO_FRAMES"] * 2
    assert result.data["unknown"] == sum(error is not None for error in errors)
    assert result.warning.startswith(f"{result.data['unknown']} of 6 windows are unknown.")
    assert query.progress.unknown == result.data["unknown"] >= 3


def test_without_any_answer_the_query_fails(own, client, script):
    camera(client, seconds=5)
    script.seen = lambda _: refused(400, "too hot")

    with working(own):
        query = finished(client, ask(client, streams=["lobby"]))

    assert query.status is QueryStatus.FAILED
    assert query.result.error.message.startswith("1 of 1 windows is unknown. First error: ")
    assert query.result.data["windows"][0]["error"] == query.result.error.code


def test_a_single_window_is_the_answer(own, client, script):
    camera(client, seconds=5)
    script.seen = "yes"

    with working(own):
        query = finished(
            client,
            ask(client, streams=["lobby"], response_format=ChoiceFormat(choices=["yes", "no"])),
        )

    assert (query.result.text, query.result.data["choice"]) == ("yes", "yes")
    assert not script.lists


def test_a_recording_is_read_answered_and_detached(own, client, script, tmp_path):
    write_video(tmp_path / "clip.mp4", seconds=6)

    with working(own):
        query = finished(client, ask(client, url=str(tmp_path / "clip.mp4"), window=2))

    result = query.result
    assert result.error is None, result.error
    windows = result.data["windows"]
    assert [(w["media_start"], w["media_end"]) for w in windows] == [(0, 2), (2, 4), (4, 6)]
    assert "[00:00:00] A street." in script.lists[0]
    assert result.text.startswith("It began at [00:00:00]")
    assert (query.stream_name, query.url, query.stream) == (
        "clip",
        str(tmp_path / "clip.mp4"),
        None,
    )
    # the recording is gone, and the pictures behind the answer are still there
    assert client.streams() == []
    frames = client.frames_of_query(query.id).frames
    assert len(frames) == result.frames
    assert all(frame.url for frame in frames)


def unknown_length(path, seconds):
    """Write a video that does not say how long it is, as programs that write to a pipe do."""
    write_video(path, seconds=seconds, container_options={"live": "1"})
    return str(path)


def test_a_recording_of_unknown_length_has_as_many_windows_as_it_needs(
    own, client, script, tmp_path, monkeypatch
):
    # given a recording with more windows than an answer has entries
    monkeypatch.setattr("workers.gpu.survey_job.MAX_QUERY_WINDOWS", 3)
    source = unknown_length(tmp_path / "clip.mkv", 5)
    assert client.admission.probe(source, "auto", live=False).duration is None
    script.seen = lambda number: refused(400, "too hot") if number == 1 else "A street."

    with working(own):
        query = finished(client, ask(client, url=source, window=1))

    # then each window was asked about, and several share an entry
    result = query.result
    assert result.error is None, result.error
    assert query.progress.model_dump() == {"windows": 5, "done": 5, "unknown": 1}
    windows = result.data["windows"]
    assert [(w["media_start"], round(w["media_end"])) for w in windows] == [(0, 2), (2, 4), (4, 5)]
    assert [w.get("windows") for w in windows] == [2, 2, None]
    assert [w["text"] for w in windows] == ["A street."] * 3
    assert [w["error"] for w in windows] == [None] * 3
    assert sum(w["frames"] for w in windows) == result.frames
    assert result.data["unknown"] == 1
    # and the summary was made of all of them
    assert result.text.startswith("It began at [00:00:0")


def test_of_an_endless_recording_the_beginning_is_answered(
    own, client, script, tmp_path, monkeypatch
):
    # given a recording with more windows than a query may have
    monkeypatch.setattr("workers.gpu.survey_job.MAX_RECORDING_WINDOWS", 3)
    source = unknown_length(tmp_path / "clip.mkv", 30)

    with working(own):
        query = finished(client, ask(client, url=source, window=1))

    # then it was read so far, and the answer says so
    result = query.result
    assert result.error is None, result.error
    assert "Only the first " in result.warning
    assert 3 <= len(result.data["windows"]) < 20
    assert result.data["windows"][0]["media_start"] == 0
    assert client.streams() == []
    assert client.jobs.in_flight(query.id) == 0


@pytest.mark.parametrize("stage", ["windows", "summary"])
def test_another_worker_goes_on_and_asks_nothing_twice(own, client, script, eventually, stage):
    camera(client)
    now = time.time()
    gate = script.gate if stage == "windows" else script.summary_gate
    gate.clear()
    asked = {"since": to_datetime(now - 60), "until": to_datetime(now), "window": 10}
    # given a worker that ends in the middle
    with working(own):
        query = ask(client, stream="lobby", **asked)
        eventually(lambda: script.windows >= 2 if stage == "windows" else script.lists)
        threading.Timer(0.5, gate.set).start()
    # when another one comes
    with working(own):
        query = finished(client, query)
    # then each window has one answer
    assert len(query.result.data["windows"]) == 6
    assert query.result.data["unknown"] == 0
    found = [entry for _, entry in client.queue.read("0-0")]
    answers = [each.request_id for each in found if each.kind == "answer"]
    assert sorted(answers) == sorted(
        [query.id, *(window["request_id"] for window in query.result.data["windows"])]
    )
    assert sum(each.kind == "summary" for each in found) == 1


@pytest.mark.parametrize("stage", ["before", "windows", "summary"])
def test_a_query_is_cancelled_at_every_stage(own, client, script, eventually, tmp_path, stage):
    write_video(tmp_path / "clip.mp4", seconds=20)
    if stage == "before":
        query = ask(client, url=str(tmp_path / "clip.mp4"), window=2)
        client.cancel(query.id)
        with working(own):
            query = finished(client, query)
    else:
        gate = script.gate if stage == "windows" else script.summary_gate
        gate.clear()
        with working(own):
            query = ask(client, url=str(tmp_path / "clip.mp4"), window=2)
            eventually(lambda: script.windows >= 1 if stage == "windows" else script.lists)
            client.cancel(query.id)
            gate.set()
            query = finished(client, query)
            eventually(lambda: not client.jobs.depths()["files"])
            eventually(lambda: not client.jobs.exists(query.id))
    assert query.status is QueryStatus.CANCELLED
    assert script.windows <= (0 if stage == "before" else 6 if stage == "windows" else 10)
    assert client.streams() == []
    assert client.jobs.in_flight(query.id) == 0


def test_a_recording_that_cannot_be_attached_leaves_nothing(client, tmp_path):
    (tmp_path / "notes.mp4").write_text("no video")
    with pytest.raises(StreamerError):
        ask(client, url=str(tmp_path / "notes.mp4"))
    client.admission.remote = True
    with pytest.raises(StreamerError) as refusal:
        ask(client, url="/etc/passwd")
    assert refusal.value.code is ErrorCode.STREAM_URL_FORBIDDEN
    assert client.streams() == []
    assert client.queries() == []


@pytest.mark.parametrize("end", ["lost", "failed"])
def test_a_survey_that_ends_without_its_job_leaves_nothing(client, own, tmp_path, end):
    # given a question about a recording, of which a window is being asked about
    write_video(tmp_path / "clip.mp4", seconds=2)
    query = ask(client, url=str(tmp_path / "clip.mp4"))
    own.jobs.submit(chat_of(query.id))
    job = Job.fetch(query.id, connection=own.connections.main, serializer=JSONSerializer)
    # when Redis loses its job, or it fails for good, and workers sweep
    if end == "lost":
        own.connections.main.delete(job.key)
        assert own.lost_requests.sweep() == 1
    else:
        publish_failure(job, ErrorCode.MODEL_FAILED, "It killed its workers.")
    still_open = release_ended(own.connections.main, own.jobs, own.streams, own.windows)
    # then its recording is detached, and its requests are gone
    assert client.query(query.id).status is QueryStatus.FAILED
    assert client.streams() == []
    assert own.jobs.in_flight(query.id) == 0
    assert still_open == 0


def test_a_survey_that_is_open_keeps_its_recording(client, own, tmp_path):
    write_video(tmp_path / "clip.mp4", seconds=2)
    query = ask(client, url=str(tmp_path / "clip.mp4"))

    assert release_ended(own.connections.main, own.jobs, own.streams, own.windows) == 1

    assert [stream.id for stream in client.streams()] == [query.stream_id]


def test_more_windows_than_may_be_are_refused(client):
    camera(client, seconds=2)
    for fields in ({"stream": "lobby"}, {"streams": ["lobby"]}):
        with pytest.raises(StreamerError) as refusal:
            ask(client, since="-1d", window=10, **fields)
        assert refusal.value.param == "window"
        assert f"more than {MAX_QUERY_WINDOWS}" in refusal.value.message
    # without a window of its own, the service chooses one that is long enough
    query = ask(client, streams=["lobby"], since="-1d")
    assert query.status is QueryStatus.QUEUED


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"stream": "a", "file": "file_1"}, "file"),
        ({"streams": ["a"], "url": "/clip.mp4"}, "url"),
        ({"file": "file_1", "since": "-1h"}, "since"),
        ({"stream": "a", "window": 5}, "window"),
    ],
)
def test_a_question_is_about_one_thing(fields, param):
    with pytest.raises(StreamerError) as refusal:
        Question(prompt="?", **fields)
    assert (refusal.value.code, refusal.value.param) == (ErrorCode.INVALID_REQUEST, param)


def test_no_more_surveys_are_open_than_workers_have_threads_for(client, monkeypatch):
    monkeypatch.setattr("streamer.questions.surveys.MAX_OPEN_SURVEYS", 2)
    camera(client, seconds=2)
    first, _ = (ask(client, streams=["lobby"]) for _ in range(2))
    with pytest.raises(StreamerError) as refusal:
        ask(client, streams=["lobby"])
    assert refusal.value.code is ErrorCode.TOO_MANY_QUERIES
    # when one has ended
    client.cancel(first.id)
    assert ask(client, streams=["lobby"]).status is QueryStatus.QUEUED


def test_what_was_recorded_is_summed_up_by_blocks(own, client, script):
    # given captions of more than one block
    start = time.time() - 600
    client.timeline.record(
        [
            Result(
                request_id=f"req_{number}",
                kind="caption",
                stream_id="str_1",
                stream_name="lobby",
                start=to_datetime(start + number),
                end=to_datetime(start + number + 1),
                prompt="?",
                text=f"{number} " * 500,
            )
            for number in range(10)
        ]
    )
    # when
    with working(own):
        query = finished(client, client.summarize("lobby", "-1h"))
    # then each block was summed up, and then the blocks
    result = query.result
    blocks = result.data["blocks"]
    assert len(blocks) > 1
    assert len(script.lists) == len(blocks) + 1
    assert result.text.startswith("It began at [")
    assert (result.data["results"], result.data["errors"]) == (10, 0)
    assert all(block["text"].startswith("It began at [") for block in blocks)
    found = [entry for _, entry in client.queue.read("0-0")]
    assert [each.kind for each in found].count("summary") == len(blocks) + 1


@pytest.mark.parametrize("stage", ["windows", "summary"])
def test_a_worker_that_is_killed_is_replaced(
    client, settings, script, worker_process, eventually, stage
):
    # given a worker in the middle of a question about several windows
    camera(client)
    now = time.time()
    gate = script.gate if stage == "windows" else script.summary_gate
    gate.clear()
    with ScriptedModel(script) as server:
        environment = {
            "STREAMER_BACKEND": "openai",
            "STREAMER_BASE_URL": server.url,
            "STREAMER_MODEL": MODEL,
            "STREAMER_MAX_FILE_CLIPS": "3",
            "STREAMER_LEASE": "3",
        }
        first = worker_process("gpu", **environment)
        query = ask(
            client,
            stream="lobby",
            since=to_datetime(now - 60),
            until=to_datetime(now),
            window=10,
        )
        eventually(lambda: script.windows >= 2 if stage == "windows" else script.lists)
        # when it is killed, and another one comes
        first.kill()
        gate.set()
        worker_process("gpu", **environment)
        query = finished(client, query)
    # then every window has one answer, and the question has one
    assert query.result.error is None, query.result.error
    assert query.progress.model_dump() == {"windows": 6, "done": 6, "unknown": 0}
    found = [entry.request_id for _, entry in client.queue.read("0-0")]
    assert sorted(found) == sorted(set(found))
    assert len(found) == 6 + 1 + 1
