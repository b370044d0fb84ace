"""Events over HTTP, with real clients of a real server."""

import asyncio
import json
import re
import socket
import threading
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from streamer import redis_keys
from streamer.api.live import event_hub
from streamer.api.middleware import send_limit
from streamer.domain.result import Result
from streamer.events import Events, EventType
from tests.support.api_server import ApiServer, listen


@pytest.fixture
def events(redis_client):
    return Events(redis_client)


@pytest.fixture
def url(api_server: ApiServer) -> str:
    return f"{api_server.url}/v1/events"


MANY = 400
"""Large events: more bytes than the buffers of a connection hold."""


def publish(events, n, stream="yard", type=EventType.RESULT_CREATED):
    return events.publish(type, {"n": n}, stream_id=f"str_{stream}", stream_name=stream)


def numbers(sent):
    return [each.data["data"]["n"] for each in sent]


def test_a_listener_gets_events_from_now_on(url, events):
    publish(events, 0)

    with listen(url) as reader:
        hello = reader.next()
        published = publish(events, 1)
        event = reader.next()

    assert hello.name == "hello"
    assert set(hello.data) == {"now", "oldest"}
    assert hello.data["oldest"] == events.oldest()
    assert (event.name, event.id) == ("result.created", published)
    assert event.data == {
        "id": published,
        "type": "result.created",
        "time": event.data["time"],
        "stream_id": "str_yard",
        "stream_name": "yard",
        "data": {"n": 1},
    }


@pytest.mark.parametrize("how", ["header", "parameter"])
def test_a_listener_goes_on_where_it_was(url, events, how):
    with listen(url) as reader:
        reader.next()
        publish(events, 1)
        last = reader.next().id
    for n in (2, 3):
        publish(events, n)

    given = {"headers": {"Last-Event-ID": last}} if how == "header" else {"params": {"after": last}}
    with listen(url, **given) as reader:
        hello, *missed = reader.take(3)
        publish(events, 4)
        missed += reader.take(1)

    assert hello.id == last
    assert numbers(missed) == [2, 3, 4]


def test_hello_is_a_place_to_go_on_from(url, events):
    with listen(url) as reader:
        position = reader.next().id
    publish(events, 1)

    with listen(url, headers={"Last-Event-ID": position}) as reader:
        assert numbers(reader.take(2)[1:]) == [1]


def test_the_header_of_a_browser_counts_more_than_the_address_it_opened(url, events):
    first, second = publish(events, 1), publish(events, 2)
    publish(events, 3)

    with listen(url, params={"after": first}, headers={"Last-Event-ID": second}) as reader:
        assert numbers(reader.take(2)[1:]) == [3]


def test_a_listener_learns_that_events_were_trimmed_meanwhile(url, events, redis_client):
    old = publish(events, 1)
    for n in range(2, 6):
        newest = publish(events, n)
    redis_client.xtrim(redis_keys.EVENTS, minid=newest, approximate=False)

    with listen(url, headers={"Last-Event-ID": old}) as reader:
        hello, gap = reader.take(2)
        publish(events, 6)
        after = reader.take(1)

    assert (hello.name, gap.name) == ("hello", "resync")
    assert gap.data["reason"]
    assert gap.id == newest
    assert numbers(after) == [6]


def test_an_unknown_position_of_a_browser_is_a_gap(url, events):
    publish(events, 1)

    with listen(url, headers={"Last-Event-ID": "of-another-server"}) as reader:
        assert [sent.name for sent in reader.take(2)] == ["hello", "resync"]


def test_events_that_a_full_server_gave_up_are_a_gap(url, events, redis_client):
    with listen(url) as reader:
        reader.next()
        redis_client.xadd(redis_keys.EVENTS, {"type": "lost"})
        publish(events, 1)

        assert [sent.name for sent in reader.take(2)] == ["resync", "result.created"]


