"""Addresses of MQTT brokers."""

import pytest
from pydantic import ValidationError

from streamer.mqtt_address import MqttAddress
from streamer.settings import Settings


def test_an_address_has_its_parts():
    found = MqttAddress.of("mqtts://me:p%40ss%2Fword@broker?ssl_ca_certs=/etc/ca.pem")
    assert (found.host, found.port, found.tls) == ("broker", 8883, True)
    assert (found.username, found.password) == ("me", "p@ss/word")
    assert str(found.ca_certs) == "/etc/ca.pem"
    assert str(found) == "mqtts://broker:8883"
    assert "word" not in repr(found)


def test_an_address_without_login():
    found = MqttAddress.of("mqtt://[::1]:1999/")
    assert str(found) == "mqtt://[::1]:1999"
    assert found.username is None
    assert found.tls_context() is None


@pytest.mark.parametrize(
    "url",
    [
        "http://me:secret7@broker",
        "broker:1883",
        "mqtt://",
        "mqtt://me:secret7@broker:port",
        "mqtt://me:sec/ret7@broker",
        "mqtt://me:secret7@broker/topic",
        "mqtt://me:secret7@broker?insecure=1",
        "mqtt://me:secret7@[broker",
    ],
)
def test_an_address_of_another_form_is_refused_without_its_password(url):
    with pytest.raises(ValidationError) as refused:
        Settings(mqtt_url=url)
    message = refused.value.errors(include_input=False)[0]["msg"]
    assert "write mqtt://" in message
    assert "secret7" not in message


@pytest.mark.parametrize("prefix", ["", "a/", "/a", "a/+", "#", "ä", "x" * 65])
def test_a_prefix_that_is_no_topic_is_refused(prefix):
    with pytest.raises(ValidationError):
        Settings(mqtt_prefix=prefix)
