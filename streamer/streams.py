"""The streams that users attached: what they are, their secret URLs and how they do."""

from typing import cast

import redis

from streamer import redis_keys
from streamer.domain import Stream, StreamSpec, StreamStatus
from streamer.errors import ErrorCode, StreamerError

# KEYS: names, streams, secrets. ARGV: name, id, spec, URL
_CREATE = """
if redis.call('HSETNX', KEYS[1], ARGV[1], ARGV[2]) == 0 then return 0 end
redis.call('HSET', KEYS[2], ARGV[2], ARGV[3])
redis.call('HSET', KEYS[3], ARGV[2], ARGV[4])
return 1
"""

# KEYS: names, streams. ARGV: old name, new name, id, spec
_UPDATE = """
if redis.call('HEXISTS', KEYS[2], ARGV[3]) == 0 then return -1 end
if ARGV[1] ~= ARGV[2] then
  if redis.call('HSETNX', KEYS[1], ARGV[2], ARGV[3]) == 0 then return 0 end
  redis.call('HDEL', KEYS[1], ARGV[1])
end
redis.call('HSET', KEYS[2], ARGV[3], ARGV[4])
return 1
"""

# The name is freed only if it still is this stream's.
# KEYS: names, streams, secrets, status. ARGV: name, id
_DELETE = """
redis.call('DEL', KEYS[4])
redis.call('HDEL', KEYS[3], ARGV[2])
if redis.call('HGET', KEYS[1], ARGV[1]) == ARGV[2] then redis.call('HDEL', KEYS[1], ARGV[1]) end
return redis.call('HDEL', KEYS[2], ARGV[2])
"""

# KEYS: streams, status. ARGV: id, status
_SAVE_STATUS = """
if redis.call('HEXISTS', KEYS[1], ARGV[1]) == 0 then return 0 end
redis.call('SET', KEYS[2], ARGV[2])
return 1
"""


class StreamRegistry:
    """All attached streams. Names are unique; the URL with its password is kept apart."""

    def __init__(self, redis: redis.Redis) -> None:
        self._redis = redis
        self._create = redis.register_script(_CREATE)
        self._update = redis.register_script(_UPDATE)
        self._delete = redis.register_script(_DELETE)
        self._save_status = redis.register_script(_SAVE_STATUS)

    def create(self, spec: StreamSpec, url: str) -> Stream:
        """Attach `spec`; `url` is the full one, password and all.

        Raises StreamerError(NAME_TAKEN).
        """
        record = spec.model_dump_json()
        created = self._create(
            keys=[redis_keys.NAMES, redis_keys.STREAMS, redis_keys.SECRETS],
            args=[spec.name, spec.id, record, url],
        )
        if not created:
            raise self._name_taken(spec.name)
        return _stream(StreamSpec.model_validate_json(record), None)  # times to the millisecond

    def get(self, ref: str) -> Stream:
        """The stream with id or name `ref`. Raises StreamerError(UNKNOWN_STREAM)."""
        spec = self.find(ref)
        if spec is None:
            by_name = cast(bytes | None, self._redis.hget(redis_keys.NAMES, ref))
            spec = self.find(by_name.decode()) if by_name is not None else None
        if spec is None:
            raise StreamerError(
                ErrorCode.UNKNOWN_STREAM,
                f"There is no stream '{ref}': `streamer streams` lists those there are.",
            )
        return _stream(spec, cast(bytes | None, self._redis.get(redis_keys.status(spec.id))))

    def find(self, stream_id: str) -> StreamSpec | None:
        """What was attached under this id, if it still is."""
        raw = cast(bytes | None, self._redis.hget(redis_keys.STREAMS, stream_id))
        return StreamSpec.model_validate_json(raw) if raw is not None else None

    def list(self) -> list[Stream]:
        """All streams, in the order of their attachment."""
        raw = cast("list[bytes]", self._redis.hvals(redis_keys.STREAMS))
        specs = sorted(
            (StreamSpec.model_validate_json(item) for item in raw), key=lambda s: s.created_at
        )
        if not specs:
            return []
        statuses = self._redis.mget([redis_keys.status(spec.id) for spec in specs])
        return [
            _stream(spec, status)
            for spec, status in zip(specs, cast("list[bytes | None]", statuses), strict=True)
        ]

    def update(self, spec: StreamSpec) -> Stream:
        """Replace what is known of the stream `spec.id`; its name may change.

        Raises StreamerError(UNKNOWN_STREAM | NAME_TAKEN).
        """
        old = self.get(spec.id)
        outcome = self._update(
            keys=[redis_keys.NAMES, redis_keys.STREAMS],
            args=[old.name, spec.name, spec.id, spec.model_dump_json()],
        )
        if outcome == 0:
            raise self._name_taken(spec.name)
        return self.get(spec.id)

    def delete(self, ref: str) -> Stream:
        """Detach by id or name: returns what it was. Raises StreamerError(UNKNOWN_STREAM)."""
        stream = self.get(ref)
        self._delete(
            keys=[
                redis_keys.NAMES,
                redis_keys.STREAMS,
                redis_keys.SECRETS,
                redis_keys.status(stream.id),
            ],
            args=[stream.name, stream.id],
        )
        return stream

    def exists(self, stream_id: str) -> bool:
        """Whether it is still attached: what an ingest slot asks, often."""
        return bool(self._redis.hexists(redis_keys.STREAMS, stream_id))

    def secret_url(self, stream_id: str) -> str:
        """The URL with its password, for opening only. Raises StreamerError(UNKNOWN_STREAM)."""
        url = cast(bytes | None, self._redis.hget(redis_keys.SECRETS, stream_id))
        if url is None:
            raise StreamerError(ErrorCode.UNKNOWN_STREAM, f"Stream '{stream_id}' was detached.")
        return url.decode()

    def status(self, stream_id: str) -> StreamStatus:
        """How the stream does; `connecting` until its worker first tells."""
        raw = cast(bytes | None, self._redis.get(redis_keys.status(stream_id)))
        return StreamStatus.model_validate_json(raw) if raw is not None else StreamStatus()

    def save_status(self, stream_id: str, status: StreamStatus) -> bool:
        """Write the status, unless the stream was detached meanwhile: then False."""
        saved = self._save_status(
            keys=[redis_keys.STREAMS, redis_keys.status(stream_id)],
            args=[stream_id, status.model_dump_json()],
        )
        return bool(saved)

    @staticmethod
    def _name_taken(name: str) -> StreamerError:
        return StreamerError(
            ErrorCode.NAME_TAKEN,
            f"There already is a stream '{name}': choose another name, or detach that one first.",
        )


def _stream(spec: StreamSpec, raw_status: bytes | None) -> Stream:
    status = (
        StreamStatus.model_validate_json(raw_status)
        if raw_status is not None
        else StreamStatus(since=spec.created_at)
    )
    return Stream(**spec.model_dump(), **status.model_dump())
