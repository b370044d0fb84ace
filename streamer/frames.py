"""The sampled frames of every stream: JPEGs in Redis, bounded by time and by number."""

import json
import math
import time as clock
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import Any, cast

import redis

from streamer import redis_keys
from streamer.domain import FrameRef
from streamer.errors import ErrorCode, StreamerError

_PAGE = 256

# One script: picture and index never disagree, and the id is right even when the capture clock
# steps back or two frames share a millisecond. A stream id only ever grows.
# KEYS: index. ARGV: capture ms, reference, JPEG, TTL ms, frames to keep, now ms, JPEG key prefix
_ADD = """
local ms, seq = tonumber(ARGV[1]), 0
local info = redis.pcall('XINFO', 'STREAM', KEYS[1])
if not info.err then
  for i = 1, #info, 2 do
    if info[i] == 'last-generated-id' then
      local last_ms, last_seq = string.match(info[i + 1], '(%d+)-(%d+)')
      last_ms, last_seq = tonumber(last_ms), tonumber(last_seq)
      if ms <= last_ms then ms, seq = last_ms, last_seq + 1 end
    end
  end
end
local id = string.format('%.0f-%.0f', ms, seq)
local ttl = tonumber(ARGV[4])
redis.call('SET', ARGV[7] .. id, ARGV[3], 'PX', ttl)
redis.call('XADD', KEYS[1], id, 'ref', ARGV[2],
           'expires', string.format('%.0f', tonumber(ARGV[6]) + ttl))
if redis.call('PTTL', KEYS[1]) < ttl then redis.call('PEXPIRE', KEYS[1], ttl) end
local excess = redis.call('XLEN', KEYS[1]) - tonumber(ARGV[5])
for i, entry in ipairs(redis.call('XRANGE', KEYS[1], '-', '+', 'COUNT', math.max(excess, 4))) do
  if i > excess and tonumber(entry[2][4]) > tonumber(ARGV[6]) then break end
  redis.call('XDEL', KEYS[1], entry[1])
  redis.call('UNLINK', ARGV[7] .. entry[1])
end
return id
"""

# KEYS: index. ARGV: JPEG key prefix
_DISCARD = """
for _, entry in ipairs(redis.call('XRANGE', KEYS[1], '-', '+')) do
  redis.call('UNLINK', ARGV[1] .. entry[1])
end
return redis.call('UNLINK', KEYS[1])
"""


