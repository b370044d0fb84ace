"""Which packets the decoder needs, so that the frames that are wanted come out whole.

Decoding is nearly all that a stream costs, and sparse sampling wants one frame of dozens. A
picture needs what came since its key frame, and nothing else: when a key frame comes before the
next wanted frame does, everything in front of it need never be decoded.
"""

from collections import deque
from dataclasses import dataclass, field
from typing import Generic, TypeVar

T = TypeVar("T")

MAX_HELD = 512
"""Packets held back at most."""

MAX_HELD_BYTES = 16 * 2**20

MIN_FRAME_GAP = 0.002
"""Seconds that no two pictures are closer than."""

_OVERDUE = 0.25
"""Part of its distance by which a key frame may be late before it is waited for no more."""


@dataclass
class GateDecision(Generic[T]):
    """What to decode now, in order; `cut`: the decoder is to forget what it had before."""

    packets: list[T] = field(default_factory=list)
    dropped: list[T] = field(default_factory=list)
    cut: bool = False


@dataclass(frozen=True)
class TimestampedPacket(Generic[T]):
    """A packet with its presentation time, if known, in seconds of the source's own clock."""

    packet: T
    time: float | None
    key: bool
    size: int = 0


class PacketGate(Generic[T]):
    """Takes packets in decoding order and lets through what a decoder needs for all frames at or
    after the due time; others may be among them.

    A recording is in no hurry: packets before the due time are held until it is known whether
    they are needed. A live stream's are held only when a key frame can be expected in time, by the
    distance of the last two; when it does not come, they are let through after all.
    """

    def __init__(self, *, live: bool) -> None:
        self._live = live
        self._held: deque[TimestampedPacket[T]] = deque()
        self._held_bytes = 0
        self._key: float | None = None
        self._distance: float | None = None  # between the last two key frames
        self._sent: float | None = None  # newest time that the decoder was given since the cut
        self._leading: float | None = None  # time of the key frame of the last cut
        self._distrusted = False
        self._broken = False  # what came since the last key frame was not decoded
        self._waiting = True  # for the key frame; not, once it was overdue

    def admit(
        self,
        item: TimestampedPacket[T],
        due: float | None,
        slack: float = 0.0,
        *,
        keyframes: bool = False,
    ) -> GateDecision[T]:
        """Take the next packet. `due` is None while it is unknown where the stream is.

        Up to `slack` seconds after the due time a key frame will do as well. With `keyframes`
        nothing but key frames passes.
        """
        self._learn_distance(item)
        unknown = due is None or item.time is None
        if keyframes:
            wanted = item.key and (unknown or item.time >= due)  # type: ignore[operator]
            self._broken = True  # for those after it, too: the decoder takes each by itself
            return (
                self._only(item) if wanted else GateDecision(dropped=[*self.forget(), item.packet])
            )
        if self._broken:
            if not item.key:
                return GateDecision(dropped=[item.packet])
            self._broken = False
        if due is None or item.time is None or unknown:
            return self._all_and(item)
        if self._leading is not None:
            if item.time < self._leading:  # it shows what was before the cut: half of it is gone
                return GateDecision(dropped=[item.packet])
            self._leading = None
        if self._distrusted:
            return self._all_and(item)
        slack = max(slack, MIN_FRAME_GAP)
        if item.key and item.time <= due + slack and not self._is_pending(due):
            return self._cut(item, due, slack)
        if item.time >= due or self._is_pending(due) or not self._may_hold(item, due + slack):
            return self._all_and(item)
        self._hold(item)
        return GateDecision()

    def distrust(self) -> None:
        """What is marked as a key frame is none: from now on, everything is let through."""
        self._distrusted = True

    def forget(self) -> list[T]:
        """Drop what is held: no frame of it is wanted any more."""
        held = [item.packet for item in self._held]
        self._held.clear()
        self._held_bytes = 0
        return held

    def _learn_distance(self, item: TimestampedPacket[T]) -> None:
        """Remember how far apart the last two key frames are."""
        if item.time is not None and item.key:
            if self._key is not None:
                self._distance = item.time - self._key
            self._key, self._waiting = item.time, True

    def _is_pending(self, due: float) -> bool:
        """Whether a wanted frame is in the decoder, and has not come out yet."""
        return self._sent is not None and self._sent >= due

    def _may_hold(self, item: TimestampedPacket[T], until: float) -> bool:
        if len(self._held) >= MAX_HELD or self._held_bytes >= MAX_HELD_BYTES:
            self._waiting = False
        if not self._live or not self._waiting:
            return self._waiting
        if self._key is None or self._distance is None or item.time is None:
            return False
        expected = self._key + self._distance
        if item.time > expected + _OVERDUE * self._distance:
            self._waiting = False
        return self._waiting and expected <= until

    def _hold(self, item: TimestampedPacket[T]) -> None:
        self._held.append(item)
        self._held_bytes += item.size

    def _cut(self, item: TimestampedPacket[T], due: float, slack: float) -> GateDecision[T]:
        """The key frame `item` makes what is held superfluous; it may become so itself."""
        assert item.time is not None
        dropped = self.forget()
        decision = GateDecision(dropped=dropped, cut=bool(dropped))
        if dropped:
            self._sent, self._leading = None, item.time
        if item.time < due and self._may_hold(item, due + slack):
            self._hold(item)
        else:
            decision.packets.append(item.packet)
            self._sent = item.time
        return decision

    def _only(self, item: TimestampedPacket[T]) -> GateDecision[T]:
        return GateDecision([item.packet], dropped=self.forget())

    def _all_and(self, item: TimestampedPacket[T]) -> GateDecision[T]:
        decision = GateDecision([*self.forget(), item.packet])
        if item.time is not None:
            self._sent = item.time if self._sent is None else max(self._sent, item.time)
        return decision
