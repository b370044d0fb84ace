"""The WebSocket, with a real client of a real server."""

import contextlib
import itertools
import json
import struct
import time

import cv2
import numpy as np
import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect
from websockets.typing import Origin

from nvila_core.resolution.policy import Measures
from streamer import redis_keys
from streamer.api.live import event_hub, pictures, socket
from streamer.domain.stream import StreamSpec
from streamer.events import Events, EventType
from streamer.queues.deltas import Delta, Deltas
from tests.streamer.api.live.test_query_progress import answer, submit
from tests.support.api_server import ApiServer


@pytest.fixture
def client(api_server):
    return api_server.client


@pytest.fixture
def events(redis_client):
    return Events(redis_client)


@pytest.fixture
def page(api_server):
    """A socket that a page has opened."""
    with connect(api_server.url.replace("http", "ws") + "/v1/ws", max_size=None) as opened:
        yield Page(opened)


class Page:
    """The other end of a socket."""

    def __init__(self, connection):
        self.connection = connection

    def say(self, type, **fields):
        self.connection.send(json.dumps({"type": type, **fields}))

    def hear(self):
        """Return the next message: an object, or the header and the bytes of a picture."""
        message = self.connection.recv(timeout=120)
        if isinstance(message, str):
            return json.loads(message)
        (length,) = struct.unpack(">I", message[:4])
        return json.loads(message[4 : 4 + length]), message[4 + length :]

    def hear_end(self):
        """Return the code with which the service closes the socket."""
        with contextlib.suppress(ConnectionClosed):
            while True:
                self.connection.recv(timeout=120)
        return self.connection.close_code


def publish(events, n, stream="yard", type=EventType.RESULT_CREATED):
    return events.publish(type, {"n": n}, stream_id=f"str_{stream}", stream_name=stream)


def attach(client, name):
    spec = StreamSpec(name=name, url="rtsp://cam/", live=True)
    client.registry.create(spec, spec.url)
    return spec.id


def put(client, stream_id, shade, width=320, height=240):
    jpeg = cv2.imencode(".jpg", np.full((height, width, 3), shade, np.uint8))[1].tobytes()
    measures = Measures(width, height, change=0.0)
    return client.frames.put(stream_id, jpeg, measures, time=time.time(), pts=0.0)


def shade(jpeg):
    """Return width, height and the grey of a picture."""
    image = cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_GRAYSCALE)
    assert image is not None
    return image.shape[1], image.shape[0], round(float(image.mean()))


def test_a_page_hears_the_events_that_it_wants(page, events):
    page.say("subscribe", events=["result.created", "incident.*"], streams=["yard"])
    hello = page.hear()
    publish(events, 1, "gate")
    publish(events, 2)
    publish(events, 3, type=EventType.QUERY_FINISHED)
    last = publish(events, 4, type=EventType.INCIDENT_OPENED)

    heard = [page.hear() for _ in range(2)]

    assert (hello["type"], hello["oldest"]) == ("hello", events.oldest())
    assert hello["now"]
    assert [(m["type"], m["event"]["data"]["n"]) for m in heard] == [("event", 2), ("event", 4)]
    assert heard[-1]["event"]["id"] == last


def test_a_page_goes_on_where_it_was_or_learns_of_the_gap(page, events, redis_client):
    first = publish(events, 1)
    publish(events, 2)
    page.say("subscribe", after=first)
    assert [page.hear()["type"], page.hear()["event"]["data"]["n"]] == ["hello", 2]

    newest = publish(events, 3)
    assert page.hear()["event"]["id"] == newest
    redis_client.xtrim(redis_keys.EVENTS, minid=newest, approximate=False)
    page.say("subscribe", after=first)

    assert page.hear()["type"] == "hello"
    gap = page.hear()
    assert (gap["type"], gap["position"]) == ("resync", newest)


def test_a_new_subscription_replaces_the_one_before(page, events):
    page.say("subscribe", events=["result.created"])
    page.hear()
    page.say("subscribe", events=["query.finished"])
    page.hear()

    publish(events, 1)
    publish(events, 2, type=EventType.QUERY_FINISHED)

    assert page.hear()["event"]["type"] == "query.finished"


def test_pictures_come_scaled_and_one_at_a_time(page, client):
    yard = attach(client, "yard")
    first = put(client, yard, 10)
    page.say("subscribe", events=[], frames={"streams": ["yard"], "fps": 10, "width": 160})

    header, jpeg = page.hear()
    # while the first is not acknowledged, two more come
    put(client, yard, 100)
    newest = put(client, yard, 200)
    page.say("ack", stream_id=yard, frame="another")
    page.say("nonsense")
    assert page.hear()["type"] == "error"
    page.say("ack", stream_id=yard, frame=header["frame"])
    latest, latest_jpeg = page.hear()

    assert header == {
        "type": "frame",
        "stream": "yard",
        "stream_id": yard,
        "frame": first.id,
        "time": header["time"],
        "width": 160,
        "height": 120,
        "content_type": "image/jpeg",
    }
    assert shade(jpeg)[:2] == (160, 120)
    assert abs(shade(jpeg)[2] - 10) < 4
    # the newest, or the one before it if it was sent as the newest came
    if latest["frame"] != newest.id:
        page.say("ack", stream_id=yard, frame=latest["frame"])
        latest, latest_jpeg = page.hear()
    assert latest["frame"] == newest.id
    assert abs(shade(latest_jpeg)[2] - 200) < 4


def test_a_picture_is_never_enlarged(page, client):
    yard = attach(client, "yard")
    put(client, yard, 10, width=64, height=48)

    page.say("subscribe", events=[], frames={"streams": [yard], "width": 640})
    header, jpeg = page.hear()

    assert (header["stream"], header["width"], header["height"]) == (yard, 64, 48)
    assert jpeg == client.frames.load(client.frames.newest(yard))[0]


