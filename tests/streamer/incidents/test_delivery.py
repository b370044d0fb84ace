"""Messages about incidents: to the events, to Alertmanager, to people."""

import json
import sys
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
import redis
from sqlalchemy import update

from streamer.alert_rule import AlertRule
from streamer.domain.timestamp import utc_now
from streamer.errors import ErrorCode, StreamerError
from streamer.incidents import delivery
from streamer.incidents.alertmanager import EXPIRY, RESEND, Alertmanager
from streamer.incidents.delivery import CEILING, Deliveries
from streamer.incidents.notify import Notifier, digest_text, message_text
from streamer.incidents.records import Incident
from streamer.incidents.silences import Matcher, Silence
from streamer.incidents.store import KeptPicture
from streamer.timeline.tables import incident_messages
from tests.streamer.incidents.conftest import Alert


class Phone:
    """A channel that keeps what it is sent, unless it is off."""

    def __init__(self) -> None:
        self.sent: list[tuple[list[str], bytes | None]] = []
        self.off = False

    def send(self, messages, picture=None):
        if self.off:
            raise StreamerError(ErrorCode.DELIVERY_FAILED, "The phone is off: switch it on.")
        said = [m.type.removeprefix("incident.") + " " + m.incident.stream_name for m in messages]
        self.sent.append((said, picture))


