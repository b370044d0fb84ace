"""Webhooks and their outbox, in SQLite and PostgreSQL."""

import json
from concurrent.futures import ThreadPoolExecutor
from itertools import chain

import pytest
from sqlalchemy import select

from streamer.domain.timestamp import rfc3339, utc_now
from streamer.errors import ErrorCode, StreamerError
from streamer.timeline.tables import webhooks as webhooks_table
from streamer.webhooks import outbox, store
from streamer.webhooks.message import Outcome
from streamer.webhooks.outbox import Fact

URL = "http://127.0.0.1:9/hook"
TAKEN = Outcome(204)
REFUSED = Outcome(500, "The receiver answered 500.")


def fact(number, type="result.created", stream="yard"):
    now = rfc3339(utc_now())
    return Fact(f"{number}-0", type, now, f"str_{stream}", stream, json.dumps({"n": number}))


def write(webhooks, *facts):
    return webhooks.database.write(lambda connection: outbox.write_out(connection, facts))


def waiting(webhooks, webhook):
    found, _ = webhooks.deliveries(webhook.id)
    return [each for each in found if each.state == "pending"]


def code_of(call, *args, **kwargs):
    with pytest.raises(StreamerError) as caught:
        call(*args, **kwargs)
    return caught.value.code


def test_a_webhook_is_kept_and_its_secret_is_not_readable(webhooks, timeline):
    made, secret = webhooks.create(URL, types=["incident.*"], streams=["yard"], description="mine")

    assert webhooks.all() == [webhooks.get(made.id)] == [made]
    assert secret.startswith("whsec_")
    stored = timeline.database.read(
        lambda connection: connection.execute(select(webhooks_table.c.secret)).scalar_one()
    )
    assert secret not in stored


def test_the_secret_signs_what_goes_out(webhooks):
    _, secret = webhooks.create(URL)
    write(webhooks, fact(1))
    (delivery_id,) = webhooks.claim()

    message = webhooks.outgoing(delivery_id)

    assert message is not None
    assert (message.url, message.secret, message.id) == (URL, secret, delivery_id)
    body = json.loads(message.body)
    assert (body["type"], body["id"], body["data"]) == ("result.created", "1-0", {"n": 1})
    assert body["stream_name"] == "yard"
    assert body["timestamp"]


def test_a_webhook_gets_what_it_wants_once(webhooks):
    made, _ = webhooks.create(URL, types=["incident.*"], streams=["str_yard", "gate"])

    wanted = [fact(1, "incident.opened"), fact(2, "incident.opened", "gate")]
    others = [fact(3), fact(4, "incident.opened", "hall")]
    assert write(webhooks, *wanted, *others) == 2
    assert write(webhooks, *wanted) == 0

    assert [each.event_id for each in waiting(webhooks, made)] == ["2-0", "1-0"]


def test_a_webhook_gets_nothing_from_before_it_was_enabled(webhooks, time):
    before = fact(1)
    time.now += 1
    made, _ = webhooks.create(URL)
    assert write(webhooks, before) == 0
    webhooks.edit(made.id, {"enabled": False})
    between = fact(2)
    assert write(webhooks, between) == 0
    time.now += 1
    webhooks.edit(made.id, {"enabled": True})

    assert write(webhooks, between, fact(3)) == 1


def test_a_delivery_ends_when_it_is_taken(webhooks):
    made, _ = webhooks.create(URL)
    write(webhooks, fact(1))
    (delivery_id,) = webhooks.claim()
    assert webhooks.claim() == []

    webhooks.note(delivery_id, TAKEN)

    ((delivery,), _) = webhooks.deliveries(made.id)
    assert (delivery.state, delivery.status, delivery.attempts) == ("delivered", 204, 0)
    assert delivery.due_at is None
    assert webhooks.outgoing(delivery_id) is None
    assert webhooks.claim() == []


