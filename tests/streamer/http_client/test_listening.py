"""Events through both HTTP clients, connections that break included."""

import threading
from collections.abc import Iterator

import pytest

from streamer.domain.result import Result
from streamer.errors import ErrorCode, StreamerError
from streamer.events import Events, EventType
from streamer.http_client import Client
from streamer.http_client.listening import EventMessage
from streamer.settings import Settings
from tests.support.api_server import ApiServer
from tests.support.relay import Relay


def publish(events: Events, number: int, stream: str = "door") -> None:
    result = Result(
        request_id=f"req_{number}",
        kind="caption",
        stream_id=f"str_{stream}",
        stream_name=stream,
        prompt="?",
        text=f"Caption {number}.",
    )
    events.publish(
        EventType.RESULT_CREATED,
        result.model_dump(mode="json"),
        stream_id=result.stream_id,
        stream_name=stream,
    )


def take(events: Iterator[EventMessage], count: int) -> list[str]:
    """Wait for `count` events; return the requests whose results they tell."""
    found = [next(events) for _ in range(count)]
    assert all(event.result is not None for event in found)
    return [event.data["request_id"] for event in found]


@pytest.fixture
def events(api_server: ApiServer) -> Events:
    return Events(api_server.client.connections.main)


def test_events_are_typed_and_filtered(open_client, api_server: ApiServer, events: Events) -> None:
    start = events.position()
    for number, stream in enumerate(["door", "yard", "door"]):
        publish(events, number, stream)
    events.publish(EventType.WORKER_STATE_CHANGED, {"n": 1})
    client: Client = open_client(api_server.url)

    everything = client.events(after=start)

    first = next(everything)
    assert (first.type, first.stream_name) == ("result.created", "door")
    assert first.result is not None
    assert first.result.text == "Caption 0."
    assert take(client.events(after=first.id), 2) == ["req_1", "req_2"]
    assert take(client.events(after=start, streams=["door"]), 2) == ["req_0", "req_2"]
    (worker,) = (next(client.events(after=start, types=["worker.*"])),)
    assert (worker.type, worker.result, worker.data) == ("worker.state_changed", None, {"n": 1})


def test_a_lost_connection_goes_on_where_it_broke(
    open_client, api_server: ApiServer, events: Events
) -> None:
    with Relay(api_server.port) as relay:
        client: Client = open_client(f"http://127.0.0.1:{relay.port}")
        heard = client.events(after=events.position(), streams=["door"])
        publish(events, 0)
        assert take(heard, 1) == ["req_0"]

        relay.hang_up()
        for number in range(1, 4):
            publish(events, number)

        assert take(heard, 3) == ["req_1", "req_2", "req_3"]
        assert relay.accepted == 2


def test_a_server_that_is_away_for_a_while_is_waited_for(open_client, settings: Settings) -> None:
    with ApiServer(settings) as server:
        events, port = Events(server.client.connections.main), server.port
        client: Client = open_client(server.url)
        heard = client.events(after=events.position())
        publish(events, 0)
        assert take(heard, 1) == ["req_0"]
    again = ApiServer(settings, port)

    def start() -> None:
        again.__enter__()
        publish(Events(again.client.connections.main), 1)

    starter = threading.Timer(0.5, start)  # the first tries find nobody
    starter.start()
    try:
        assert take(heard, 1) == ["req_1"]
    finally:
        starter.join()
        again.__exit__()


def test_a_gap_is_told(open_client, api_server: ApiServer, events: Events, redis_client) -> None:
    client: Client = open_client(api_server.url)
    publish(events, 0)
    start = events.position()
    publish(events, 1)
    publish(events, 2)
    redis_client.xtrim("streamer:events", maxlen=1, approximate=False)

    gap = next(client.events(after=start))

    assert (gap.type, gap.result) == ("resync", None)


def test_what_cannot_be_listened_to(open_client, api_server: ApiServer) -> None:
    client: Client = open_client(api_server.url)
    with pytest.raises(StreamerError) as unknown:
        next(client.events(types=["door.opened"]))
    with pytest.raises(StreamerError) as away:
        next(open_client("http://127.0.0.1:1", timeout=5).events())

    assert unknown.value.code is ErrorCode.INVALID_REQUEST
    assert "result.created" in unknown.value.message
    assert away.value.code is ErrorCode.API_UNAVAILABLE