def test_a_picture_is_made_once_for_all_viewers_of_a_size(api_server, client, monkeypatch):
    made = []
    scaled = pictures._scaled

    def scale(*args):
        made.append(args[2])
        return scaled(*args)

    monkeypatch.setattr(pictures, "_scaled", scale)
    yard = attach(client, "yard")
    frames = {"streams": ["yard"], "fps": 10, "width": 160}
    url = api_server.url.replace("http", "ws") + "/v1/ws"
    with connect(url) as first, connect(url) as second, connect(url) as third:
        pages = [Page(first), Page(second), Page(third)]
        for each, width in zip(pages, (160, 160, 80), strict=True):
            each.say("subscribe", events=[], frames=frames | {"width": width})
            each.say("ack", stream_id="none", frame="none")
        put(client, yard, 10)

        seen = [shade(each.hear()[1])[0] for each in pages]

    assert seen == [160, 160, 80]
    assert sorted(made) == [80, 160]


def test_a_viewer_waits_for_no_other_viewers_next_picture(api_server, client, monkeypatch):
    # given somebody who wants a picture now and then
    monkeypatch.setattr(pictures, "MAX_PAUSE", 1000)
    put(client, attach(client, "yard"), 10)
    frames = {"streams": ["yard"], "fps": 0.001, "width": 160}
    url = api_server.url.replace("http", "ws") + "/v1/ws"
    with connect(url) as first, connect(url) as second:
        Page(first).say("subscribe", events=[], frames=frames)
        Page(first).hear()

        # when another comes, then its picture comes at once
        Page(second).say("subscribe", events=[], frames=frames | {"width": 80})
        header, _ = Page(second).hear()

    assert header["width"] == 80


def test_a_failure_of_one_turn_ends_no_pictures(page, client, monkeypatch):
    # given a program that fails once where no failure is known
    put(client, attach(client, "yard"), 10)
    scaled, failures = pictures._scaled, [RuntimeError("half imported")]

    def fails_once(*arguments):
        if failures:
            raise failures.pop()
        return scaled(*arguments)

    monkeypatch.setattr(pictures, "_scaled", fails_once)

    page.say("subscribe", events=[], frames={"streams": ["yard"], "fps": 10})

    header, _ = page.hear()
    assert header["stream_id"]
    assert not failures


def test_a_page_that_acknowledges_nothing_is_closed(page, client, monkeypatch):
    monkeypatch.setattr(socket, "SOCKET_PATIENCE", 0.2)
    put(client, attach(client, "yard"), 10)

    page.say("subscribe", events=[], frames={"streams": ["yard"], "fps": 10})

    assert page.hear_end() == 4408


def test_a_page_that_reads_nothing_is_closed(page, events, monkeypatch):
    monkeypatch.setattr(event_hub, "MAX_QUEUED_EVENTS", 10)
    page.say("subscribe")
    page.hear()

    for _ in itertools.repeat(None, 500):
        events.publish(EventType.RESULT_CREATED, {"text": "x" * 60_000})

    assert page.hear_end() == 4408


def test_an_answer_is_read_while_it_is_written(page, client):
    submit(client, "qry_1")
    page.say("subscribe", events=[], queries=["qry_1", "qry_none"])
    heard = [page.hear(), page.hear()]
    Deltas(client.connections.main).add("qry_1", Delta(at=0, text="two cars"))
    delta = page.hear()
    answer(client, "qry_1", "two cars")
    result = page.hear()
    if result["type"] == "query.progress":
        result = page.hear()

    by_query = {each["query_id"]: each for each in heard}
    assert by_query["qry_1"]["type"] == "query.progress"
    assert by_query["qry_none"]["type"] == "query.error"
    assert by_query["qry_none"]["data"]["code"] == "UNKNOWN_QUERY"
    assert delta == {
        "type": "query.delta",
        "query_id": "qry_1",
        "data": {"at": 0, "text": "two cars"},
    }
    assert (result["type"], result["data"]["result"]["text"]) == ("query.result", "two cars")


@pytest.mark.parametrize(
    "message",
    [
        "no json",
        "{}",
        json.dumps({"type": "subscribe", "after": "yesterday"}),
        json.dumps({"type": "subscribe", "events": ["result.creatd"]}),
        json.dumps({"type": "subscribe", "event": []}),
        json.dumps({"type": "subscribe", "frames": {"streams": [], "fps": 100}}),
        json.dumps({"type": "subscribe", "frames": {"streams": ["no-such-stream"]}}),
        b"binary",
    ],
)
def test_a_wrong_message_is_answered_and_the_socket_goes_on(page, events, message):
    page.connection.send(message)

    refused = page.hear()

    assert refused["type"] == "error"
    assert refused["error"]["code"] in ("INVALID_REQUEST", "UNKNOWN_STREAM")
    page.say("subscribe")
    assert page.hear()["type"] == "hello"


KEY = "a-key-of-some-length"


def test_a_page_needs_a_key(settings):
    with ApiServer(settings.model_copy(update={"api_keys": [KEY]})) as server:
        url = server.url.replace("http", "ws") + "/v1/ws"
        with connect(url) as refused:
            assert Page(refused).hear_end() == 4401
        with connect(url, additional_headers={"Authorization": f"Bearer {KEY}"}) as opened:
            Page(opened).say("subscribe")
            assert Page(opened).hear()["type"] == "hello"


def test_a_page_of_another_server_is_refused(api_server):
    with (
        pytest.raises(InvalidStatus) as refused,
        connect(
            api_server.url.replace("http", "ws") + "/v1/ws", origin=Origin("https://evil.example")
        ),
    ):
        pass
    assert refused.value.response.status_code == 403