def test_a_server_that_lost_its_data_is_a_gap(api_server, url, events, redis_client):
    with listen(url) as reader:
        reader.next()
        publish(events, 1)
        reader.next()
        # when all connections break and the events are gone
        redis_client.delete(redis_keys.EVENTS)
        redis_client.client_kill_filter(_type="normal", skipme=True)
        seen = []
        while "result.created" not in seen:
            publish(events, 2)
            seen.append(reader.next().name)

    # then the listener may get a note of a gap, but never misses what comes after
    assert seen[-1] == "result.created"


def test_a_listener_chooses_streams_and_types(url, events):
    wishes = {"streams": "gate,str_yard", "types": "result.created,incident.*"}
    with listen(url, params=wishes) as reader:
        reader.next()
        publish(events, 1, "hall")
        publish(events, 2, "yard")
        publish(events, 3, "gate", EventType.INCIDENT_OPENED)
        publish(events, 4, "gate", EventType.QUERY_FINISHED)
        events.publish(EventType.RESULT_CREATED, {"n": 5})
        publish(events, 6, "gate")

        assert numbers(reader.take(3)) == [2, 3, 6]


def test_a_choice_counts_for_what_was_missed_too(url, events):
    start = events.position()
    for n, stream in enumerate(["yard", "gate", "yard"]):
        publish(events, n, stream)

    with listen(url, params={"after": start, "streams": "yard"}) as reader:
        assert numbers(reader.take(3)[1:]) == [0, 2]


@pytest.mark.parametrize(
    "parameters",
    [
        {"types": "result.creatd"},
        {"after": "yesterday"},
        {"stream": "yard"},
        {"streams": ",".join(["a"] * 101)},
    ],
)
def test_a_wrong_wish_is_refused(url, parameters):
    response = httpx.get(url, params=parameters, timeout=120)

    assert response.status_code == 422
    assert response.json()["error"]["code"] == "INVALID_REQUEST"


def test_a_silent_stream_is_kept_open_by_comments(url, monkeypatch):
    monkeypatch.setattr("fastapi.routing._PING_INTERVAL", 0.05)

    with listen(url) as reader:
        reader.next()

        assert reader.next().comment


def test_no_more_listeners_than_the_limit(url, monkeypatch):
    monkeypatch.setattr(event_hub, "MAX_LISTENERS", 1)

    with listen(url) as reader:
        reader.next()
        refused = httpx.get(url, timeout=120)

    assert refused.status_code == 429
    assert refused.json()["error"]["code"] == "TOO_MANY_LISTENERS"


def test_a_slow_listener_is_told_and_closed(url, events, monkeypatch):
    monkeypatch.setattr(event_hub, "MAX_QUEUED_EVENTS", 20)
    large = {"text": "x" * 60_000}

    with listen(url) as slow, listen(url) as quick:
        slow.next()
        quick.next()
        # when one listener reads nothing while more comes than its connection holds
        for _ in range(MANY):
            events.publish(EventType.RESULT_CREATED, large)
            quick.next()

        # then it gets what had been sent, a notice of the gap, and the end
        names = [sent.name for sent in slow]
    assert names[-1] == "resync"
    assert len(names) < MANY


