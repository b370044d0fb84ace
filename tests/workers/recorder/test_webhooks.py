"""The sender of webhooks: from events in Redis to a receiver of webhooks."""

import threading
from collections import Counter

import pytest

from streamer import redis_keys
from streamer.domain.result import Result
from streamer.events import Events, EventType
from streamer.queues.results import Results
from streamer.timeline.results import Timeline
from streamer.webhooks import message
from streamer.webhooks.addresses import WebhookAddresses
from streamer.webhooks.store import MAX_AT_ONCE, Webhooks
from tests.support.receiver import Receiver
from workers.recorder.webhooks import WebhookSender

HERE = WebhookAddresses(("127.0.0.1",))


@pytest.fixture
def timeline(settings):
    opened = Timeline(settings.timeline_url)
    yield opened
    opened.close()


@pytest.fixture
def webhooks(timeline):
    return Webhooks(timeline.database, HERE)


@pytest.fixture
def events(redis_client):
    return Events(redis_client)


@pytest.fixture
def make_sender(redis_client, settings, webhooks):
    """Make senders; those that were started end with the test."""
    stopping = threading.Event()
    made = []

    def make(**options):
        made.append(
            WebhookSender(redis_client, settings, webhooks, HERE, stopping=stopping, **options)
        )
        return made[-1]

    yield make
    stopping.set()
    for each in made:
        each.join(120)


def publish(events, n, type=EventType.RESULT_CREATED):
    return events.publish(type, {"n": n}, stream_id="str_yard", stream_name="yard")


def states(webhooks, webhook):
    return Counter(each.state.value for each in webhooks.deliveries(webhook.id, 1000)[0])


def test_events_reach_a_receiver_signed(make_sender, webhooks, events, eventually):
    with Receiver() as receiver:
        made, secret = webhooks.create(receiver.url, types=["result.created"])
        webhook_sender = make_sender()
        webhook_sender.relay()  # its place is where events are now
        for n in range(5):
            publish(events, n)
        publish(events, 9, EventType.QUERY_FINISHED)

        webhook_sender.start()

        eventually(lambda: states(webhooks, made) == {"delivered": 5})
        bodies = [request.verify(secret) for request in receiver.received]
    assert sorted(body["data"]["n"] for body in bodies) == [0, 1, 2, 3, 4]
    assert {body["type"] for body in bodies} == {"result.created"}


def test_a_result_reaches_a_receiver(make_sender, webhooks, redis_client, settings, eventually):
    with Receiver() as receiver:
        _, secret = webhooks.create(receiver.url, streams=["yard"])
        webhook_sender = make_sender()
        webhook_sender.relay()
        webhook_sender.start()

        Results(redis_client, settings).publish(
            Result(
                request_id="req_1",
                kind="caption",
                stream_id="str_1",
                stream_name="yard",
                prompt="?",
                text="a car",
            ),
            owner_id="wch_1",
        )

        eventually(lambda: receiver.received)
        assert receiver.received[0].verify(secret)["data"]["text"] == "a car"


def test_a_relay_goes_on_where_it_was(make_sender, webhooks, events):
    made, _ = webhooks.create("http://127.0.0.1:9/")
    first = make_sender()
    first.relay()
    publish(events, 1)
    first.relay()
    publish(events, 2)

    second = make_sender()  # after a restart
    second.relay()
    second.relay()

    assert states(webhooks, made) == {"pending": 2}


def test_incidents_come_from_the_database_and_not_from_redis(make_sender, webhooks, events):
    made, _ = webhooks.create("http://127.0.0.1:9/")
    webhook_sender = make_sender()
    webhook_sender.relay()

    publish(events, 1, EventType.INCIDENT_OPENED)
    publish(events, 2)
    webhook_sender.relay()

    assert [each.type for each in webhooks.deliveries(made.id)[0]] == ["result.created"]


def test_without_webhooks_nothing_is_relayed(make_sender, webhooks, events):
    publish(events, 1)

    assert not make_sender().relay(block=60.0)
    assert webhooks.position() is None


def test_a_gap_stops_nothing(make_sender, webhooks, events, redis_client):
    made, _ = webhooks.create("http://127.0.0.1:9/")
    webhook_sender = make_sender()
    webhook_sender.relay()
    publish(events, 1)
    publish(events, 2)
    redis_client.xadd(redis_keys.EVENTS, {"type": "lost"})
    newest = publish(events, 3)
    redis_client.xtrim(redis_keys.EVENTS, minid=newest, approximate=False)

    webhook_sender.relay()

    assert [each.event_id for each in webhooks.deliveries(made.id)[0]] == [newest]


def test_a_dead_receiver_delays_no_other(make_sender, webhooks, events, eventually):
    over = threading.Event()

    def hang(_):
        over.wait(120)
        return 204, {}

    with Receiver(hang) as dead, Receiver() as living:
        hanging, _ = webhooks.create(dead.url)
        made, _ = webhooks.create(living.url)
        webhook_sender = make_sender(time_limit=600.0)
        webhook_sender.relay()
        for n in range(30):
            publish(events, n)
        webhook_sender.start()

        # while some attempts hang
        eventually(lambda: states(webhooks, made) == {"delivered": 30})
        assert len(dead.received) <= MAX_AT_ONCE
        assert states(webhooks, hanging) == {"pending": 30}
        over.set()
        eventually(lambda: states(webhooks, hanging) == {"delivered": 30})


def test_a_receiver_that_refuses_gets_the_message_again(make_sender, webhooks, events, eventually):
    with Receiver(lambda _: (500, {})) as receiver:
        made, _ = webhooks.create(receiver.url)
        webhook_sender = make_sender()
        webhook_sender.relay()
        publish(events, 1)
        webhook_sender.start()
        eventually(lambda: receiver.received)
        eventually(lambda: webhooks.deliveries(made.id)[0][0].attempts >= 1)
        (delivery,) = webhooks.deliveries(made.id)[0]

        receiver.answer = lambda _: (204, {})
        webhooks.retry(made.id, delivery.id)
        eventually(lambda: states(webhooks, made) == {"delivered": 1})

        assert len(receiver.received) >= 2
        assert {request.id for request in receiver.received} == {delivery.id}
        assert len({request.body for request in receiver.received}) == 1


@pytest.mark.slow
def test_a_deliverer_that_is_killed_loses_nothing(webhooks, events, worker_process, eventually):
    first, released = threading.Event(), threading.Event()

    def answer(_):
        first.set()
        released.wait(120)
        return 204, {}

    with Receiver(answer) as receiver:
        made, secret = webhooks.create(receiver.url, types=["result.created"])
        hosts = {"STREAMER_WEBHOOK_HOSTS": "127.0.0.1", "STREAMER_LEASE": "2"}
        killed = worker_process("recorder", **hosts)
        eventually(lambda: webhooks.position() is not None)
        for n in range(10):
            publish(events, n)
        # when it is killed in the middle of its first attempts
        assert first.wait(60)
        killed.kill()
        publish(events, 10)
        released.set()
        worker_process("recorder", **hosts)

        eventually(lambda: states(webhooks, made) == {"delivered": 11}, timeout=150)
        got = Counter(request.verify(secret)["data"]["n"] for request in receiver.received)
        assert set(got) == set(range(11))
        ids = {request.id for request in receiver.received}
        assert len(ids) == 11


def test_a_time_limit_is_that_of_the_standard():
    assert message.MAX_ATTEMPT_SECONDS == 15