def test_a_delivery_is_tried_again_with_growing_pauses_and_one_id(webhooks, time):
    made, _ = webhooks.create(URL)
    write(webhooks, fact(1))
    pauses, ids = [], set()

    began = time.now
    while found := webhooks.claim():
        ids.update(found)
        webhooks.note(found[0], REFUSED)
        ((delivery,), _) = webhooks.deliveries(made.id)
        if delivery.due_at is None:
            break
        pause = delivery.due_at.timestamp() - time.now
        time.now += pause - 1
        assert webhooks.claim() == []
        time.now += 1
        pauses.append(pause)

    assert pauses == [5, 300, 1800, 7200, 18_000, 36_000, 50_400]
    assert len(ids) == 1
    assert (delivery.state, delivery.attempts, delivery.error) == ("failed", 8, REFUSED.error)
    assert time.now - began < 2 * 86_400


def test_pauses_are_jittered(make_webhooks, time):
    jittered = make_webhooks(lambda: 0.5)
    made, _ = jittered.create(URL)
    write(jittered, fact(1))
    jittered.note(jittered.claim()[0], REFUSED)

    ((delivery,), _) = jittered.deliveries(made.id)
    assert delivery.due_at is not None
    assert delivery.due_at.timestamp() == pytest.approx(time.now + 5.5)


def test_the_receiver_may_ask_for_a_longer_pause(webhooks, time):
    made, _ = webhooks.create(URL)
    write(webhooks, fact(1), fact(2))
    first, second = webhooks.claim()
    webhooks.note(first, Outcome(503, "busy", retry_after=900))
    webhooks.note(second, Outcome(503, "busy", retry_after=1))

    ((later, sooner), _) = webhooks.deliveries(made.id)
    assert sooner.due_at.timestamp() == time.now + 900
    assert later.due_at.timestamp() == time.now + 5


def test_a_receiver_that_is_gone_gets_no_more(webhooks):
    made, _ = webhooks.create(URL)
    write(webhooks, fact(1), fact(2))
    webhooks.note(webhooks.claim()[0], Outcome(410, "gone"))

    disabled = webhooks.get(made.id)
    assert not disabled.enabled
    assert "410" in (disabled.disabled_reason or "")
    assert write(webhooks, fact(3)) == 0
    assert webhooks.claim() == []
    # until it is enabled again
    enabled = webhooks.edit(made.id, {"enabled": True})
    assert enabled.disabled_reason is None
    assert write(webhooks, fact(4)) == 1


def test_a_lost_attempt_is_made_again(webhooks, time):
    webhooks.create(URL)
    write(webhooks, fact(1))
    first = webhooks.claim()

    time.now += 89
    assert webhooks.claim() == []
    time.now += 2

    assert webhooks.claim() == first


def test_a_receiver_that_fails_takes_no_more_than_one_attempt_at_a_time(webhooks):
    failing, _ = webhooks.create(URL)
    write(webhooks, *(fact(n) for n in range(20)))
    assert len(webhooks.claim()) == store.MAX_AT_ONCE
    for each in waiting(webhooks, failing)[-store.MAX_AT_ONCE :]:
        webhooks.note(each.id, REFUSED)
    webhooks.create(URL + "/2")
    write(webhooks, *(fact(n) for n in range(100, 110)))

    claimed = webhooks.claim()

    to_failing = {each.id for each in waiting(webhooks, failing)}
    assert sum(each in to_failing for each in claimed) == 1
    assert len(claimed) == 1 + store.MAX_AT_ONCE


def test_programs_that_claim_together_share(webhooks):
    webhooks.create(URL)
    write(webhooks, *(fact(n) for n in range(4)))

    with ThreadPoolExecutor(4) as pool:
        claimed = list(chain.from_iterable(pool.map(lambda _: webhooks.claim(), range(4))))

    assert len(claimed) == len(set(claimed)) == store.MAX_AT_ONCE


def test_more_than_may_wait_is_dropped_and_counted(webhooks, monkeypatch):
    monkeypatch.setattr(outbox, "MAX_WAITING", 3)
    made, _ = webhooks.create(URL)

    assert write(webhooks, *(fact(n) for n in range(2))) == 2
    assert write(webhooks, *(fact(n) for n in range(2, 6))) == 1

    assert [each.event_id for each in waiting(webhooks, made)] == ["2-0", "1-0", "0-0"]
    assert webhooks.get(made.id).dropped == 3


