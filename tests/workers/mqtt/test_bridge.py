"""The MQTT bridge between a real Redis and a real broker."""

import asyncio
import json
import threading
import time
from datetime import timedelta

import pytest
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from structlog.testing import capture_logs

from nvila_core.resolution.policy import Measures
from streamer import redis_keys
from streamer.alert_rule import AlertRule
from streamer.domain import (
    ErrorInfo,
    Result,
    StreamSpec,
    StreamState,
    StreamStatus,
    Watch,
    utc_now,
)
from streamer.errors import ErrorCode
from streamer.incidents.delivery import Deliveries
from streamer.incidents.store import Incidents
from streamer.mqtt_address import MqttAddress
from streamer.response_format import ChoiceFormat, JsonFormat
from streamer.service import Service
from streamer.timeline.results import Timeline
from tests.support.clips import jpeg_of, picture
from tests.support.mosquitto import Broker, Listener
from tests.support.tls_front import Authority
from workers.incidents import _publisher
from workers.mqtt.bridge import Bridge
from workers.recorder import Recorder

PASSWORD = "hunter2 s@cret"
ALERT = Watch(
    id="wch_car",
    prompt="Is a car parked in front of the gate?",
    window=5,
    alert=AlertRule.model_validate({"raise": {"k": 1, "n": 1}, "clear": {"m": 1}}),
)
CAPTION = Watch(id="wch_text", prompt="Describe the scene.")
GATE = Watch(
    id="wch_door",
    prompt="Is the gate open?",
    response_format=ChoiceFormat(choices=["open", "shut"]),
)
COUNT = Watch(
    id="wch_many",
    prompt="Count.",
    response_format=JsonFormat(
        json_schema={
            "type": "object",
            "properties": {
                "people": {"type": "integer", "title": "People"},
                "colour": {"enum": ["red", "blue"]},
                "note": {"type": "string"},
            },
        }
    ),
)


class Yard:
    """A service with one stream, and what its workers would do."""

    def __init__(self, service):
        self.service = service
        self.timeline = Timeline(service.settings.timeline_url)
        incidents = Incidents(self.timeline.database)
        self.recorder = Recorder(
            service.connections.main,
            self.timeline,
            stopping=threading.Event(),
            incidents=incidents,
        )
        self.recorder.join()
        publisher = _publisher(service.connections.main)
        self.deliveries = Deliveries(self.timeline.database, incidents, publisher, {}, None)
        self.stream_id = ""
        self.made, self.began = 0, utc_now() - timedelta(seconds=30)

    def attach(self, name="gate", watches=(ALERT, CAPTION, GATE, COUNT), live=True):
        spec = StreamSpec(name=name, url="rtsp://camera/1", live=live, watches=list(watches))
        self.stream_id = self.service.registry.create(spec, "rtsp://camera/1").id
        self.become(StreamState.RUNNING)
        return self.stream_id

    def become(self, state, code=None):
        error = ErrorInfo(code=code, message="It is lost.") if code else None
        status = StreamStatus(state=state, error=error, reported_at=utc_now())
        self.service.registry.save_status(self.stream_id, status)

    def store_frame(self):
        return self.service.frames.put(
            self.stream_id,
            jpeg_of(picture()),
            Measures(320, 240, change=0.0),
            time=time.time(),
            pts=0.0,
            decode_ms=1.0,
        )

    def answer(self, watch, kind="caption", record=True, **fields):
        self.made += 1
        now = self.began + timedelta(seconds=5 * self.made)  # windows follow one another
        given = {
            "request_id": f"req_{self.made}",
            "kind": kind,
            "stream_id": self.stream_id,
            "stream_name": "gate",
            "watch_id": watch.id,
            "start": now - timedelta(seconds=watch.window),
            "end": now,
            "prompt": watch.prompt,
            "alert": watch.alert,
        }
        self.service.queue.publish(Result(**given | fields), owner_id=watch.id)
        if record:
            self.recorder.step()
            self.deliveries.tell_events()

    def car(self, probability):
        data = {"yes": probability > 0.5, "probability": probability}
        self.answer(ALERT, "alert", data=data, text="yes" if probability > 0.5 else "no")

    def close(self):
        self.timeline.close()


