"""Rates, key frames and clock drift of streams with known values."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamer.media.probe.stream_stats import StreamStats


def watch(seconds: float, *, fps: float = 25.0, gop: int = 50, drift: float = 0.0) -> StreamStats:
    """A stream over a network that delays by up to 30 ms, after a burst of half a second."""
    rng = random.Random(1)
    stats = StreamStats()
    for number in range(round(seconds * fps)):
        pts = number / fps
        came = 1000 + pts * (1 + drift) + rng.uniform(0.0, 0.03)
        stats.add(pts, max(came, 1000.5), key=number % gop == 0, decode_ms=2.0)
    return stats


def test_what_a_stream_is() -> None:
    stats = watch(6.0)
    assert stats.frames == 150
    assert stats.fps == pytest.approx(25.0)
    assert (stats.gop_frames, stats.gop_seconds) == (50, pytest.approx(2.0))
    assert stats.key_frames == 3
    assert stats.decode_ms == 2.0
    assert abs(stats.clock_drift or 1.0) < 0.005


@given(st.floats(-0.05, 0.05))
def test_a_clock_that_drifts(drift: float) -> None:
    assert watch(8.0, drift=drift).clock_drift == pytest.approx(drift, abs=0.008)


def test_nothing_is_claimed_too_early() -> None:
    empty, one, short = StreamStats(), StreamStats(), watch(1.0)
    one.add(0.0, 1.0, key=True, decode_ms=1.0)
    for stats in (empty, one):
        assert (stats.fps, stats.gop_seconds, stats.clock_drift) == (None, None, None)
    assert short.gop_seconds is None
    assert short.clock_drift is None
