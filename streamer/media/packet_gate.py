"""Choose the packets to decode so that every wanted frame decodes completely.

Decoding is nearly the whole cost of a stream, and sparse sampling wants one frame in dozens. A
frame depends only on packets since its key frame: if another key frame arrives before the next
wanted frame, no packet before that key frame has to be decoded.
"""

from collections import deque
from dataclasses import dataclass, field
from typing import Generic, NamedTuple, TypeVar

_T = TypeVar("_T")

MAX_HELD = 512
"""Packets that are held back."""

MAX_HELD_BYTES = 16 * 2**20

MIN_FRAME_GAP = 0.002
"""Seconds between any two frames."""

_MAX_DELAY = 0.25
"""Share of the key frame interval by which a key frame may be late before the wait ends."""


@dataclass(slots=True)
class GateDecision(Generic[_T]):
    """What to do with packets.

    Attributes:
        packets: packets to decode now, in order.
        dropped: packets that need not be decoded.
        flush: whether the decoder must discard its state first.
    """

    packets: list[_T] = field(default_factory=list)
    dropped: list[_T] = field(default_factory=list)
    flush: bool = False


class TimestampedPacket(NamedTuple, Generic[_T]):
    """A packet with its presentation time, if known: seconds of the source's clock."""

    packet: _T
    time: float | None
    key: bool
    size: int = 0


class PacketGate(Generic[_T]):
    """Takes packets in decoding order, and passes those that frames at or after the due time need.

    It may pass more. Packets of a recording before the due time are held until it is known whether
    they are needed. Those of a live stream are held only if the interval of the last two key
    frames predicts a key frame in time; if that frame does not arrive, they are passed.
    """

    def __init__(self, *, live: bool) -> None:
        self._live = live
        self._held: deque[TimestampedPacket[_T]] = deque()
        self._held_bytes = 0
        self._key: float | None = None
        self._interval: float | None = None  # interval of the last two key frames
        self._sent: float | None = None  # newest time passed to the decoder since its flush
        self._leading: float | None = None  # time of the key frame after the last flush
        self._distrusted = False
        self._broken = False  # packets since the last key frame were not decoded
        self._waiting = True  # for the next key frame, until it is overdue

    def admit(
        self,
        item: TimestampedPacket[_T],
        due: float | None,
        slack: float = 0.0,
        *,
        keyframes: bool = False,
    ) -> GateDecision[_T]:
        """Decide about the next packet.

        Args:
            due: presentation time before which no frame is wanted; None while it is unknown.
            slack: seconds after `due` within which a key frame may replace the due frame.
            keyframes: whether to pass key frames only.
        """
        self._learn_interval(item)
        unknown = due is None or item.time is None
        if keyframes:
            wanted = item.key and (unknown or item.time >= due)  # type: ignore[operator]
            self._broken = True  # each key frame is decoded alone
            return (
                self._pass_only(item)
                if wanted
                else GateDecision(dropped=[*self.drop_held(), item.packet])
            )
        if self._broken:
            if not item.key:
                return GateDecision(dropped=[item.packet])
            self._broken = False
        if due is None or item.time is None or unknown:
            return self._pass_all(item)
        if self._leading is not None:
            if item.time < self._leading:  # it depends on packets before the flush
                return GateDecision(dropped=[item.packet])
            self._leading = None
        if self._distrusted:
            return self._pass_all(item)
        slack = max(slack, MIN_FRAME_GAP)
        if item.key and item.time <= due + slack and not self._is_pending(due):
            return self._restart_at(item, due, slack)
        if item.time >= due or self._is_pending(due) or not self._may_hold(item, due + slack):
            return self._pass_all(item)
        self._hold(item)
        return GateDecision()

    def distrust_key_frames(self) -> None:
        """Pass all packets from now on: the key frame flags of this stream are wrong."""
        self._distrusted = True

    def drop_held(self) -> list[_T]:
        """Drop and return the held packets."""
        held = [item.packet for item in self._held]
        self._held.clear()
        self._held_bytes = 0
        return held

    def _learn_interval(self, item: TimestampedPacket[_T]) -> None:
        """Update the interval of key frames."""
        if item.time is not None and item.key:
            if self._key is not None:
                self._interval = item.time - self._key
            self._key, self._waiting = item.time, True

    def _is_pending(self, due: float) -> bool:
        """Return whether the decoder still holds a wanted frame."""
        return self._sent is not None and self._sent >= due

    def _may_hold(self, item: TimestampedPacket[_T], until: float) -> bool:
        if len(self._held) >= MAX_HELD or self._held_bytes >= MAX_HELD_BYTES:
            self._waiting = False
        if not self._live or not self._waiting:
            return self._waiting
        if self._key is None or self._interval is None or item.time is None:
            return False
        expected = self._key + self._interval
        if item.time > expected + _MAX_DELAY * self._interval:
            self._waiting = False
        return self._waiting and expected <= until

    def _hold(self, item: TimestampedPacket[_T]) -> None:
        self._held.append(item)
        self._held_bytes += item.size

    def _restart_at(
        self, item: TimestampedPacket[_T], due: float, slack: float
    ) -> GateDecision[_T]:
        """Drop the held packets in favour of the key frame `item`, which may be held itself."""
        assert item.time is not None
        dropped = self.drop_held()
        decision = GateDecision(dropped=dropped, flush=bool(dropped))
        if dropped:
            self._sent, self._leading = None, item.time
        if item.time < due and self._may_hold(item, due + slack):
            self._hold(item)
        else:
            decision.packets.append(item.packet)
            self._sent = item.time
        return decision

    def _pass_only(self, item: TimestampedPacket[_T]) -> GateDecision[_T]:
        return GateDecision([item.packet], dropped=self.drop_held())

    def _pass_all(self, item: TimestampedPacket[_T]) -> GateDecision[_T]:
        decision = GateDecision([*self.drop_held(), item.packet])
        if item.time is not None:
            self._sent = item.time if self._sent is None else max(self._sent, item.time)
        return decision