@pytest.fixture
def yard(settings):
    with Service(settings) as service:
        made = Yard(service)
        yield made
        made.close()


@pytest.fixture
def start(broker, settings):
    """Run bridges; all end with the test."""
    stopping, threads = [], []

    def run(url=broker.url, prefix="nvila"):
        settings_of_it = settings.model_copy(update={"mqtt_url": url, "mqtt_prefix": prefix})
        stop = threading.Event()

        def serve():
            with Service(settings_of_it) as service:
                asyncio.run(Bridge(service, MqttAddress.of(url), stop).run())

        thread = threading.Thread(target=serve)
        thread.start()
        stopping.append(stop)
        threads.append(thread)

        def end():
            stop.set()
            thread.join(60)
            assert not thread.is_alive()

        return end

    yield run
    for stop in stopping:
        stop.set()
    for thread in threads:
        thread.join(60)


def configs(listener):
    found = {}
    for topic, payload in listener.kept.items():
        if topic.startswith("homeassistant/") and topic.endswith("/config"):
            _, component, _, entity, _ = topic.split("/")
            found[component, entity] = json.loads(payload)
    return found


def state(listener, *rest):
    kept = listener.json("/".join(("nvila", *rest)))
    return kept["state"] if kept is not None else "missing"


def said(logs, event):
    return [each for each in logs if each["event"] == event]


def test_a_stream_is_a_device_with_an_entity_for_each_thing(yard, start, listener, eventually):
    # given
    stream_id = yard.attach()
    yard.attach("film", live=False)
    yard.stream_id = stream_id
    yard.store_frame()
    # when
    start()
    eventually(lambda: "nvila/gate/answers/wch_many/1" in listener.kept)  # the last one
    # then
    found = configs(listener)
    assert set(found) == {
        ("sensor", "caption"),
        ("camera", "camera"),
        ("image", "image"),
        ("switch", "watching"),
        ("event", "event"),
        ("binary_sensor", "wch_car"),
        ("sensor", "wch_door"),
        ("sensor", "wch_many-0"),
        ("sensor", "wch_many-1"),
    }
    ids = {config["unique_id"] for config in found.values()}
    assert len(ids) == len(found)
    assert {config["device"]["name"] for config in found.values()} == {"gate"}
    assert found["sensor", "wch_door"]["options"] == ["open", "shut"]
    assert found["sensor", "wch_many-0"]["name"] == "People"
    for config in found.values():
        for key, topic in config.items():
            if key.endswith("state_topic") or key == "json_attributes_topic":
                assert topic == "nvila/gate/events" or topic in listener.kept
        assert config["availability"][0]["topic"] == "nvila/status"
    assert listener.kept["nvila/status"] == b"online"
    assert listener.kept["nvila/gate/camera"].startswith(b"\xff\xd8")
    assert not any("film" in topic for topic in listener.kept)


def test_states_follow_the_answers(yard, start, listener, eventually):
    # given
    yard.attach()
    start()
    eventually(lambda: state(listener, "gate", "caption") is None)
    assert state(listener, "gate", "alerts", "wch_car") is None
    # when
    frame = yard.store_frame()
    long = "A car waits. " * 40
    when = utc_now().fromtimestamp(frame.time, utc_now().tzinfo)
    yard.answer(CAPTION, text=long, frames_to=when, frame_times=[when])
    yard.answer(GATE, text="open", data={"choice": "open"})
    answer = {"people": 3, "colour": "red", "note": "none"}
    yard.answer(COUNT, text=json.dumps(answer), data={"json": answer})
    yard.car(0.1)
    # then
    eventually(lambda: state(listener, "gate", "alerts", "wch_car") == "OFF")
    caption = listener.json("nvila/gate/caption")
    assert len(caption["state"]) == 255
    assert long.startswith(caption["state"][:-1])
    assert caption["attributes"]["text"] == long
    assert state(listener, "gate", "answers", "wch_door") == "open"
    assert state(listener, "gate", "answers", "wch_many", "0") == 3
    assert state(listener, "gate", "answers", "wch_many", "1") == "red"
    eventually(lambda: "nvila/gate/image" in listener.kept)
    # when the model fails
    error = ErrorInfo(code=ErrorCode.INTERNAL, message="It failed.")
    yard.answer(GATE, "error", error=error)
    yard.answer(ALERT, "error", error=error)
    # then
    eventually(lambda: state(listener, "gate", "alerts", "wch_car") is None)
    eventually(lambda: state(listener, "gate", "answers", "wch_door") is None)


