"""The MQTT bridge between a real Redis and a real broker."""

import json
import time
from types import SimpleNamespace

import pytest
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from structlog.testing import capture_logs

from streamer import redis_keys
from streamer.domain.error_info import ErrorInfo
from streamer.domain.result import Result
from streamer.domain.stream import StreamState
from streamer.domain.timestamp import utc_now
from streamer.errors import ErrorCode
from tests.support.mosquitto import Broker, Listener
from tests.support.mqtt_yard import ALERT, CAPTION, COUNT, GATE
from tests.support.relay import Relay
from tests.support.tls_front import Authority

PASSWORD = "hunter2 s@cret"


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


def test_a_stream_is_a_device_with_an_entity_for_each_thing(
    yard, start_bridge, listener, eventually
):
    # given
    stream_id = yard.attach()
    yard.attach("film", live=False)
    yard.stream_id = stream_id
    yard.store_frame()
    # when
    start_bridge()
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
    # null would be the text "None" in Home Assistant
    assert '"open" if value_json.state is none' in found["sensor", "wch_door"]["value_template"]
    assert len(found["sensor", "wch_door"]["availability"]) == 3
    assert found["sensor", "wch_many-0"]["name"] == "People"
    for config in found.values():
        for key, topic in config.items():
            if key.endswith("state_topic") or key == "json_attributes_topic":
                assert topic == "nvila/gate/events" or topic in listener.kept
        assert config["availability"][0]["topic"] == "nvila/status"
    assert listener.kept["nvila/status"] == b"online"
    assert listener.kept["nvila/gate/camera"].startswith(b"\xff\xd8")
    assert not any("film" in topic for topic in listener.kept)


def test_states_follow_the_answers(yard, start_bridge, listener, eventually):
    # given
    yard.attach()
    start_bridge()
    eventually(lambda: state(listener, "gate", "caption") is None)
    eventually(lambda: state(listener, "gate", "alerts", "wch_car") is None)
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
    eventually(lambda: state(listener, "gate", "answers", "wch_many", "1") == "red")
    eventually(lambda: state(listener, "gate", "caption") is not None)
    caption = listener.json("nvila/gate/caption")
    assert len(caption["state"]) == 255
    assert long.startswith(caption["state"][:-1])
    assert caption["attributes"]["text"] == long
    eventually(lambda: state(listener, "gate", "answers", "wch_door") == "open")
    eventually(lambda: state(listener, "gate", "answers", "wch_many", "0") == 3)
    eventually(lambda: "nvila/gate/image" in listener.kept)
    # when the model fails
    error = ErrorInfo(code=ErrorCode.INTERNAL, message="It failed.")
    yard.answer(GATE, "error", error=error)
    yard.answer(ALERT, "error", error=error)
    # then
    eventually(lambda: state(listener, "gate", "alerts", "wch_car") is None)
    eventually(lambda: state(listener, "gate", "answers", "wch_door") is None)


def test_an_alert_is_on_while_its_incident_is_open(yard, start_bridge, listener, eventually):
    # given
    yard.attach()
    start_bridge()
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
    def reported():
        return [event["event_type"] for event in listener.all("nvila/gate/events")]

    eventually(lambda: reported().count("stream.state_changed") >= 3)
    incidents = [each for each in reported() if each.startswith("incident.")]
    assert incidents == ["incident.opened", "incident.resolved"]
    assert not any(kept for topic, _, kept in listener.heard if topic == "nvila/gate/events")


def test_a_bridge_that_starts_knows_what_was_before(yard, start_bridge, listener, eventually):
    yard.attach()
    yard.car(0.9)
    yard.answer(CAPTION, text="A car.")
    end = start_bridge()
    eventually(lambda: state(listener, "gate", "alerts", "wch_car") == "ON")
    eventually(lambda: state(listener, "gate", "caption") == "A car.")
    # when it ends
    end()
    # then
    eventually(lambda: listener.kept["nvila/status"] == b"offline")
    assert listener.all("nvila/gate/events") == []
    assert not yard.service.connections.main.exists(redis_keys.MQTT_BRIDGE)


def test_the_switch_pauses_and_resumes(yard, start_bridge, listener, eventually):
    yard.attach()
    start_bridge()
    eventually(lambda: listener.kept.get("nvila/gate/watching") == b"ON")
    # when
    listener.say("nvila/gate/watching/set", "OFF")
    # then
    eventually(lambda: listener.kept["nvila/gate/watching"] == b"OFF")
    assert yard.service.stream("gate").paused
    # when
    listener.say("nvila/gate/watching/set", "ON")
    eventually(lambda: listener.kept["nvila/gate/watching"] == b"ON")