def test_a_listener_that_never_reads_is_closed_and_goes_on_later(
    api_server, url, events, monkeypatch, eventually
):
    monkeypatch.setattr(send_limit, "SEND_PATIENCE", 0.3)
    hub = api_server.app.state.events
    large = {"text": "x" * 60_000}
    # given a listener that reads nothing after its request
    with socket.create_connection(("127.0.0.1", api_server.port)) as deaf:
        deaf.sendall(b"GET /v1/events HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
        eventually(lambda: hub.listeners == 1)
        first = events.position()
        # when more comes than its connection holds
        for _ in range(MANY):
            events.publish(EventType.RESULT_CREATED, large)
        # then its place is free again, though it is not too far behind to be kept
        eventually(lambda: hub.listeners == 0)
        # and what it reads later ends
        received = bytearray()
        while part := deaf.recv(1 << 16):
            received += part
    ids = re.findall(rb"^id: (\S+)", received, re.MULTILINE)
    assert ids[0].decode() == first
    assert 1 < len(ids) < MANY
    # and it goes on after the last one that it read, without a gap
    with listen(url, headers={"Last-Event-ID": ids[-1].decode()}) as reader:
        names = [sent.name for sent in reader.take(MANY + 2 - len(ids))]
    assert names == ["hello", *["result.created"] * (MANY + 1 - len(ids))]


def test_many_listeners_share_one_reader_of_redis(url, events, redis_client):
    everyone, ready = 200, threading.Barrier(201)

    def follow(_):
        with listen(url) as reader:
            reader.next()
            ready.wait(120)
            return numbers(reader.take(3))

    with ThreadPoolExecutor(everyone) as pool:
        listeners = [pool.submit(follow, n) for n in range(everyone)]
        ready.wait(120)
        clients = redis_client.client_list()
        for n in range(3):
            publish(events, n)
        heard = [listener.result() for listener in listeners]

    assert heard == [[0, 1, 2]] * everyone
    assert sum(client["cmd"] == "xread" and "b" in client["flags"] for client in clients) <= 1
    assert len(clients) < 100  # a connection for each thread that looked up a position, no more


def test_a_waiting_request_gets_its_answer_as_it_comes(api_server, monkeypatch):
    # given a query whose answer nobody looks for meanwhile
    monkeypatch.setattr("streamer.api.routes.queries._LOOK_INTERVAL", 1000.0)
    query_id = "qry_1"
    looked = threading.Event()
    ask = api_server.client.query

    def query(*args):
        looked.set()
        return ask(*args)

    submit_bare(api_server.client, query_id)
    monkeypatch.setattr(api_server.client, "query", query)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(
            httpx.get, f"{api_server.url}/v1/queries/{query_id}?wait=60", timeout=120
        )
        assert looked.wait(60)

        # when it is answered
        api_server.client.queue.publish(
            Result(
                request_id=query_id,
                kind="answer",
                stream_id="str_yard",
                stream_name="yard",
                prompt="?",
                text="a car",
            ),
            owner_id=None,
        )

        assert waiting.result().json()["result"]["text"] == "a car"


def test_many_clients_that_wait_for_a_query_share_one_reader_of_redis(
    api_server, redis_client, eventually
):
    # given 200 clients that wait for one answer
    everyone, query_id = 200, "qry_1"
    submit_bare(api_server.client, query_id)
    clients: list[dict[str, str]] = []

    async def wait() -> bytes:
        reader, writer = await asyncio.open_connection("127.0.0.1", api_server.port)
        path = f"/v1/queries/{query_id}?wait=60"
        writer.write(
            f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n".encode()
        )
        received = await reader.read()
        writer.close()
        return received.partition(b"\r\n\r\n")[2]

    def publish() -> None:
        awaited = api_server.app.state.events._awaited
        eventually(lambda: len(awaited.get(query_id, ())) == everyone)
        clients.extend(redis_client.client_list())
        answer = Result(
            request_id=query_id,
            kind="answer",
            stream_id="str_yard",
            stream_name="yard",
            prompt="?",
            text="a car",
        )
        api_server.client.queue.publish(answer, owner_id=None)

    async def ask() -> list[bytes]:
        answers = asyncio.gather(*(wait() for _ in range(everyone)))
        await asyncio.to_thread(publish)
        return await answers

    # when it comes
    bodies = asyncio.run(ask())
    # then all have it, by one blocking read of the process, and without a subscription each
    assert {json.loads(body)["result"]["text"] for body in bodies} == {"a car"}
    assert sum(client["cmd"] == "xread" and "b" in client["flags"] for client in clients) <= 1
    assert sum(int(client["sub"]) + int(client["psub"]) for client in clients) <= 1
    assert len(clients) < 100  # a connection for each thread that looked once, no more


def submit_bare(client, query_id):
    """Submit a question about no frame, as far as the record of its query goes."""
    from streamer.domain.kinds import RequestKind
    from streamer.domain.query import Query
    from streamer.domain.request import ClipRequest
    from streamer.domain.timestamp import utc_now

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
    record = Query.of(request).model_dump_json()
    client.jobs.submit(request, record=lambda pipe: pipe.set(redis_keys.query(query_id), record))
