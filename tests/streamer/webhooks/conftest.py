"""Fixtures: webhooks in a database, with a clock that the test moves."""

from collections.abc import Callable, Iterator

import pytest

from streamer import clock
from streamer.secret_box import SecretBox
from streamer.timeline.results import Timeline
from streamer.webhooks.addresses import WebhookAddresses
from streamer.webhooks.store import Webhooks
from tests.support.clocks import ManualClock
from tests.support.databases import empty


@pytest.fixture
def time(monkeypatch) -> ManualClock:
    """The clock of this process."""
    manual = ManualClock(1_800_000_000.0)
    monkeypatch.setattr(clock, "_shared", manual)
    return manual


@pytest.fixture(params=["sqlite", "postgresql"])
def timeline(request, empty_timeline, tmp_path) -> Iterator[Timeline]:
    """An empty database of each kind."""
    if request.param == "sqlite":
        opened = Timeline(empty_timeline(tmp_path), time_limit=120)
    else:
        opened = Timeline(request.getfixturevalue("shared_postgres"), time_limit=120)
        empty(opened)
    yield opened
    opened.close()


@pytest.fixture
def make_webhooks(timeline, time) -> Callable[[Callable[[], float]], Webhooks]:
    """Return no webhooks, whose pauses have this jitter; those on this machine are allowed."""
    rules = WebhookAddresses(("127.0.0.1",))
    box = SecretBox(["a passphrase of some length"])
    return lambda jitter: Webhooks(timeline.database, rules, box, jitter=jitter)


@pytest.fixture
def webhooks(make_webhooks) -> Webhooks:
    """No webhooks; those on this machine are allowed, and pauses are not jittered."""
    return make_webhooks(lambda: 0.0)