def test_detached_streams_leave_nothing_behind(yard, start_bridge, listener, eventually):
    # given
    stream_id = yard.attach()
    yard.store_frame()
    end = start_bridge()
    eventually(lambda: "nvila/gate/camera" in listener.kept)
    # when one is detached while the bridge runs
    yard.service.registry.delete(stream_id)
    eventually(lambda: not any("gate" in topic for topic in listener.kept))
    eventually(lambda: configs(listener) == {})
    # and another while it does not
    other = yard.attach("yard")
    yard.store_frame()
    eventually(lambda: "nvila/yard/camera" in listener.kept)
    end()
    yard.service.registry.delete(other)
    listener.say("homeassistant/sensor/nvila2_str_1/x/config", "{}", retain=True)
    start_bridge()
    # then
    eventually(lambda: listener.kept["nvila/status"] == b"online")
    eventually(lambda: not any("yard" in topic for topic in listener.kept))
    eventually(lambda: set(configs(listener)) == {("sensor", "x")})  # of another installation


def test_a_home_with_thousands_of_entities_is_swept(
    yard, start_bridge, broker, listener, eventually
):
    # given a broker that keeps more than a client's queue holds, and of a stream that is gone
    topics = [f"homeassistant/sensor/other_{number}/x/config" for number in range(4000)]
    topics.append("homeassistant/sensor/nvila_str_0a/caption/config")
    listener.keep(topics, json.dumps({"name": "x" * 800}))
    yard.attach()
    # when
    with capture_logs() as logs:
        start_bridge()
        eventually(lambda: "nvila/gate/caption" in listener.kept)
    # then
    eventually(lambda: topics[-1] not in listener.kept)
    assert len([topic for topic in listener.kept if "/other_" in topic]) == 4000
    assert [each for each in logs if each["log_level"] in ("warning", "error")] == []


def test_a_renamed_stream_moves(yard, start_bridge, listener, eventually):
    yard.attach()
    start_bridge()
    eventually(lambda: "nvila/gate/caption" in listener.kept)
    yard.service.registry.update("gate", name="drive", watches=[CAPTION])
    eventually(lambda: "nvila/drive/caption" in listener.kept)
    eventually(lambda: not any(topic.startswith("nvila/gate/") for topic in listener.kept))
    eventually(lambda: ("binary_sensor", "wch_car") not in configs(listener))
    eventually(lambda: configs(listener)["sensor", "caption"]["device"]["name"] == "drive")


def test_everything_is_sent_again_when_home_assistant_starts(
    yard, start_bridge, listener, eventually
):
    yard.attach()
    start_bridge()
    eventually(lambda: "nvila/gate/caption" in listener.kept)
    before = len(configs(listener))
    listener.heard.clear()
    listener.say("homeassistant/status", "online")
    eventually(lambda: len(configs(listener)) == before and "nvila/gate/caption" in listener.kept)


def test_a_stream_that_is_detached_while_home_assistant_starts_leaves_nothing_behind(
    yard, start_bridge, listener, eventually
):
    # given a bridge that waits for Redis
    yard.attach()
    start_bridge()
    eventually(lambda: "nvila/gate/caption" in listener.kept)
    main = yard.service.connections.main
    main.client_pause(1500)
    # when both happen before it looks again
    listener.say("homeassistant/status", "online")
    yard.service.registry.delete("gate")
    # then
    eventually(lambda: not any("gate" in topic for topic in listener.kept))
    eventually(lambda: configs(listener) == {})


def test_a_question_is_answered_once(yard, start_bridge, listener, eventually):
    # given
    yard.attach()
    yard.store_frame()
    end = start_bridge()
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
    end()  # with what it still had to say
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
        # a broker hangs up on a client that publishes to these
        ("gate", '{"prompt": "?", "reply_to": "a\\u0001b"}', "INVALID_REQUEST"),
        ("gate", '{"prompt": "?", "reply_to": "\\ud800"}', "INVALID_REQUEST"),
        ("gate", json.dumps({"prompt": "?", "reply_to": "/" * 250}), "INVALID_REQUEST"),
        ("gate", "Without frames?", "NO_FRAMES"),
        ("nobody", "Who?", "UNKNOWN_STREAM"),
    ],
)
def test_a_question_that_cannot_be_asked(
    yard, start_bridge, listener, eventually, stream, payload, code
):
    yard.attach()
    start_bridge()
    eventually(lambda: listener.kept.get("nvila/status") == b"online")
    listener.say(f"nvila/{stream}/ask", payload)
    eventually(lambda: listener.all(f"nvila/{stream}/answer"))
    (answer,) = listener.all(f"nvila/{stream}/answer")
    assert answer["error"]["code"] == code
    assert answer["error"]["message"].endswith(".")


def test_questions_that_no_model_answers_do_not_keep_others_out(
    yard, start_bridge, listener, eventually, monkeypatch
):
    # given as many as may wait, and no model
    monkeypatch.setattr("workers.mqtt.bridge.MAX_ASKED", 1)
    yard.attach()
    yard.store_frame()
    start_bridge(query_ttl=3600)
    eventually(lambda: listener.kept.get("nvila/status") == b"online")
    listener.say("nvila/gate/ask", "First?")
    listener.say("nvila/gate/ask", "Second?")
    eventually(lambda: listener.all("nvila/gate/answer"))
    assert listener.all("nvila/gate/answer")[0]["error"]["code"] == "TOO_MANY_QUERIES"

    # when their records have expired
    later = SimpleNamespace(monotonic=lambda: time.monotonic() + 3601)
    monkeypatch.setattr("workers.mqtt.bridge.time", later)

    def is_taken():
        listener.say("nvila/gate/ask", "Third?")
        return any(query.prompt == "Third?" for query in yard.service.queries())

    # then
    eventually(is_taken)