class Web:
    """A web server on loopback that takes JSON."""

    def __init__(self) -> None:
        self.status = 200
        self.answering = threading.Event()
        self.answering.set()
        self.taken: list[tuple[str, Any]] = []
        web = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                web.taken.append((self.path, json.loads(body)))
                web.answering.wait(60)
                self.send_response(web.status)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, format: str, *args: object) -> None:
                """Log nothing."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()


@pytest.fixture
def web() -> Iterator[Web]:
    made = Web()
    yield made
    made.server.shutdown()
    made.server.server_close()


@pytest.fixture
def phone() -> Phone:
    return Phone()


@pytest.fixture
def alert(timeline) -> Alert:
    return Alert(timeline, channels=("phone",))


@pytest.fixture
def events() -> list[Any]:
    return []


@pytest.fixture
def deliveries(timeline, alert, phone, events) -> Deliveries:
    return Deliveries(timeline.database, alert.incidents, events.append, {"phone": phone})


def later(timeline):
    """Let what waits be due, as it is later."""
    timeline.database.write(lambda c: c.execute(update(incident_messages).values(due_at=utc_now())))


def test_each_change_is_told_once_with_its_picture(deliveries, alert, phone, events):
    result = alert.result(1, 0.9)
    picture = KeptPicture(b"jpeg", result.created_at)
    alert.record(alert.result(0, 0.9), result, pictures={result.id: picture})
    for _ in range(2):
        deliveries.tell_events()
        deliveries.tell_people()
    assert phone.sent == [(["opened lobby"], b"jpeg")]
    alert.see(0.1, 0.1, 0.1, first=2)
    for _ in range(2):
        deliveries.tell_events()
        deliveries.tell_people()
    assert [said for said, _ in phone.sent] == [["opened lobby"], ["resolved lobby"]]
    assert [event.type for event in events] == ["incident.opened", "incident.resolved"]
    (incident,) = alert.incidents.page().incidents
    assert [(d.channel, d.type, d.delivered) for d in incident.deliveries] == [
        ("phone", "incident.opened", True),
        ("phone", "incident.resolved", True),
    ]
    assert incident.version == events[-1].incident.version, "a delivery is no change"


def test_a_channel_that_fails_gets_it_all_later_in_order(deliveries, alert, phone, timeline):
    phone.off = True
    alert.see(0.75, 0.75)
    deliveries.tell_people()
    alert.see(0.95, first=2)  # a better picture
    alert.see(0.1, 0.1, 0.1, first=3)
    deliveries.tell_people()
    phone.off = False
    deliveries.tell_people()
    assert phone.sent == [], "what comes first goes first, and it waits"
    later(timeline)
    deliveries.tell_people()
    assert [said for said, _ in phone.sent] == [["opened lobby", "resolved lobby"]]
    (incident,) = alert.incidents.page().incidents
    assert [d.delivered for d in incident.deliveries] == [False, True, True]
    assert incident.deliveries[0].error == "The phone is off: switch it on."


def test_a_channel_has_a_ceiling_and_what_is_beyond_comes_as_one_digest(
    deliveries, alert, phone, timeline
):
    def open_incidents(first, count):
        for number in range(first, first + count):
            alert.watch_id, alert.stream_name = f"wch_{number}", f"cam{number}"
            alert.see(0.9, 0.9)

    open_incidents(0, CEILING + 3)
    deliveries.tell_people()
    assert [len(said) for said, _ in phone.sent] == [1] * (CEILING - 1) + [4]
    open_incidents(100, 2)
    deliveries.tell_people()
    assert len(phone.sent) == CEILING
    # when the period is over
    an_hour_ago = utc_now() - timedelta(hours=1)
    columns = incident_messages.c
    timeline.database.write(
        lambda c: c.execute(
            update(incident_messages)
            .where(columns.delivered_at.is_not(None))
            .values(delivered_at=an_hour_ago)
        )
    )
    deliveries.tell_people()
    assert [said for said, _ in phone.sent[CEILING:]] == [["opened cam100"], ["opened cam101"]]


def test_events_wait_for_redis(timeline, alert):
    def refuse(message):
        raise redis.exceptions.ConnectionError("away")

    published: list[Any] = []
    alert.see(0.9, 0.9)
    with pytest.raises(redis.exceptions.ConnectionError):
        Deliveries(timeline.database, alert.incidents, refuse).tell_events()
    after = Deliveries(timeline.database, alert.incidents, published.append)
    after.tell_events()
    assert published == []
    later(timeline)
    after.tell_events()
    assert [message.type for message in published] == ["incident.opened"]


def test_alertmanager_gets_what_is_open_and_what_has_ended(timeline, alert, web):
    sink = Alertmanager(f"http://{web.address}/", "https://cameras.example/")
    received = Deliveries(timeline.database, alert.incidents, lambda _: None, alertmanager=sink)
    alert.rule = AlertRule(severity="critical", title="Car", labels={"site": "north"})
    result = alert.result(1, 0.9)
    picture = KeptPicture(b"jpeg", result.created_at)
    alert.record(alert.result(0, 0.9), result, pictures={result.id: picture})
    received.tell_events()
    received.tell_alertmanager()
    received.tell_alertmanager()
    ((path, (fired,)),) = web.taken
    (incident,) = alert.incidents.page().incidents
    assert path == "/api/v2/alerts"
    assert fired["labels"] == {
        "alertname": "Car",
        "severity": "critical",
        "stream": "lobby",
        "watch": "wch_1",
        "site": "north",
        "incident": incident.id,
    }
    assert fired["startsAt"] == "2026-11-20T08:00:20.000Z"
    assert datetime.fromisoformat(fired["endsAt"]) > utc_now() + EXPIRY / 2
    assert fired["annotations"]["image"] == (
        f"https://cameras.example/v1/incidents/{incident.id}/snapshot.jpg?which=best"
    )
    # when it is over, its end is sent
    alert.see(0.1, 0.1, 0.1, first=2)
    received.tell_events()
    received.tell_alertmanager()
    (ended,) = web.taken[1][1]
    assert ended["labels"] == fired["labels"]
    assert datetime.fromisoformat(ended["endsAt"]) <= utc_now()


def test_alertmanager_gets_nothing_that_is_silenced(timeline, alert, web):
    silence = Silence(
        matchers=[Matcher(name="stream", value="lobby")], ends_at=utc_now() + timedelta(hours=1)
    )
    alert.incidents.silence(silence)
    sink = Alertmanager(f"http://{web.address}")
    received = Deliveries(timeline.database, alert.incidents, lambda _: None, alertmanager=sink)
    alert.see(0.9, 0.9)
    received.tell_events()
    received.tell_alertmanager()
    assert web.taken == []


def test_a_silence_ends_what_fires_in_alertmanager(timeline, alert, web, monkeypatch):
    sink = Alertmanager(f"http://{web.address}")
    received = Deliveries(timeline.database, alert.incidents, lambda _: None, alertmanager=sink)
    alert.see(0.9, 0.9)
    received.tell_events()
    received.tell_alertmanager()
    (incident,) = alert.incidents.page().incidents
    # when somebody silences it, while Alertmanager is away for a moment
    matchers = [Matcher(name="stream", value="lobby")]
    alert.incidents.silence(Silence(matchers=matchers, ends_at=utc_now() + timedelta(hours=1)))
    alert.incidents.silence_again(incident.id)
    for status in (500, 200, 200):
        web.status = status
        wait_for_resend(monkeypatch)
        received.tell_alertmanager()
    # then it is over there, and is not reported again
    assert len(web.taken) == 3
    for _, (ended,) in web.taken[1:]:
        assert ended["labels"]["incident"] == incident.id
        assert datetime.fromisoformat(ended["endsAt"]) <= datetime.fromisoformat(
            web.taken[0][1][0]["endsAt"]
        )


def test_alertmanager_is_told_again_before_an_alert_expires(
    timeline, alert, web, monkeypatch
) -> None:
    sink = Alertmanager(f"http://{web.address}")
    received = Deliveries(timeline.database, alert.incidents, lambda _: None, alertmanager=sink)
    alert.see(0.9, 0.9)
    for _ in range(3):
        received.tell_alertmanager()
        wait_for_resend(monkeypatch)
    ends = [datetime.fromisoformat(body[0]["endsAt"]) for _, body in web.taken]
    assert len(ends) == 3
    assert timedelta() < ends[1] - ends[0] < EXPIRY / 2


def wait_for_resend(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the time pass in which Alertmanager is sent nothing."""
    now = getattr(delivery, "utc_now")() + timedelta(seconds=RESEND)  # noqa: B009
    monkeypatch.setattr(delivery, "utc_now", lambda: now)