def test_what_has_ended_is_kept_for_a_while(webhooks, time, monkeypatch):
    monkeypatch.setattr(store, "MAX_ENDED", 2)
    made, _ = webhooks.create(URL)
    write(webhooks, *(fact(n) for n in range(4)))
    for each in webhooks.claim():
        webhooks.note(each, TAKEN)
    write(webhooks, fact(9))

    webhooks.trim()
    kept, _ = webhooks.deliveries(made.id)
    assert [each.event_id for each in kept] == ["9-0", "3-0", "2-0"]

    time.now += 3 * 86_400 + 1
    webhooks.trim()
    kept, _ = webhooks.deliveries(made.id)
    assert [each.event_id for each in kept] == ["9-0"]


def test_deliveries_are_listed_in_pages(webhooks):
    made, _ = webhooks.create(URL)
    write(webhooks, *(fact(n) for n in range(5)))

    pages: list[list[str]] = []
    cursor = None
    while True:
        page, cursor = webhooks.deliveries(made.id, limit=2, cursor=cursor)
        write(webhooks, fact(100 + len(pages)))  # what comes meanwhile changes no page
        pages.append([each.event_id for each in page])
        if cursor is None:
            break

    assert pages == [["4-0", "3-0"], ["2-0", "1-0"], ["0-0"]]
    assert code_of(webhooks.deliveries, made.id, cursor="?") is ErrorCode.INVALID_REQUEST


def test_a_failed_delivery_can_be_tried_again_with_its_id(webhooks):
    made, _ = webhooks.create(URL)
    write(webhooks, fact(1))
    (delivery_id,) = webhooks.claim()
    webhooks.note(delivery_id, REFUSED)
    assert webhooks.claim() == []

    again = webhooks.retry(made.id, delivery_id)

    assert (again.id, again.state, again.attempts) == (delivery_id, "pending", 0)
    assert webhooks.claim() == [delivery_id]


def test_a_webhook_can_be_tested(webhooks):
    made, _ = webhooks.create(URL, types=["incident.opened"])

    webhooks.test(made.id)

    (delivery_id,) = webhooks.claim()
    assert json.loads(webhooks.outgoing(delivery_id).body)["type"] == "webhook.test"


def test_a_disabled_webhook_is_neither_tested_nor_tried(webhooks):
    made, _ = webhooks.create(URL)
    delivery = webhooks.test(made.id)
    webhooks.edit(made.id, {"enabled": False})

    assert code_of(webhooks.test, made.id) is ErrorCode.INVALID_REQUEST
    assert code_of(webhooks.retry, made.id, delivery.id) is ErrorCode.INVALID_REQUEST


def test_a_removed_webhook_leaves_nothing(webhooks):
    made, _ = webhooks.create(URL)
    write(webhooks, fact(1))

    assert webhooks.remove(made.id) == made

    assert webhooks.all() == []
    assert webhooks.claim() == []
    assert code_of(webhooks.get, made.id) is ErrorCode.UNKNOWN_WEBHOOK
    assert code_of(webhooks.remove, made.id) is ErrorCode.UNKNOWN_WEBHOOK
    assert code_of(webhooks.deliveries, made.id) is ErrorCode.UNKNOWN_WEBHOOK


def test_wrong_webhooks_are_refused(webhooks, monkeypatch):
    forbidden = ErrorCode.WEBHOOK_URL_FORBIDDEN
    assert code_of(webhooks.create, "http://10.0.0.1/") is forbidden
    assert code_of(webhooks.create, URL, types=["nothing.*"]) is ErrorCode.INVALID_REQUEST
    made, _ = webhooks.create(URL)
    assert code_of(webhooks.edit, made.id, {"url": "http://10.0.0.1/"}) is forbidden
    assert code_of(webhooks.retry, made.id, "msg_none") is ErrorCode.UNKNOWN_DELIVERY
    monkeypatch.setattr(store, "MAX_WEBHOOKS", 1)
    assert code_of(webhooks.create, URL) is ErrorCode.INVALID_REQUEST


def test_one_of_several_relays_moves_the_position(webhooks):
    made, _ = webhooks.create(URL)

    assert webhooks.relay(None, [fact(1)], "1-0")
    assert not webhooks.relay(None, [fact(2)], "2-0")
    assert webhooks.relay("1-0", [fact(3)], "3-0")
    assert not webhooks.relay("1-0", [fact(4)], "4-0")

    assert webhooks.position() == "3-0"
    assert [each.event_id for each in waiting(webhooks, made)] == ["3-0", "1-0"]
