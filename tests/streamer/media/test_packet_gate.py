"""PacketGate with a model of a decoder: a frame needs all packets since its key frame."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamer.media.packet_gate import MAX_HELD, PacketGate, TimestampedPacket
from streamer.media.sampler import FpsSampler

Packet = TimestampedPacket[int]


def stream(gops: list[int], step: float = 0.04, start: float = 0.0) -> list[Packet]:
    """Return numbered packets in groups of the given sizes, which begin with key frames."""
    keys = {sum(gops[:n]) for n in range(len(gops))}
    return [
        TimestampedPacket(number, start + number * step, number in keys, 1000)
        for number in range(sum(gops))
    ]


class Decoder:
    """A decoder that outputs a frame if no packet since its key frame is missing."""

    def __init__(self, packets: list[Packet], interval: float, *, live: bool) -> None:
        self.sampler = FpsSampler(1 / interval)
        self.gate: PacketGate[int] = PacketGate(live=live)
        self.live = live
        self.packets = packets
        self.kept: list[float] = []
        self.decoded: list[int] = []
        self.dropped: list[int] = []
        self.delays: list[float] = []
        self._last: int | None = None

    def run(self) -> "Decoder":
        for item in self.packets:
            due = self.sampler.due if self.kept else None
            slack = self.sampler.slack if self.live else 0.0
            decision = self.gate.admit(item, due, slack)
            self.dropped += decision.dropped
            for number in decision.packets:
                self._decode(number, now=item.time or 0.0)
        return self

    def _decode(self, number: int, now: float) -> None:
        packet = self.packets[number]
        assert packet.time is not None
        assert packet.key or self._last == number - 1, "a picture whose reference is missing"
        self._last = number
        self.decoded.append(number)
        if self.sampler.keep(packet.time):
            self.kept.append(packet.time)
            self.delays.append(now - packet.time)


def all_kept(packets: list[Packet], interval: float) -> list[float]:
    sampler = FpsSampler(1 / interval)
    return [p.time for p in packets if p.time is not None and sampler.keep(p.time)]


GOPS = st.lists(st.integers(1, 60), min_size=1, max_size=12)


@settings(deadline=None)
@given(GOPS, st.floats(0.05, 20), st.sampled_from([0.04, 1001 / 30000, 0.2]))
def test_a_recording_keeps_exactly_what_it_would_without(
    gops: list[int], interval: float, step: float
) -> None:
    packets = stream(gops, step)
    decoder = Decoder(packets, interval, live=False).run()
    assert decoder.kept == all_kept(packets, interval)
    assert not set(decoder.decoded) & set(decoder.dropped)


@settings(deadline=None)
@given(GOPS, st.floats(0.05, 20))
def test_a_live_stream_is_never_later_than_the_slack_and_never_waits_for_it(
    gops: list[int], interval: float
) -> None:
    packets = stream(gops)
    decoder = Decoder(packets, interval, live=True).run()
    grid = [packets[0].time or 0.0]
    while (due := grid[0] + len(grid) * interval) + 0.25 * interval + 0.04 <= 0.04 * len(packets):
        grid.append(due)
    assert len(decoder.kept) >= len(grid) - (interval < 0.08)
    # a frame comes out when its own packet does, or within the slack when a key frame was late
    assert max(decoder.delays) <= 0.25 * interval + 0.05


def test_key_frames_in_time_are_all_that_is_decoded() -> None:
    packets = stream([25] * 20)
    decoder = Decoder(packets, 1.0, live=True).run()
    assert decoder.kept == pytest.approx(list(range(20)))
    # then the interval of key frames was learned from the first two
    assert len(decoder.decoded) == 25 + 19


def test_a_recording_need_not_learn_that() -> None:
    decoder = Decoder(stream([25] * 20), 1.0, live=False).run()
    assert decoder.decoded == list(range(0, 500, 25))


def test_long_groups_are_decoded_as_far_as_needed() -> None:
    decoder = Decoder(stream([100] * 5), 3.0, live=False).run()
    assert decoder.kept == pytest.approx([0, 3, 6, 9, 12, 15, 18])
    # then: 3 s is 75 packets into the first group, 6 s is 50 into the second
    assert len(decoder.decoded) == 76 + 51 + 26 + 1 + 76 + 0 + 51 - 1


def test_a_key_frame_that_does_not_come_is_not_waited_for() -> None:
    # given key frames every second, as long as nothing moves
    packets = stream([25, 25, 25, 200])
    decoder = Decoder(packets, 4.0, live=True).run()
    # then the held packets are decoded in time for the due frame
    assert decoder.kept == pytest.approx([0, 4, 8])
    assert max(decoder.delays) == 0


def test_what_is_held_is_bounded() -> None:
    packets = stream([3 * MAX_HELD])
    gate: PacketGate[int] = PacketGate(live=False)
    gate.admit(packets[0], None)
    most = held = 0
    for item in packets[1:]:
        held += 1 - len(gate.admit(item, 1e9).packets)
        most = max(most, held)
    assert most <= MAX_HELD
    assert held == 0


def test_only_key_frames_pass_when_nothing_else_is_wanted() -> None:
    gate: PacketGate[int] = PacketGate(live=True)
    packets = stream([10, 10, 10])
    passed = [gate.admit(item, 0.5, keyframes=True).packets for item in packets]
    assert [numbers for numbers in passed if numbers] == [[20]]
    # when all frames are wanted again, then nothing passes before the next key frame
    more = stream([10, 10, 10, 5, 5])[30:]
    passed = [gate.admit(item, 0.5).packets for item in [more[1], more[2], more[5], more[6]]]
    assert passed == [[], [], [35], [36]]


def test_pictures_from_before_the_cut_are_left_out() -> None:
    gate: PacketGate[str] = PacketGate(live=False)
    gate.admit(TimestampedPacket("I0", 0.0, True), None)
    gate.admit(TimestampedPacket("P1", 0.12, False), 0.9)
    # given a group that begins with frames that refer to the previous group
    decision = gate.admit(TimestampedPacket("I1", 1.0, True), 0.999)
    assert (decision.packets, decision.dropped, decision.flush) == (["I1"], ["P1"], True)
    assert gate.admit(TimestampedPacket("B", 0.96, False), 0.999).dropped == ["B"]
    assert gate.admit(TimestampedPacket("P2", 1.12, False), 0.999).packets == ["P2"]


def test_packets_without_a_time_pass() -> None:
    gate: PacketGate[int] = PacketGate(live=True)
    for item in stream([25, 25]):
        gate.admit(item, 100.0)
    assert gate.admit(TimestampedPacket(99, None, False), 100.0).packets[-1] == 99
