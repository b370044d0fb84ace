"""Rates, key frames and clocks of streams whose truth is known."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamer.media.probe.stream_stats import Vitals


def watch(seconds: float, *, fps: float = 25.0, gop: int = 50, drift: float = 0.0) -> Vitals:
    """A stream over a network that delays by up to 30 ms, after a burst of half a second."""
    rng = random.Random(1)
    vitals = Vitals()
    for number in range(round(seconds * fps)):
        pts = number / fps
        came = 1000 + pts * (1 + drift) + rng.uniform(0.0, 0.03)
        vitals.add(pts, max(came, 1000.5), key=number % gop == 0, decode_ms=2.0)
    return vitals


def test_what_a_stream_is() -> None:
    vitals = watch(6.0)
    assert vitals.frames == 150
    assert vitals.fps == pytest.approx(25.0)
    assert (vitals.gop_frames, vitals.gop_seconds) == (50, pytest.approx(2.0))
    assert vitals.key_frames == 3
    assert vitals.decode_ms == 2.0
    assert abs(vitals.clock_drift or 1.0) < 0.005


@given(st.floats(-0.05, 0.05))
def test_a_clock_that_drifts(drift: float) -> None:
    assert watch(8.0, drift=drift).clock_drift == pytest.approx(drift, abs=0.008)


def test_nothing_is_claimed_too_early() -> None:
    empty, one, short = Vitals(), Vitals(), watch(1.0)
    one.add(0.0, 1.0, key=True, decode_ms=1.0)
    for vitals in (empty, one):
        assert (vitals.fps, vitals.gop_seconds, vitals.clock_drift) == (None, None, None)
    assert short.gop_seconds is None
    assert short.clock_drift is None
