"""The queue between FFmpeg and the decoder: its bounds, and how long packets wait."""

import itertools
import time
from pathlib import Path

from streamer.clock import SystemClock
from streamer.media.packet_reader import MAX_LAG, Arrival, PacketReader
from tests.support.videos import write_video


def read_all(reader: PacketReader) -> list[Arrival]:
    arrivals = []
    while (arrival := reader.get(60.0)) is not None:
        arrivals.append(arrival)
    return [arrival for arrival in arrivals if arrival.packet.size]


class PacketClock(SystemClock):
    """A clock that runs from packet to packet."""

    def __init__(self, step: float) -> None:
        self._times = itertools.count(1000.0, step)
        self._now = 0.0

    def time(self) -> float:
        self._now = next(self._times)
        return self._now

    def monotonic(self) -> float:
        return self._now


def opened(path: Path, *, live: bool, step: float) -> PacketReader:
    """Open a reader of `path` whose packets arrive every `step` seconds and are not taken."""
    reader = PacketReader(
        str(path), live=live, open_timeout=60, read_timeout=60, clock=PacketClock(step)
    )
    reader.start()
    assert reader.wait_open(60)
    return reader


def ended(reader: PacketReader, packets: int) -> None:
    deadline = time.monotonic() + 120
    while reader.packets < packets:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_packets_that_wait_for_long_give_way_to_a_newer_key_frame(tmp_path: Path) -> None:
    # given ten seconds of packets while the decoder is busy, with a key frame every second
    write_video(tmp_path / "v.mp4", seconds=10, gop=25)
    reader = opened(tmp_path / "v.mp4", live=True, step=1 / 25)
    ended(reader, 250)
    left = read_all(reader)
    reader.close(wait=10)
    # then the remaining packets are recent, begin with a key frame, and the others are counted
    assert left[0].packet.is_keyframe
    assert left[-1].time - left[0].time <= MAX_LAG + 0.1
    assert len(left) >= 25
    assert reader.dropped == 250 - len(left)


def test_without_a_newer_key_frame_there_is_nothing_to_go_on_with(tmp_path: Path) -> None:
    write_video(tmp_path / "v.mp4", seconds=10, gop=1000, options={"sc_threshold": "0"})
    reader = opened(tmp_path / "v.mp4", live=True, step=1 / 25)
    ended(reader, 250)
    left = read_all(reader)
    reader.close(wait=10)
    assert (len(left), reader.dropped) == (250, 0)


def test_a_recording_never_gives_way(tmp_path: Path) -> None:
    write_video(tmp_path / "v.mp4", seconds=10, gop=25)
    reader = opened(tmp_path / "v.mp4", live=False, step=1.0)
    ended(reader, 250)
    left = read_all(reader)
    reader.close(wait=10)
    assert (len(left), reader.dropped) == (250, 0)
