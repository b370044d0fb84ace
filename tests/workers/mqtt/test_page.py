"""The examples and the topics of docs/home-assistant.md are those of the bridge."""

import json
import re
from pathlib import Path

import yaml

from streamer.domain.stream import Stream, StreamSpec
from streamer.mqtt_address import MqttAddress
from tests.support.mqtt_yard import ALERT, CAPTION, COUNT, GATE
from workers.mqtt.entities import CAMERA_EVENTS
from workers.mqtt.home import Home
from workers.mqtt.questions import Asked, answer_to
from workers.mqtt.topics import Topics

PAGE = (Path(__file__).parents[3] / "docs" / "home-assistant.md").read_text()


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)


def test_its_addresses_are_addresses():
    found = re.findall(r"mqtts?://[^\s`)]+", PAGE)
    addresses = [MqttAddress.of(url) for url in found if url.rpartition("/")[2]]
    assert len(addresses) >= 2
    assert any(address.ca_certs for address in addresses)


def test_its_automations_are_yaml():
    for text in blocks("yaml"):
        (automation,) = yaml.safe_load(text)["automation"]
        assert automation["trigger"]
        assert automation["action"]


def test_its_questions_can_be_asked():
    asked, answer = blocks("json")
    found = Asked.read("gate", asked.encode())
    assert found.question().max_tokens == 60
    assert Topics("nvila").may_answer(found.reply_to or "")
    known = json.loads(answer_to(found, "gate"))
    assert json.loads(answer).keys() <= known.keys()


def test_its_topics_are_all_topics():
    # given every topic that a stream has
    watches = [ALERT, CAPTION, COUNT, GATE]
    spec = StreamSpec(name="gate", url="rtsp://camera/1", live=True, watches=watches)
    topics = Topics("nvila")
    home = Home(topics)
    home.set_streams([Stream(**spec.model_dump())])
    kept = home.kept(0.0)
    assert len(kept) > 15
    # then each stands in the table
    table = PAGE.partition("## Topics")[2]
    documented = {
        re.sub(r"[A-Z]{3,}", "*", topic) for topic in re.findall(r"`((?:nvila|home)[^`]+)`", table)
    }

    def form(topic):
        topic = re.sub(r"^homeassistant/\w+/nvila_\w+/[\w-]+/", "homeassistant/*/nvila_*/*/", topic)
        return re.sub(
            r"(alerts|answers)/\w+(/\d+)?$", lambda m: f"{m[1]}/*{'/*' * bool(m[2])}", topic
        )

    assert {form(topic) for topic in kept} <= documented
    for event in CAMERA_EVENTS:
        assert f"`{event}`" in PAGE