class FrameStore:
    """Frames by stream and capture time.

    A frame lives `ttl` seconds, unless `max_frames` newer ones of its stream come first.
    """

    def __init__(self, redis: redis.Redis, *, ttl: float, max_frames: int) -> None:
        self._redis = redis
        self._ttl = ttl
        self._max_frames = max_frames
        self._add = redis.register_script(_ADD)
        self._discard = redis.register_script(_DISCARD)

    def add(
        self,
        stream_id: str,
        *,
        jpeg: bytes,
        time: float,
        pts: float,
        width: int,
        height: int,
        change: float,
        decode_ms: float,
        ttl: float | None = None,
    ) -> FrameRef:
        """Store one frame captured at `time` (epoch seconds); `ttl` overrides the store's."""
        ref = FrameRef(
            stream_id=stream_id,
            id="",
            time=time,
            pts=pts,
            width=width,
            height=height,
            change=change,
            decode_ms=decode_ms,
        )
        lifetime = self._ttl if ttl is None else ttl
        frame_id = self._add(
            keys=[redis_keys.frame_index(stream_id)],
            args=[
                math.floor(time * 1000),
                ref.model_dump_json(exclude={"stream_id", "id"}),
                jpeg,
                max(1, round(lifetime * 1000)),
                self._max_frames,
                math.floor(clock.time() * 1000),
                redis_keys.jpeg(stream_id, ""),
            ],
        )
        return ref.model_copy(update={"id": cast(bytes, frame_id).decode()})

    def newest(self, stream_id: str, count: int = 1) -> list[FrameRef]:
        """The last `count` frames, oldest first."""
        entries = self._redis.xrevrange(redis_keys.frame_index(stream_id), count=count)
        return self._living(stream_id, reversed(cast(list[Any], entries)))

    def between(self, stream_id: str, since: float, until: float) -> list[FrameRef]:
        """The frames captured in `[since, until)`, to the millisecond, oldest first."""
        if until <= since:
            return []
        entries = self._redis.xrange(
            redis_keys.frame_index(stream_id),
            min=str(max(0, math.floor(since * 1000))),
            max=f"({max(0, math.ceil(until * 1000))}-0",
        )
        return self._living(stream_id, cast(list[Any], entries))

    def span(self, stream_id: str) -> tuple[float, float] | None:
        """Capture times of the oldest and the newest frame that can still be had."""
        newest = self.newest(stream_id)
        if not newest:
            return None
        oldest = next(self._oldest_first(stream_id), newest[0])
        return oldest.time, newest[0].time

    def count(self, stream_id: str) -> int:
        """How many frames the index lists."""
        return self._redis.xlen(redis_keys.frame_index(stream_id))

    def load(self, refs: Sequence[FrameRef]) -> list[bytes]:
        """The JPEG bytes of `refs`, in their order.

        Raises StreamerError(FRAMES_EXPIRED) when any is gone: a clip with holes would mislead.
        """
        if not refs:
            return []
        keys = [redis_keys.jpeg(ref.stream_id, ref.id) for ref in refs]
        jpegs = cast(list[bytes | None], self._redis.mget(keys))
        found = [jpeg for jpeg in jpegs if jpeg is not None]
        if len(found) < len(refs):
            raise StreamerError(
                ErrorCode.FRAMES_EXPIRED,
                f"{len(refs) - len(found)} of the {len(refs)} frames asked about have expired: "
                "ask sooner, or raise frame_ttl and frames_per_stream.",
            )
        return found

    def discard(self, stream_id: str) -> None:
        """Forget all frames of a stream."""
        self._discard(
            keys=[redis_keys.frame_index(stream_id)], args=[redis_keys.jpeg(stream_id, "")]
        )

    @staticmethod
    def pick(refs: Sequence[FrameRef], count: int) -> list[FrameRef]:
        """At most `count` of `refs`, evenly spread in time, the first and the last included.

        One alone is the last. `refs` are oldest first; the order is kept.
        """
        if count < 1:
            return []
        if len(refs) <= count:
            return list(refs)
        if count == 1:
            return [refs[-1]]
        times = list(accumulate((ref.time for ref in refs), max))
        step = (times[-1] - times[0]) / (count - 1)
        picked: list[int] = []
        for i in range(count):
            target = times[0] + i * step
            at = bisect_left(times, target)
            if at == len(times) or (at > 0 and target - times[at - 1] < times[at] - target):
                at -= 1
            lowest = picked[-1] + 1 if picked else 0
            highest = len(times) - (count - i)  # leaves one for each that is still to come
            picked.append(min(max(at, lowest), highest))
        picked[-1] = len(times) - 1
        return [refs[i] for i in picked]

    def _oldest_first(self, stream_id: str) -> Iterator[FrameRef]:
        start = "-"
        while True:
            page = cast(
                list[Any],
                self._redis.xrange(redis_keys.frame_index(stream_id), min=start, count=_PAGE),
            )
            if not page:
                return
            yield from self._living(stream_id, page)
            start = f"({page[-1][0].decode()}"

    @staticmethod
    def _living(stream_id: str, entries: Any) -> list[FrameRef]:
        now = clock.time() * 1000
        return [
            FrameRef(**json.loads(fields[b"ref"]), stream_id=stream_id, id=frame_id.decode())
            for frame_id, fields in entries
            if float(fields[b"expires"]) > now
        ]