def test_an_alertmanager_that_refuses_is_named_without_its_password(web):
    web.status = 500
    incident = Incident.model_validate(
        {
            "watch_id": "w",
            "stream_id": "s",
            "stream_name": "lobby",
            "title": "t",
            "question": "q",
            "severity": "info",
            "state": "open",
            "opened_at": datetime(2026, 1, 1, tzinfo=UTC),
            "last_seen_at": datetime(2026, 1, 1, tzinfo=UTC),
            "last_known_at": datetime(2026, 1, 1, tzinfo=UTC),
            "probability": {"first": 1, "last": 1, "max": 1},
        }
    )
    for url in (f"http://me:hunter2@{web.address}", "http://me:hunter2@127.0.0.1:1"):
        with pytest.raises(StreamerError) as refused:
            Alertmanager(url).send([incident], utc_now())
        assert "check alertmanager_url" in refused.value.message
        assert "hunter2" not in refused.value.message


def test_the_words_of_messages(deliveries, alert, events):
    alert.see(0.9, 0.9, 0.1, 0.1, 0.1)
    deliveries.tell_events()
    opened, resolved = events
    title, text = message_text(opened)
    assert title == "Is a car parked in front of the gate? on lobby"
    assert "Probability 90%." in text
    assert message_text(resolved)[0].startswith("Over: ")
    assert "It is no longer seen." in message_text(resolved)[1]
    title, text = digest_text([opened] * 12)
    assert title == "12 messages about incidents"
    assert "and 2 more" in text


def test_people_are_told_through_apprise(deliveries, alert, events, web):
    pytest.importorskip("apprise", reason="Apprise is not installed: nvila-streamer[notify]")
    alert.see(0.9, 0.9)
    deliveries.tell_events()
    Notifier(f"json://{web.address}/hook", 1).send(events, b"\xff\xd8 jpeg")
    ((path, body),) = web.taken
    assert path == "/hook"
    assert body["title"] == "Is a car parked in front of the gate? on lobby"
    assert body["attachments"]
    web.status = 500
    with pytest.raises(StreamerError, match="did not take the message") as refused:
        Notifier(f"json://{web.address}/hook", 1).send(events)
    assert refused.value.code is ErrorCode.DELIVERY_FAILED
    with pytest.raises(StreamerError):
        Notifier("nonsense", 1)


def test_a_service_that_hangs_costs_a_message_a_bounded_time(deliveries, alert, events, web):
    pytest.importorskip("apprise", reason="Apprise is not installed: nvila-streamer[notify]")
    alert.see(0.9, 0.9)
    deliveries.tell_events()
    web.answering.clear()
    # longer than this service's own time-outs would be patient
    notifier = Notifier(f"json://me:hunter2@{web.address}/hook?rto=60", 2, timeout=0.1)
    for reason in ("URL 2 of notify_urls did not answer within 0.1 s", "is still busy"):
        with pytest.raises(StreamerError, match=reason) as refused:
            notifier.send(events)
        assert refused.value.code is ErrorCode.DELIVERY_FAILED
        assert "hunter2" not in refused.value.message
    web.answering.set()


def test_a_service_whose_code_fails_is_a_delivery_that_failed(
    deliveries, alert, events, monkeypatch
) -> None:
    apprise = pytest.importorskip("apprise", reason="Apprise is not installed")
    alert.see(0.9, 0.9)
    deliveries.tell_events()

    def broken(*_: object, **__: object) -> bool:
        raise OSError("no space left")

    monkeypatch.setattr(apprise.Apprise, "notify", broken)
    with pytest.raises(StreamerError, match="failed with OSError") as refused:
        Notifier("json://127.0.0.1:1/hook", 1).send(events)
    assert refused.value.code is ErrorCode.DELIVERY_FAILED


def test_without_apprise_the_setting_says_what_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "apprise", None)
    with pytest.raises(StreamerError, match=r"nvila-streamer\[notify\]"):
        Notifier("ntfy://secret-topic", 1)
