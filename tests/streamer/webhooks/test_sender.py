"""One attempt to send a message, at a real receiver."""

import contextlib
import socket
import threading
from datetime import timedelta
from email.utils import format_datetime

import pytest
from standardwebhooks import Webhook as Signer
from standardwebhooks import WebhookVerificationError

from streamer.domain.timestamp import utc_now
from streamer.webhooks.addresses import WebhookAddresses
from streamer.webhooks.message import Outgoing
from streamer.webhooks.sender import send
from tests.support.receiver import Receiver

HERE = WebhookAddresses(("127.0.0.1",))
SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSwMfKQ9r8GKYo="
BODY = '{"type": "incident.opened", "data": {"title": "Größe"}}'


def message(url):
    return Outgoing(url, SECRET, "msg_1", BODY)


def test_what_is_sent_is_signed():
    with Receiver() as receiver:
        outcome = send(message(receiver.url), HERE)

    (request,) = receiver.received
    assert (outcome.status, outcome.error) == (204, None)
    assert request.id == "msg_1"
    assert request.headers["content-type"] == "application/json"
    assert request.verify(SECRET)["data"] == {"title": "Größe"}
    with pytest.raises(WebhookVerificationError):
        Signer("whsec_" + "A" * 44).verify(request.body, request.headers)


def test_the_client_of_openai_verifies_it_too():
    import openai  # takes seconds

    with Receiver() as receiver:
        send(message(receiver.url), HERE)
    (request,) = receiver.received
    client = openai.OpenAI(api_key="none", webhook_secret=SECRET)

    client.webhooks.verify_signature(request.body.decode(), request.headers)
    with pytest.raises(openai.InvalidWebhookSignatureError):
        client.webhooks.verify_signature(request.body.decode() + " ", request.headers)


@pytest.mark.parametrize("status", [200, 201, 299])
def test_any_status_of_success_counts(status):
    with Receiver(lambda _: (status, {})) as receiver:
        assert send(message(receiver.url), HERE).error is None


@pytest.mark.parametrize("status", [301, 400, 404, 410, 429, 500])
def test_any_other_status_does_not(status):
    with Receiver(lambda _: (status, {})) as receiver:
        outcome = send(message(receiver.url), HERE)

    assert (outcome.status, bool(outcome.error)) == (status, True)


def test_a_redirect_is_not_followed():
    with Receiver() as other:
        with Receiver(lambda _: (307, {"location": other.url})) as receiver:
            outcome = send(message(receiver.url), HERE)

        assert outcome.status == 307
        assert other.received == []


@pytest.mark.parametrize("kind", ["seconds", "date", "nonsense"])
def test_the_receiver_may_put_off_the_next_attempt(kind):
    later = format_datetime(utc_now() + timedelta(seconds=600), usegmt=True)
    value = {"seconds": "120", "date": later, "nonsense": "soon"}[kind]
    with Receiver(lambda _: (503, {"retry-after": value})) as receiver:
        found = send(message(receiver.url), HERE).retry_after

    if kind == "nonsense":
        assert found is None
    else:
        least, most = {"seconds": (120, 120), "date": (500, 600)}[kind]
        assert found is not None
        assert least <= found <= most


def test_a_receiver_that_does_not_answer_is_left():
    over = threading.Event()

    def wait(_):
        over.wait(60)
        return 204, {}

    with Receiver(wait) as receiver:
        outcome = send(message(receiver.url), HERE, time_limit=0.2)
        over.set()

    assert outcome.status is None
    assert "0.2 s" in (outcome.error or "")


def test_a_receiver_that_drips_is_left():
    with socket.create_server(("127.0.0.1", 0)) as server:
        over = threading.Event()

        def drip():
            connection, _ = server.accept()
            with connection, contextlib.suppress(ConnectionError):  # the sender leaves
                connection.sendall(b"HTTP/1.1 200 OK\r\n")
                while not over.wait(0.05):
                    connection.sendall(b"x: y\r\n")

        dripping = threading.Thread(target=drip)
        dripping.start()
        outcome = send(
            message(f"http://127.0.0.1:{server.getsockname()[1]}/"), HERE, time_limit=0.5
        )
        over.set()
        dripping.join()

    assert "0.5 s" in (outcome.error or "")


def test_nobody_listens():
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]

    outcome = send(message(f"http://127.0.0.1:{port}/"), HERE)

    assert outcome.status is None
    assert "cannot be reached" in (outcome.error or "")


def test_the_address_is_checked_again_when_it_is_connected_to(monkeypatch):
    # given a name that led to a public address when the webhook was made
    found = [("93.184.215.14", 80)]
    monkeypatch.setattr(
        socket, "getaddrinfo", lambda *_, **__: [(socket.AF_INET, 1, 6, "", at) for at in found]
    )
    rules = WebhookAddresses()
    with Receiver() as receiver:
        port = int(receiver.url.rpartition(":")[2].partition("/")[0])
        rules.check(f"http://hooks.example:{port}/")

        # when it leads here
        found[0] = "127.0.0.1", port
        outcome = send(message(f"http://hooks.example:{port}/"), rules)

        # then nothing is sent
        assert receiver.received == []
    assert "webhook_hosts" in (outcome.error or "")


def test_a_name_is_looked_up_once_and_kept_in_the_request(monkeypatch):
    looked = []
    with Receiver() as receiver:
        port = int(receiver.url.rpartition(":")[2].partition("/")[0])

        def look(host, *_, **__):
            looked.append(host)
            return [(socket.AF_INET, 1, 6, "", ("127.0.0.1", port))]

        monkeypatch.setattr(socket, "getaddrinfo", look)
        outcome = send(message(f"http://hooks.example:{port}/"), HERE)
        (request,) = receiver.received

    assert outcome.status == 204
    assert request.headers["host"] == f"hooks.example:{port}"
    assert looked.count("hooks.example") == 1