def test_an_alert_is_on_while_its_incident_is_open(yard, start, listener, eventually):
    # given
    yard.attach()
    start()
    alert = ("gate", "alerts", "wch_car")
    eventually(lambda: state(listener, *alert) is None)
    # when
    yard.car(0.9)
    # then
    eventually(lambda: state(listener, *alert) == "ON")
    shown = listener.json("nvila/gate/alerts/wch_car")["attributes"]
    assert shown["incident_id"].startswith("inc_")
    assert shown["severity"] == "warning"
    assert shown["probability"] == 0.9
    # when nothing is seen
    yard.become(StreamState.RECONNECTING, ErrorCode.STREAM_CONNECTION_FAILED)
    eventually(lambda: listener.kept["nvila/gate/availability"] == b"offline")
    assert state(listener, *alert) == "ON"
    yard.become(StreamState.RUNNING)
    # when it is over
    yard.car(0.1)
    eventually(lambda: state(listener, *alert) == "OFF")
    # when nothing is seen: unknown, never off
    yard.become(StreamState.RECONNECTING, ErrorCode.STREAM_CONNECTION_FAILED)
    eventually(lambda: state(listener, *alert) is None)
    # then
    types = [event["event_type"] for event in listener.all("nvila/gate/events")]
    incidents = [each for each in types if each.startswith("incident.")]
    assert incidents == ["incident.opened", "incident.resolved"]
    assert types.count("stream.state_changed") >= 3
    assert not any(kept for topic, _, kept in listener.heard if topic == "nvila/gate/events")


def test_a_bridge_that_starts_knows_what_was_before(yard, start, listener, eventually):
    yard.attach()
    yard.car(0.9)
    yard.answer(CAPTION, text="A car.")
    end = start()
    eventually(lambda: state(listener, "gate", "alerts", "wch_car") == "ON")
    eventually(lambda: state(listener, "gate", "caption") == "A car.")
    # when it ends
    end()
    # then
    eventually(lambda: listener.kept["nvila/status"] == b"offline")
    assert listener.all("nvila/gate/events") == []
    assert not yard.service.connections.main.exists(redis_keys.MQTT_BRIDGE)


def test_the_switch_pauses_and_resumes(yard, start, listener, eventually):
    yard.attach()
    start()
    eventually(lambda: listener.kept.get("nvila/gate/watching") == b"ON")
    # when
    listener.say("nvila/gate/watching/set", "OFF")
    # then
    eventually(lambda: listener.kept["nvila/gate/watching"] == b"OFF")
    assert yard.service.stream("gate").paused
    # when
    listener.say("nvila/gate/watching/set", "ON")
    eventually(lambda: listener.kept["nvila/gate/watching"] == b"ON")


def test_detached_streams_leave_nothing_behind(yard, start, listener, eventually):
    # given
    stream_id = yard.attach()
    yard.store_frame()
    end = start()
    eventually(lambda: "nvila/gate/camera" in listener.kept)
    # when one is detached while the bridge runs
    yard.service.registry.delete(stream_id)
    eventually(lambda: not any("gate" in topic for topic in listener.kept))
    assert configs(listener) == {}
    # and another while it does not
    other = yard.attach("yard")
    yard.store_frame()
    eventually(lambda: "nvila/yard/camera" in listener.kept)
    end()
    yard.service.registry.delete(other)
    listener.say("homeassistant/sensor/nvila2_str_1/x/config", "{}", retain=True)
    start()
    # then
    eventually(lambda: listener.kept["nvila/status"] == b"online")
    eventually(lambda: not any("yard" in topic for topic in listener.kept))
    assert set(configs(listener)) == {("sensor", "x")}  # of another installation


