"""The video of the streams that have viewers, on its way from the ingest worker to viewers.

An API process says which streams it wants, again and again (:meth:`LiveVideo.want`). The ingest
worker of such a stream remuxes its packets, once for all viewers, and adds them in *pieces* to the
Redis Stream `redis_keys.video_pieces(id)`. It keeps what a viewer needs to begin, and no more: the
frames since the key frame before the newest one. The pieces of a stream without viewers are
deleted.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import redis

from streamer import redis_keys
from streamer.clock import Clock

MAX_WATCHED = 64
"""Streams of an installation whose video is watched at once."""

MAX_VIDEO_BYTES = 8 << 20
"""Bytes of the pieces of one stream that are kept."""

RENEWAL = 1.5
"""Seconds after which a wish is to be said again."""

_WISH = 5.0
"""Seconds for which a wish holds."""

_TTL = 10
"""Seconds after the last piece for which they are kept: their worker may have died."""

# KEYS: wishes. ARGV: now, until, maximum, stream ids. Returns the ids that are too many.
_WANT = """
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', '(' .. ARGV[1])
local refused = {}
for n = 4, #ARGV do
  if redis.call('ZSCORE', KEYS[1], ARGV[n])
      or redis.call('ZCARD', KEYS[1]) < tonumber(ARGV[3]) then
    redis.call('ZADD', KEYS[1], 'GT', ARGV[2], ARGV[n])
  else
    table.insert(refused, ARGV[n])
  end
end
redis.call('EXPIRE', KEYS[1], 60)
return refused
"""


@dataclass(frozen=True)
class VideoPiece:
    """A few frames that follow each other, as fragments of MP4.

    Attributes:
        run: which remuxing they are from; a later one has a higher number.
        number: their place in the run.
        time: when the first of them arrived from the camera, seconds since the Unix epoch.
        data: the fragments.
        init: the initialization segment, where the first frame is a key frame; otherwise empty.
        mime: the media type with the codec, where there is an `init`.
    """

    run: int
    number: int
    time: float
    data: bytes
    init: bytes = b""
    mime: str = ""

    @property
    def key(self) -> bool:
        """Whether it can be played without the pieces before it."""
        return bool(self.init)

    @property
    def size(self) -> int:
        """Its bytes."""
        return len(self.data) + len(self.init)


class LiveVideo:
    """Wishes and pieces in the server of the frames. Its methods raise
    redis.exceptions.RedisError."""

    def __init__(self, redis: redis.Redis, clock: Clock) -> None:
        self._redis = redis
        self._clock = clock
        self._want = redis.register_script(_WANT)

    def want(self, stream_ids: Sequence[str]) -> set[str]:
        """Say for a few seconds that these streams are watched; return those that are too many."""
        now = self._clock.time()
        refused = self._want(
            keys=[redis_keys.VIDEO_WANTED], args=[now, now + _WISH, MAX_WATCHED, *stream_ids]
        )
        return {stream_id.decode() for stream_id in cast(list[bytes], refused)}

    def wanted(self) -> frozenset[str]:
        """Return the ids of the streams that are watched."""
        found = self._redis.zrangebyscore(redis_keys.VIDEO_WANTED, self._clock.time(), "+inf")
        return frozenset(stream_id.decode() for stream_id in cast(list[bytes], found))

    def add(self, stream_id: str, pieces: Sequence[VideoPiece], oldest: str | None) -> list[str]:
        """Add pieces, forget those before the id `oldest`, and return the ids of the new ones."""
        key = redis_keys.video_pieces(stream_id)
        with self._redis.pipeline(transaction=False) as pipeline:
            for piece in pieces:
                pipeline.xadd(key, _fields(piece), minid=oldest, approximate=False)
            pipeline.expire(key, _TTL)
            *ids, _ = pipeline.execute()
        return [each.decode() for each in ids]

    def kept(self, stream_id: str) -> list[tuple[str, VideoPiece]]:
        """Return all pieces of a stream, oldest first, each with its id."""
        return _read(self._redis.xrange(redis_keys.video_pieces(stream_id)))

    def read(
        self, after: Mapping[str, str], block: float
    ) -> dict[str, list[tuple[str, VideoPiece]]]:
        """Return the pieces of each stream that came after an id; wait up to `block` seconds."""
        positions: dict[Any, Any] = {
            redis_keys.video_pieces(stream_id): place for stream_id, place in after.items()
        }
        answer = self._redis.xread(positions, count=64, block=max(1, round(block * 1000)))
        prefix = redis_keys.video_pieces("")
        return {
            key.decode().removeprefix(prefix): _read(entries)
            for key, entries in cast(list[Any], answer or [])
        }

    def discard(self, stream_id: str) -> None:
        """Delete the pieces of a stream without viewers."""
        self._redis.unlink(redis_keys.video_pieces(stream_id))


def _fields(piece: VideoPiece) -> dict[Any, Any]:
    fields: dict[Any, Any] = {
        "run": piece.run, "number": piece.number, "time": piece.time, "data": piece.data
    }  # fmt: skip
    return fields | ({"init": piece.init, "mime": piece.mime} if piece.key else {})


def _read(entries: Any) -> list[tuple[str, VideoPiece]]:
    return [
        (
            entry_id.decode(),
            VideoPiece(
                run=int(fields[b"run"]),
                number=int(fields[b"number"]),
                time=float(fields[b"time"]),
                data=fields[b"data"],
                init=fields.get(b"init", b""),
                mime=fields.get(b"mime", b"").decode(),
            ),
        )
        for entry_id, fields in cast("list[tuple[bytes, dict[bytes, bytes]]]", entries)
    ]
