"""The hours of an alert, as they are typed."""

import pytest
from typer import BadParameter

from streamer.alert_rule import AlertRule, Schedule, merged_rule
from streamer.cli.alert_options import AlertOptions
from streamer.errors import StreamerError


def rule(**options: str) -> AlertRule:
    made = AlertOptions(**options).rule()  # type: ignore[arg-type]
    assert made is not None
    return made


def schedule(text: str) -> Schedule:
    made = rule(schedule=text).schedule
    assert made is not None
    return made


@pytest.mark.parametrize(
    ("text", "days", "hours", "zone"),
    [
        ("22:00-06:00", "mon tue wed thu fri sat sun", ("22:00", "06:00"), "UTC"),
        ("mon-fri 08:00-18:00", "mon tue wed thu fri", ("08:00", "18:00"), "UTC"),
        ("sat,sun 00:00-00:00 Europe/Berlin", "sat sun", ("00:00", "00:00"), "Europe/Berlin"),
        ("fri-mon 01:00 - 02:00", "fri sat sun mon", ("01:00", "02:00"), "UTC"),
        ("mon-wed,tue 01:00-02:00", "mon tue wed", ("01:00", "02:00"), "UTC"),
    ],
)
def test_days_hours_and_a_zone_are_read(text, days, hours, zone):
    found = schedule(text)
    assert [str(day) for day in found.days] == days.split()
    assert (found.start, found.end, found.timezone) == (*hours, zone)


def test_always_takes_the_hours_back():
    night = rule(schedule="22:00-06:00")
    changed = AlertRule(**merged_rule(night, rule(schedule="always")))
    assert changed.schedule is None
    kept = AlertRule(**merged_rule(night, rule(severity="critical")))
    assert kept.schedule == night.schedule


@pytest.mark.parametrize("text", ["at night", "22-6", "mo 08:00-18:00", "mon-xyz 08:00-18:00"])
def test_other_text_is_refused_with_examples(text):
    with pytest.raises(BadParameter, match="--schedule"):
        schedule(text)


def test_hours_that_cannot_be_are_refused():
    with pytest.raises(StreamerError):
        schedule("25:00-26:00")
    with pytest.raises(StreamerError):
        schedule("22:00-06:00 Mars/Olympus")
