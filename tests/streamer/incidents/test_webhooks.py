"""Incidents sent to webhooks: the change and its message are one transaction."""

import json

import pytest

from streamer.webhooks.addresses import WebhookAddresses
from streamer.webhooks.records import Webhook
from streamer.webhooks.store import Webhooks


@pytest.fixture
def webhooks(timeline) -> Webhooks:
    return Webhooks(timeline.database, WebhookAddresses(("127.0.0.1",)))


@pytest.fixture
def webhook(webhooks) -> Webhook:
    return webhooks.create("http://127.0.0.1:9/", types=["incident.*"])[0]


def reported(webhooks, webhook):
    """Return the types of what waits for the webhook, oldest first."""
    return [each.type for each in reversed(webhooks.deliveries(webhook.id)[0])]


def test_an_incident_is_told_once_each_time_it_changes(alert, webhooks, webhook):
    alert.see(0.9, 0.9)
    alert.record(alert.result(1, 0.9))  # recorded a second time
    alert.see(0.1, 0.1, 0.1, first=2)

    assert reported(webhooks, webhook) == ["incident.opened", "incident.resolved"]
    message = webhooks.outgoing(webhooks.claim()[0])
    assert message is not None
    body = json.loads(message.body)
    (incident,) = alert.incidents.page().incidents
    assert body["data"]["id"] == incident.id
    assert body["stream_name"] == "lobby"


def test_what_is_not_recorded_is_not_told(alert, webhooks, webhook):
    alert.see(0.9)

    def fail(connection, new):
        alert.incidents.count(connection, new, {})
        raise RuntimeError("the recorder is killed")

    with pytest.raises(RuntimeError):
        alert.timeline.record([alert.result(1, 0.9)], also=fail)
    assert reported(webhooks, webhook) == []

    alert.see(0.9, first=1)
    assert reported(webhooks, webhook) == ["incident.opened"]


def test_a_webhook_that_wants_no_incidents_gets_none(alert, webhooks):
    other, _ = webhooks.create("http://127.0.0.1:9/", types=["result.created"])

    alert.see(0.9, 0.9)

    assert reported(webhooks, other) == []