def test_a_kept_question_is_not_asked_again(yard, start_bridge, listener, eventually):
    yard.attach()
    yard.store_frame()
    listener.say("nvila/gate/ask", "Old?", retain=True)
    listener.say("nvila/gate/watching/set", "OFF", retain=True)
    start_bridge()
    eventually(lambda: listener.kept.get("nvila/gate/availability") == b"online")
    listener.say("nvila/gate/ask", "New?")
    eventually(lambda: yard.service.queries())
    assert [query.prompt for query in yard.service.queries()] == ["New?"]
    assert not yard.service.stream("gate").paused


class Cable(Relay):
    """A cable to the broker that can be pulled."""

    pulled = False

    def admits(self):
        return not self.pulled


def test_a_broker_that_is_away_is_waited_for(yard, start_bridge, broker, listener, eventually):
    # given
    yard.attach()
    yard.car(0.1)
    with capture_logs() as logs, Cable(broker.port) as cable:
        end = start_bridge(f"mqtt://127.0.0.1:{cable.port}")
        eventually(lambda: state(listener, "gate", "alerts", "wch_car") == "OFF")
        # when it is away, and something happens meanwhile
        cable.pulled = True
        cable.hang_up()
        eventually(lambda: listener.kept.get("nvila/status") == b"offline")  # its last will
        yard.car(0.9)
        eventually(lambda: said(logs, "outage_began"))
        listener.heard.clear()
        cable.pulled = False
        # then
        eventually(lambda: state(listener, "gate", "alerts", "wch_car") == "ON")
        eventually(lambda: listener.all("nvila/gate/events"))
        eventually(lambda: said(logs, "outage_ended"))
        end()
    assert [each["event_type"] for each in listener.all("nvila/gate/events")] == ["incident.opened"]
    assert len(said(logs, "outage_began")) == len(said(logs, "outage_ended")) == 1
    assert [each for each in logs if each["log_level"] == "error"] == []


def test_one_bridge_serves(yard, start_bridge, listener, eventually):
    # given two
    yard.attach()
    ends = [start_bridge(), start_bridge()]
    eventually(lambda: listener.kept.get("nvila/status") == b"online")
    holder = json.loads(yard.service.connections.main.get(redis_keys.MQTT_BRIDGE))["name"]
    # when
    yard.car(0.9)
    eventually(lambda: listener.all("nvila/gate/events"))
    # when one ends, and then the other, whichever it was
    ends[0]()
    eventually(lambda: listener.kept.get("nvila/status") == b"online")
    yard.car(0.1)
    eventually(lambda: len(listener.all("nvila/gate/events")) >= 2)
    ends[1]()
    # then
    reported = [each["event_type"] for each in listener.all("nvila/gate/events")]
    assert reported == ["incident.opened", "incident.resolved"]
    assert holder


def test_a_bridge_that_lost_its_turn_repeats_nothing_later(
    yard, start_bridge, listener, eventually
):
    # given a bridge that has served, and another that took over
    yard.attach()
    start_bridge()
    eventually(lambda: state(listener, "gate", "alerts", "wch_car") is None)
    main = yard.service.connections.main
    with capture_logs() as logs:
        main.set(redis_keys.MQTT_BRIDGE, json.dumps({"name": "other", "trouble": None}))
        eventually(lambda: said(logs, "mqtt_waits"))
    # when the other publishes an event, and ends
    yard.car(0.9)
    main.delete(redis_keys.MQTT_BRIDGE)
    eventually(lambda: state(listener, "gate", "alerts", "wch_car") == "ON")
    yard.car(0.1)
    # then
    eventually(lambda: listener.all("nvila/gate/events"))
    reported = [each["event_type"] for each in listener.all("nvila/gate/events")]
    assert reported == ["incident.resolved"]


def test_login_and_encryption(yard, tmp_path, start_bridge, eventually):
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
            end = start_bridge(f"mqtt://nvila:wrong-{PASSWORD[:7]}@127.0.0.1:{plain.port}")
            eventually(lambda: "ot authorized" in str(said(logs, "outage_began")))
            end()
            # when it is right
            end = start_bridge(f"mqtt://nvila:hunter2%20s%40cret@127.0.0.1:{plain.port}")
            eventually(lambda: listener.kept.get("nvila/status") == b"online")
            end()
            # when the broker has a certificate that is not trusted
            end = start_bridge(f"mqtts://127.0.0.1:{encrypted.port}")
            eventually(lambda: "certificate verify failed" in str(said(logs, "outage_began")))
            end()
            # when it is
            end = start_bridge(f"mqtts://127.0.0.1:{encrypted.port}?ssl_ca_certs={authority.file}")
            eventually(lambda: (held := redis.get(key)) and json.loads(held)["trouble"] is None)
            end()
        # then
        assert "hunter2" not in str(logs)
    finally:
        listener.close()
        plain.stop()
        if encrypted is not None:
            encrypted.stop()
