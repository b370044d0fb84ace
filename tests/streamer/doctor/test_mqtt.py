"""The doctor at a real MQTT broker."""

import json

from streamer import redis_keys
from streamer.doctor import mqtt
from tests.support.mosquitto import Broker

PASSWORD = "hunter2secret"


def checks(settings, url):
    found = list(mqtt.broker(settings.model_copy(update={"mqtt_url": url})))
    for each in found:
        assert each.message.endswith(".")
        assert PASSWORD not in each.message
    return {each.name: each for each in found}


def test_without_the_setting_nothing_is_checked(settings):
    assert checks(settings, None) == {}


def test_a_broker_and_its_bridge(settings, broker, redis_client):
    # given a broker that lets everybody in
    found = checks(settings, broker.url)
    assert found["mqtt broker"].state == "ok"
    assert found["mqtt bridge"].state == "warn"
    # when a bridge serves, and when it has trouble
    key = redis_keys.MQTT_BRIDGE
    redis_client.set(key, json.dumps({"name": "home-1", "trouble": None}))
    assert checks(settings, broker.url)["mqtt bridge"].state == "ok"
    redis_client.set(key, json.dumps({"name": "home-1", "trouble": "The broker is away."}))
    assert checks(settings, broker.url)["mqtt bridge"].state == "fail"
    # when the broker is away
    broker.stop()
    found = checks(settings, broker.url)
    assert found["mqtt broker"].state == "fail"
    assert "refused" in found["mqtt broker"].message


def test_a_wrong_password_is_named_and_not_shown(settings, tmp_path):
    secure = Broker(tmp_path / "secure", "right")
    secure.start()
    try:
        url = f"mqtt://nvila:{PASSWORD}@127.0.0.1:{secure.port}"
        found = checks(settings, url)["mqtt broker"]
    finally:
        secure.stop()
    assert found.state == "fail"
    assert "Not authorized" in found.message