def test_a_renamed_stream_moves(yard, start, listener, eventually):
    yard.attach()
    start()
    eventually(lambda: "nvila/gate/caption" in listener.kept)
    yard.service.registry.update("gate", name="drive", watches=[CAPTION])
    eventually(lambda: "nvila/drive/caption" in listener.kept)
    eventually(lambda: not any(topic.startswith("nvila/gate/") for topic in listener.kept))
    assert ("binary_sensor", "wch_car") not in configs(listener)
    assert configs(listener)["sensor", "caption"]["device"]["name"] == "drive"


def test_everything_is_sent_again_when_home_assistant_starts(yard, start, listener, eventually):
    yard.attach()
    start()
    eventually(lambda: "nvila/gate/caption" in listener.kept)
    before = len(configs(listener))
    listener.heard.clear()
    listener.say("homeassistant/status", "online")
    eventually(lambda: len(configs(listener)) == before and "nvila/gate/caption" in listener.kept)


def test_a_question_is_answered_once(yard, start, listener, eventually):
    # given
    yard.attach()
    yard.store_frame()
    start()
    eventually(lambda: listener.kept.get("nvila/status") == b"online")
    # when
    listener.say("nvila/gate/ask", "Is the gate open?")
    properties = Properties(PacketTypes.PUBLISH)
    properties.ResponseTopic, properties.CorrelationData = "app/replies", b"7"
    listener.say("nvila/gate/ask", "Who is there?", properties=properties)
    listener.say(
        "nvila/gate/ask",
        json.dumps({"prompt": "Why?", "max_tokens": 5, "reply_to": "kitchen/answers", "id": 12}),
    )
    eventually(lambda: len(yard.service.queries()) == 3)
    for query in yard.service.queries():
        result = Result(
            request_id=query.id,
            kind="answer",
            stream_id=yard.stream_id,
            stream_name="gate",
            prompt=query.prompt,
            text=f"Answer to {query.prompt}",
        )
        yard.service.queue.publish(result, owner_id=None)
    # then
    eventually(lambda: listener.all("nvila/gate/answer") and listener.all("kitchen/answers"))
    eventually(lambda: listener.all("app/replies"))
    time.sleep(1.2)  # a second answer would come with the next look
    (own,), (theirs,) = listener.all("nvila/gate/answer"), listener.all("kitchen/answers")
    (named,) = listener.all("app/replies")
    assert own["text"] == "Answer to Is the gate open?"
    assert own["error"] is None
    assert (theirs["id"], theirs["text"]) == (12, "Answer to Why?")
    assert named["text"] == "Answer to Who is there?"


@pytest.mark.parametrize(
    ("stream", "payload", "code"),
    [
        ("gate", "", "PROMPT_EMPTY"),
        ("gate", '{"prompt": "?", "colour": 1}', "INVALID_REQUEST"),
        ("gate", '{"prompt"', "INVALID_REQUEST"),
        ("gate", b"\xff", "INVALID_REQUEST"),
        ("gate", "x" * 70_000, "INVALID_REQUEST"),
        ("gate", '{"prompt": "?", "reply_to": "nvila/gate/ask"}', "INVALID_REQUEST"),
        ("gate", '{"prompt": "?", "reply_to": "homeassistant/status"}', "INVALID_REQUEST"),
        ("gate", '{"prompt": "?", "reply_to": "a/#"}', "INVALID_REQUEST"),
        ("gate", "Without frames?", "NO_FRAMES"),
        ("nobody", "Who?", "UNKNOWN_STREAM"),
    ],
)
def test_a_question_that_cannot_be_asked(yard, start, listener, eventually, stream, payload, code):
    yard.attach()
    start()
    eventually(lambda: listener.kept.get("nvila/status") == b"online")
    listener.say(f"nvila/{stream}/ask", payload)
    eventually(lambda: listener.all(f"nvila/{stream}/answer"))
    (answer,) = listener.all(f"nvila/{stream}/answer")
    assert answer["error"]["code"] == code
    assert answer["error"]["message"].endswith(".")


