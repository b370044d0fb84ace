"""What becomes of a query, as a caller hears it."""

import httpx
import pytest

from streamer import redis_keys
from streamer.domain.error_info import ErrorInfo
from streamer.domain.kinds import RequestKind
from streamer.domain.query import Query
from streamer.domain.request import ClipRequest
from streamer.domain.result import Result
from streamer.domain.timestamp import utc_now
from streamer.errors import ErrorCode
from streamer.questions.surveys import SurveyAnswers
from streamer.queues.deltas import Delta, Deltas
from tests.support.api_server import listen


@pytest.fixture
def client(api_server):
    return api_server.client


def submit(client, query_id, **asked):
    """Submit a question about no frame."""
    request = ClipRequest(
        id=query_id,
        kind=RequestKind.QUERY,
        stream_id="str_yard",
        stream_name="yard",
        start=utc_now(),
        end=utc_now(),
        prompt="?",
        frames=[],
    )
    record = Query.of(request, **asked).model_dump_json()
    client.jobs.submit(request, record=lambda pipe: pipe.set(redis_keys.query(query_id), record))


def answer(client, query_id, text):
    result = Result(
        request_id=query_id,
        kind="answer",
        stream_id="str_yard",
        stream_name="yard",
        prompt="?",
        text=text,
    )
    client.queue.publish(result, owner_id=None)


def url(api_server, query_id):
    return f"{api_server.url}/v1/queries/{query_id}/events"


def test_a_query_is_followed_from_the_queue_to_its_result(api_server, client):
    submit(client, "qry_before")
    submit(client, "qry_1")
    deltas = Deltas(client.connections.main)

    with listen(url(api_server, "qry_1")) as reader:
        (waiting,) = reader.take(1)
        deltas.add("qry_1", Delta(at=0, text="two "))
        (first,) = reader.take(1)
        # when a worker dies, the next one writes the answer again from its beginning
        deltas.add("qry_1", Delta(at=0, text="two c"))
        deltas.add("qry_1", Delta(at=5, text="ars"))
        rest = reader.take(2)
        answer(client, "qry_1", "two cars")
        last = list(reader)[-1]

    assert (waiting.name, waiting.data) == ("progress", {"status": "queued", "position": 1})
    assert (first.name, first.data) == ("delta", {"at": 0, "text": "two "})
    assert [sent.data for sent in rest] == [{"at": 4, "text": "c"}, {"at": 5, "text": "ars"}]
    assert last.name == "result"
    assert last.data["status"] == "done"
    assert last.data["result"]["text"] == "two cars"


def test_who_comes_late_gets_the_whole_answer(api_server, client):
    submit(client, "qry_1")
    deltas = Deltas(client.connections.main)
    deltas.add("qry_1", Delta(at=0, text="two "))
    deltas.add("qry_1", Delta(at=4, text="cars"))
    answer(client, "qry_1", "two cars")

    with listen(url(api_server, "qry_1")) as reader:
        names = [(sent.name, sent.data.get("text")) for sent in reader]

    assert names == [("delta", "two "), ("delta", "cars"), ("result", None)]


def test_a_cancelled_query_ends_with_its_result(api_server, client):
    submit(client, "qry_1")

    with listen(url(api_server, "qry_1")) as reader:
        reader.next()
        client.cancel("qry_1")
        last = list(reader)[-1]

    assert (last.name, last.data["status"]) == ("result", "cancelled")


def test_a_query_that_redis_lost_ends_too(api_server, client, redis_client):
    submit(client, "qry_1")

    with listen(url(api_server, "qry_1")) as reader:
        reader.next()
        redis_client.delete("rq:job:qry_1")
        last = list(reader)[-1]

    assert last.data["result"]["error"]["code"] == "JOB_LOST"


def test_an_unknown_query_is_an_error(api_server):
    response = httpx.get(url(api_server, "qry_none"), timeout=120)

    assert response.status_code == 404
    assert response.json()["error"]["code"] == "UNKNOWN_QUERY"


def test_a_query_about_several_windows_tells_how_many_are_done(api_server, client):
    # given a query of three windows, of which one has an answer and one has none
    submit(client, "qry_1", window=10)
    answers = SurveyAnswers(client.connections.main, "qry_1", 60)
    answers.expect(3)
    common = {"stream_id": "str_yard", "stream_name": "yard", "prompt": "?"}
    failed = ErrorInfo(code=ErrorCode.NO_FRAMES, message="There are no frames.")
    answers.add(
        [
            Result(request_id="req_1", kind="answer", text="A car.", **common),
            Result(request_id="req_2", kind="error", error=failed, **common),
        ]
    )
    # when
    with listen(url(api_server, "qry_1")) as reader:
        (first,) = reader.take(1)
        # the same window again, which was answered after all
        answers.add([Result(request_id="req_2", kind="answer", text="Two.", **common)])
        answer(client, "qry_1", "One car, then two.")
        last = list(reader)[-1]
    # then
    assert first.data == {
        "status": "queued",
        "position": 0,
        "windows": 3,
        "done": 2,
        "unknown": 1,
    }
    assert last.data["progress"] == {"windows": 3, "done": 2, "unknown": 0}