def test_a_kept_question_is_not_asked_again(yard, start, listener, eventually):
    yard.attach()
    yard.store_frame()
    listener.say("nvila/gate/ask", "Old?", retain=True)
    listener.say("nvila/gate/watching/set", "OFF", retain=True)
    start()
    eventually(lambda: listener.kept.get("nvila/gate/availability") == b"online")
    listener.say("nvila/gate/ask", "New?")
    eventually(lambda: yard.service.queries())
    assert [query.prompt for query in yard.service.queries()] == ["New?"]
    assert not yard.service.stream("gate").paused


def test_a_broker_that_is_away_is_waited_for(yard, start, broker, listener, eventually):
    # given
    yard.attach()
    yard.car(0.1)
    with capture_logs() as logs:
        start()
        eventually(lambda: state(listener, "gate", "alerts", "wch_car") == "OFF")
        # when it is away, and something happens meanwhile
        broker.stop()
        yard.car(0.9)
        eventually(lambda: said(logs, "outage_began"))
        listener.heard.clear()
        broker.start()
        # then
        eventually(lambda: state(listener, "gate", "alerts", "wch_car") == "ON")
        eventually(lambda: listener.all("nvila/gate/events"))
        time.sleep(1.2)  # what is doubled would come with the next look
    events = [each["event_type"] for each in listener.all("nvila/gate/events")]
    assert events == ["incident.opened"]
    assert len(said(logs, "outage_began")) == len(said(logs, "outage_ended")) == 1


def test_one_bridge_serves(yard, start, listener, eventually):
    # given
    yard.attach()
    end = start()
    start()
    eventually(lambda: listener.kept.get("nvila/status") == b"online")
    # when
    yard.car(0.9)
    eventually(lambda: listener.all("nvila/gate/events"))
    time.sleep(1.2)
    # then
    assert len(listener.all("nvila/gate/events")) == 1
    # when it ends, the other serves
    end()
    eventually(lambda: listener.kept["nvila/status"] == b"online")


def test_login_and_encryption(yard, tmp_path, start, eventually):
    # given
    authority = Authority(tmp_path)
    plain, encrypted = Broker(tmp_path / "plain", PASSWORD), None
    plain.start()
    listener = Listener(plain, PASSWORD)
    yard.attach()
    key, redis = redis_keys.MQTT_BRIDGE, yard.service.connections.main
    try:
        certificate = authority.issue(["127.0.0.1", "localhost"])
        encrypted = Broker(tmp_path / "encrypted", certificate=certificate)
        encrypted.start()
        with capture_logs() as logs:
            # when the password is wrong
            end = start(f"mqtt://nvila:wrong-{PASSWORD[:7]}@127.0.0.1:{plain.port}")
            eventually(lambda: "ot authorized" in str(said(logs, "outage_began")))
            end()
            # when it is right
            end = start(f"mqtt://nvila:hunter2%20s%40cret@127.0.0.1:{plain.port}")
            eventually(lambda: listener.kept.get("nvila/status") == b"online")
            end()
            # when the broker has a certificate that is not trusted
            end = start(f"mqtts://127.0.0.1:{encrypted.port}")
            eventually(lambda: "certificate verify failed" in str(said(logs, "outage_began")))
            end()
            # when it is
            start(f"mqtts://127.0.0.1:{encrypted.port}?ssl_ca_certs={authority.file}")
            eventually(lambda: (held := redis.get(key)) and json.loads(held)["trouble"] is None)
        # then
        assert "hunter2" not in str(logs)
    finally:
        listener.close()
        plain.stop()
        if encrypted is not None:
            encrypted.stop()
