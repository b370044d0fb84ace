"""Store the attached streams: their specs, secret URLs and status.

Records that a newer release has written are read as far as this one can: a stream whose record
cannot be read is listed as `unreadable`, and an edit keeps the fields that it does not know.
"""

import builtins
import contextlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from functools import lru_cache
from typing import Any, cast

import redis
from pydantic_core import from_json
from rq.job import Job

from streamer import redis_keys
from streamer.cursors import page_of, time_order
from streamer.domain.error_info import ErrorInfo
from streamer.domain.ids import new_id
from streamer.domain.stream import (
    MAX_WARNINGS,
    Stream,
    StreamCounters,
    StreamSpec,
    StreamState,
    StreamStatus,
)
from streamer.domain.timestamp import rfc3339, utc_now
from streamer.domain.watch import Watch
from streamer.errors import ErrorCode, StreamerError, Superseded
from streamer.events import PUBLISH_EVENT, EventType
from streamer.redis_client.address import await_replica
from streamer.response_format import with_response_format
from streamer.secret_box import SecretBox
from streamer.validation import validated

DETACHED = "detached"
"""What an event calls the state of a stream that is attached no more."""

_ANNOUNCE = (
    PUBLISH_EVENT
    + f"""
-- Announces the state of a stream: its words, or cjson.null; its error and what was edited as JSON.
local function announce(id, name, state, previous, reason, changed)
  local data = string.format('{{"state": %s, "previous": %s, "error": %s, "changed": %s}}',
                             cjson.encode(state), cjson.encode(previous), reason, changed or '[]')
  publish_event('{EventType.STREAM_STATE_CHANGED}', id, name, data)
end

-- Tells the ingest worker of a stream to read its spec now. One that is not told reads it later.
local function tell_worker(id)
  redis.pcall('PUBLISH', '{redis_keys.STREAM_EDITED}', id)
end

-- Returns a record, or an empty one if there is none that can be read.
local function record(text)
  local ok, found = pcall(cjson.decode, text or '')
  return ok and type(found) == 'table' and found or {{}}
end
"""
)

# KEYS: names, streams, secrets. ARGV: name, id, spec, URL
_CREATE = (
    _ANNOUNCE
    + f"""
local fresh = redis.call('HSETNX', KEYS[1], ARGV[1], ARGV[2]) == 1
if not fresh and redis.call('HGET', KEYS[1], ARGV[1]) ~= ARGV[2] then return 0 end
redis.call('HSET', KEYS[2], ARGV[2], ARGV[3])
redis.call('HSET', KEYS[3], ARGV[2], ARGV[4])
if fresh then announce(ARGV[2], ARGV[1], '{StreamState.CONNECTING}', cjson.null, 'null') end
return 1
"""
)

# Writes nothing if the stream has changed since it was read.
# KEYS: names, streams, secrets, status. ARGV: id, spec before, old name, new name, new spec, URL or
# '', names of the changed fields as JSON
_CHANGE = (
    _ANNOUNCE
    + f"""
local current = redis.call('HGET', KEYS[2], ARGV[1])
if not current then return -2 end
if current == ARGV[5] then return 1 end  -- repeated, because the reply was lost
if current ~= ARGV[2] then return -1 end
if ARGV[3] ~= ARGV[4] then
  if redis.call('HSETNX', KEYS[1], ARGV[4], ARGV[1]) == 0 then return 0 end
  redis.call('HDEL', KEYS[1], ARGV[3])
end
redis.call('HSET', KEYS[2], ARGV[1], ARGV[5])
if ARGV[6] ~= '' then redis.call('HSET', KEYS[3], ARGV[1], ARGV[6]) end
tell_worker(ARGV[1])
if ARGV[7] ~= '[]' then
  local status = record(redis.call('GET', KEYS[4]))
  local state = status.state or '{StreamState.CONNECTING}'
  local reason = type(status.error) == 'table' and cjson.encode(status.error) or 'null'
  announce(ARGV[1], ARGV[4], state, state, reason, ARGV[7])
end
return 1
"""
)

_SUMMED = [name for name, field in StreamCounters.model_fields.items() if field.annotation is int]

# Frees the name only if it still belongs to this stream. Keeps its counters in the sums.
# KEYS: names, streams, secrets, status, detached counters. ARGV: name, id, names of the counters
_DELETE = (
    _ANNOUNCE
    + f"""
local status = record(redis.call('GET', KEYS[4]))
local state = status.state or '{StreamState.CONNECTING}'
local counters = type(status.counters) == 'table' and status.counters or {{}}
redis.call('DEL', KEYS[4])
redis.call('HDEL', KEYS[3], ARGV[2])
if redis.call('HGET', KEYS[1], ARGV[1]) == ARGV[2] then redis.call('HDEL', KEYS[1], ARGV[1]) end
if redis.call('HDEL', KEYS[2], ARGV[2]) == 0 then return 0 end
tell_worker(ARGV[2])
for index = 3, #ARGV do
  local count = counters[ARGV[index]]
  if type(count) == 'number' then
    redis.call('HINCRBY', KEYS[5], ARGV[index], string.format('%.0f', count))
  end
end
announce(ARGV[2], ARGV[1], '{DETACHED}', state, 'null')
return 1
"""
)

# Replaces the secret only if it has not changed in the meantime.
# KEYS: secrets. ARGV: id, what was stored, what to store
_RESEAL = """
if redis.call('HGET', KEYS[1], ARGV[1]) ~= ARGV[2] then return 0 end
redis.call('HSET', KEYS[1], ARGV[1], ARGV[3])
return 1
"""

# KEYS: streams, then for each stream: status, job. ARGV: for each: id, status, token of the owner
# or '', state, code of its error or '', error as JSON. Returns for each 1; 0 if it was detached; -1
# if it has another owner.
_SAVE_STATUSES = (
    _ANNOUNCE
    + f"""
local function save(status_key, job, id, status, token, state, error_code, reason)
  if token ~= '' and redis.call('HGET', job, 'token') ~= token then return -1 end
  local spec = redis.call('HGET', KEYS[1], id)
  if not spec then return 0 end
  local before = record(redis.call('GET', status_key))
  redis.call('SET', status_key, status)
  local previous = before.state or '{StreamState.CONNECTING}'
  local code = type(before.error) == 'table' and before.error.code or ''
  if previous ~= state or code ~= error_code then
    announce(id, record(spec).name or '', state, previous, reason)
  end
  return 1
end
local saved = {{}}
for i = 1, #ARGV / 6 do
  saved[i] = save(KEYS[2 * i], KEYS[2 * i + 1], unpack(ARGV, 6 * i - 5, 6 * i))
end
return saved
"""
)

_MAX_SILENCE = 30.0
"""Seconds without a report from its worker after which the status of a stream is out of date."""

_ATTENDED = frozenset({StreamState.CONNECTING, StreamState.RUNNING, StreamState.RECONNECTING})

_NO_WORKER = ErrorInfo(
    code=ErrorCode.NO_WORKER,
    message="No ingest worker is free for this stream: start one with `streamer ingest`.",
)

_ADDED_TO_STREAMS = ("retention_days", "model", "endpoint_reference")
_ADDED_TO_WATCHES = ("alert", "model")

_KEY_CHECK = "key-check"
"""Field of the secrets that holds this word, encrypted with the ingest workers' key."""


class StreamRegistry:
    """All attached streams. Names are unique; the URL with its password is stored separately.

    `box` encrypts these URLs. By default they are stored as they are.
    """

    def __init__(self, redis: redis.Redis, box: SecretBox | None = None) -> None:
        self._redis = redis
        self._box = box or SecretBox()
        self._reseal = redis.register_script(_RESEAL)
        self._create = redis.register_script(_CREATE)
        self._change = redis.register_script(_CHANGE)
        self._delete = redis.register_script(_DELETE)
        self._save_statuses = redis.register_script(_SAVE_STATUSES)

    def create(self, spec: StreamSpec, url: str) -> Stream:
        """Attach `spec`; `url` is the full URL with its password.

        Raises StreamerError: NAME_TAKEN; SECRET_UNREADABLE if the ingest workers have another key
        and could not read the URL.
        """
        self._require_key()
        record = json.dumps(_stored(spec.model_dump(mode="json")))
        created = self._create(
            keys=[redis_keys.NAMES, redis_keys.STREAMS, redis_keys.SECRETS],
            args=[spec.name, spec.id, record, self._box.seal(url)],
        )
        if not created:
            raise self._name_taken(spec.name)
        await_replica(self._redis)
        return _stream(StreamSpec.read(record), None)  # times to the millisecond

    def get(self, ref: str) -> Stream:
        """Return the stream with id or name `ref`.

        Raises StreamerError(UNKNOWN_STREAM | RECORD_UNREADABLE).
        """
        stream_id, record = self._record(ref)
        return _stream(StreamSpec.read(record), self._raw_status(stream_id))

    def find(self, stream_id: str) -> StreamSpec | None:
        """Return the spec of the stream with this id; None if it is not attached.

        Raises StreamerError(RECORD_UNREADABLE).
        """
        raw = cast(bytes | None, self._redis.hget(redis_keys.STREAMS, stream_id))
        return StreamSpec.read(raw) if raw is not None else None

    def records(self, stream_ids: Sequence[str]) -> Sequence[bytes | None]:
        """Return the specs of some streams as they are stored, in one round trip; None for each
        that is not attached."""
        if not stream_ids:
            return []
        return cast("Sequence[bytes | None]", self._redis.hmget(redis_keys.STREAMS, [*stream_ids]))

    def list(self) -> list[Stream]:
        """Return all streams, oldest first; those that cannot be read as `unreadable`."""
        return [*self.page()[0]]

    def page(
        self, limit: int | None = None, cursor: str | None = None
    ) -> tuple[Sequence[Stream], str | None]:
        """Return up to `limit` streams after `cursor`, as :meth:`list` does, and the cursor of the
        rest. Of the others only the time is parsed.

        Raises StreamerError(INVALID_REQUEST) for an invalid cursor.
        """
        records = cast("dict[bytes, bytes]", self._redis.hgetall(redis_keys.STREAMS))
        places = [_place(stream_id.decode(), record) for stream_id, record in records.items()]
        chosen, following = page_of(
            places, lambda place: place, len(places) if limit is None else limit, cursor
        )
        if not chosen:
            return [], None
        ids = [stream_id for _, stream_id in chosen]
        statuses = self._redis.mget([redis_keys.status(stream_id) for stream_id in ids])
        found = [
            self._listed(stream_id, records[stream_id.encode()], status)
            for stream_id, status in zip(ids, cast(Iterable[bytes | None], statuses), strict=True)
        ]
        return found, following

    def totals(self) -> tuple[dict[str, int], dict[str, int]]:
        """Return how many streams are in each state, and the sums of the counters of these and of
        all that were detached, which never fall; without reading each record whole."""
        ids = cast(Sequence[bytes], self._redis.hkeys(redis_keys.STREAMS))
        keys = [redis_keys.status(stream_id.decode()) for stream_id in ids]
        # Together: a stream that is detached meanwhile is in one of the two.
        with self._redis.pipeline() as pipeline:
            pipeline.hgetall(redis_keys.DETACHED_COUNTERS)
            if keys:
                pipeline.mget(keys)
            read = pipeline.execute()
        detached = cast("dict[bytes, bytes]", read[0])
        statuses = cast(Sequence[bytes | None], read[1] if keys else [])
        states = Counter[str]()
        sums = {name.decode(): int(count) for name, count in detached.items()}
        silent_since = rfc3339(utc_now() - timedelta(seconds=_MAX_SILENCE))
        for raw in statuses:
            try:
                status = from_json(raw or b"{}")
                state = status.get("state", StreamState.CONNECTING)
                if state in _ATTENDED and (status.get("reported_at") or "") < silent_since:
                    state = StreamState.CONNECTING
                states[str(state)] += 1
                counters = status.get("counters") or {}
                for name in _SUMMED:
                    count = counters.get(name)
                    if count and isinstance(count, int):
                        sums[name] = sums.get(name, 0) + count
            except (ValueError, AttributeError, RecursionError):
                states[StreamState.UNREADABLE.value] += 1
        return dict(states), sums

    def free_name(self, base: str) -> str:
        """Return `base` or, if it is taken, `base-2`, `base-3` and so on: a name that is free, in a
        number of round trips that hardly grows with the number of streams."""
        powers = [1 << power for power in range(32)]
        taken = cast(
            "list[bytes | None]",
            self._redis.hmget(redis_keys.NAMES, [_numbered(base, n) for n in powers]),
        )
        free = next(n for n, owner in zip(powers, taken, strict=True) if owner is None)
        low = free // 2  # taken, or 0
        while free - low > 1:
            middle = (low + free) // 2
            if self._redis.hexists(redis_keys.NAMES, _numbered(base, middle)):
                low = middle
            else:
                free = middle
        return _numbered(base, free)

    def retention_days(self) -> dict[str, float]:
        """Return, by id, the days of the streams whose results have a retention of their own."""
        records = cast("dict[bytes, bytes]", self._redis.hgetall(redis_keys.STREAMS))
        found = {}
        for stream_id, record in records.items():
            with contextlib.suppress(ValueError):
                days = json.loads(record).get("retention_days")
                if isinstance(days, int | float):
                    found[stream_id.decode()] = float(days)
        return found

    def _record(self, ref: str) -> tuple[str, bytes]:
        """Return the id and the stored spec of a stream. Raises StreamerError(UNKNOWN_STREAM)."""
        for stream_id in (ref, self._id_of(ref)):
            if stream_id is not None:
                record = cast(bytes | None, self._redis.hget(redis_keys.STREAMS, stream_id))
                if record is not None:
                    return stream_id, record
        raise self._unknown(ref)

    def _id_of(self, name: str) -> str | None:
        found = cast(bytes | None, self._redis.hget(redis_keys.NAMES, name))
        return found.decode() if found is not None else None

    def _name_of(self, stream_id: str) -> str:
        """Return the name that belongs to an id, or the id: for a record that does not tell."""
        names = cast("dict[bytes, bytes]", self._redis.hgetall(redis_keys.NAMES))
        owned = (name.decode() for name, owner in names.items() if owner == stream_id.encode())
        return next(owned, stream_id)

    def _raw_status(self, stream_id: str) -> bytes | None:
        return cast(bytes | None, self._redis.get(redis_keys.status(stream_id)))

    def _listed(self, stream_id: str, record: bytes, raw_status: bytes | None) -> Stream:
        """Return a stream; of one that cannot be read, what can be read of it and why."""
        try:
            return _stream(_read_spec(record), raw_status)
        except StreamerError as error:
            name = self._name_of(stream_id)
            spec = StreamSpec.read_in_part(record, id=stream_id, name=name, url="", live=True)
            stream = _stream(spec.model_copy(update={"id": stream_id}), raw_status)
            reason = ErrorInfo(code=error.code, message=error.message)
            return stream.model_copy(update={"state": StreamState.UNREADABLE, "error": reason})

    def update(self, ref: str, *, secret_url: str | None = None, **changes: Any) -> Stream:
        """Change fields of the :class:`StreamSpec` of the stream with id or name `ref`, atomically.

        A change of `url` (masked) comes with its `secret_url` (the full URL). The new `url_version`
        shows the ingest worker that one of them has changed.

        Raises StreamerError(UNKNOWN_STREAM | NAME_TAKEN | INVALID_REQUEST | RECORD_UNREADABLE).
        """
        return self.edit(ref, lambda spec: changes, secret_url=secret_url)

    def edit(
        self,
        ref: str,
        change: Callable[[StreamSpec], dict[str, Any]],
        *,
        secret_url: str | None = None,
    ) -> Stream:
        """Like :meth:`update`, with the fields that `change` derives from the current spec.

        If the stream changes concurrently, `change` is called again with the new spec: two callers
        that each add a watch do not undo each other. Raises the errors of :meth:`update`, and
        those of `change`.
        """
        stream_id = self.get(ref).id
        if secret_url is not None:
            self._require_key()
        while True:
            before = cast(bytes | None, self._redis.hget(redis_keys.STREAMS, stream_id))
            if before is None:
                raise self._unknown(ref)
            old = StreamSpec.read(before)
            fields = {**old.model_dump(), **change(old), "id": old.id, "created_at": old.created_at}
            if secret_url is not None:
                fields["url_version"] = old.url_version + 1
            new = validated(StreamSpec, **fields)
            outcome = self._change(
                keys=[
                    redis_keys.NAMES,
                    redis_keys.STREAMS,
                    redis_keys.SECRETS,
                    redis_keys.status(old.id),
                ],
                args=[
                    old.id,
                    before,
                    old.name,
                    new.name,
                    _rewritten(before, old, new),
                    self._box.seal(secret_url) if secret_url is not None else "",
                    json.dumps(_changed(old, new)),
                ],
            )
            if outcome == 0:
                raise self._name_taken(new.name)
            if outcome == 1:
                await_replica(self._redis)
                return self.get(old.id)

    def delete(self, ref: str) -> Stream:
        """Detach stream `ref` (id or name) and return it, as far as it can be read.

        Raises StreamerError(UNKNOWN_STREAM).
        """
        stream_id, record = self._record(ref)
        stream = self._listed(stream_id, record, self._raw_status(stream_id))
        self._delete(
            keys=[
                redis_keys.NAMES,
                redis_keys.STREAMS,
                redis_keys.SECRETS,
                redis_keys.status(stream.id),
                redis_keys.DETACHED_COUNTERS,
            ],
            args=[stream.name, stream.id, *_SUMMED],
        )
        await_replica(self._redis)
        return stream

    def exists(self, stream_id: str) -> bool:
        """Return whether the stream is still attached. Cheap: ingest slots ask often."""
        return bool(self._redis.hexists(redis_keys.STREAMS, stream_id))

    def secret_url(self, stream_id: str) -> str:
        """Return the URL with its password, for opening only.

        A URL that is stored without encryption or with an older key is encrypted again.

        Raises StreamerError(UNKNOWN_STREAM | SECRET_UNREADABLE).
        """
        raw = cast(bytes | None, self._redis.hget(redis_keys.SECRETS, stream_id))
        if raw is None:
            raise StreamerError(
                ErrorCode.UNKNOWN_STREAM, f"The stream '{stream_id}' was detached: attach it again."
            )
        return self._unseal(stream_id, raw.decode())

    def seal_all(self) -> int:
        """Encrypt every secret with the first key; return how many could not be decrypted.

        Ingest workers call this when they start, so that a new key applies to idle streams too.
        From then on, attaching a stream requires that key.
        """
        unreadable = 0
        secrets = cast("dict[bytes, bytes]", self._redis.hgetall(redis_keys.SECRETS))
        secrets.pop(_KEY_CHECK.encode(), None)
        for stream_id, stored in secrets.items():
            try:
                self._unseal(stream_id.decode(), stored.decode())
            except StreamerError:
                unreadable += 1
        if self._box.has_key:
            self._redis.hset(redis_keys.SECRETS, _KEY_CHECK, self._box.seal(_KEY_CHECK))
        elif not unreadable:
            self._redis.hdel(redis_keys.SECRETS, _KEY_CHECK)
        return unreadable

    def _require_key(self) -> None:
        check = cast(bytes | None, self._redis.hget(redis_keys.SECRETS, _KEY_CHECK))
        if check is not None:
            self._box.unseal(check.decode(), "every stream")

    def _unseal(self, stream_id: str, stored: str) -> str:
        url = self._box.unseal(stored, f"stream '{stream_id}'")
        if not self._box.is_current(stored):
            self._reseal(keys=[redis_keys.SECRETS], args=[stream_id, stored, self._box.seal(url)])
        return url

    def status(self, stream_id: str) -> StreamStatus:
        """Return the status of a stream: `connecting` before the first report of a worker."""
        raw = self._raw_status(stream_id)
        return _status(raw, utc_now()) if raw is not None else StreamStatus()

    def save_status(self, stream_id: str, status: StreamStatus, token: int | None = None) -> bool:
        """Store the status; return False, without storing it, if the stream was detached.

        With a `token`, raises Superseded if another worker runs the stream by now.
        """
        (saved,) = self._save({stream_id: (status, token)})
        if saved == -1:
            raise Superseded
        return bool(saved)

    def save_statuses(
        self, statuses: Mapping[str, tuple[StreamStatus, int | None]]
    ) -> builtins.list[str]:
        """Store statuses by stream id, each with the token of its worker, in one round trip. Those
        of streams that were detached are not stored.

        Returns the ids of those that are refused, because another worker runs them by now.
        """
        outcomes = self._save(statuses) if statuses else []
        pairs = zip(statuses, outcomes, strict=True)
        return [stream_id for stream_id, saved in pairs if saved == -1]

    def _save(self, statuses: Mapping[str, tuple[StreamStatus, int | None]]) -> builtins.list[int]:
        keys, args = [redis_keys.STREAMS], builtins.list[str | int]()
        for stream_id, (status, token) in statuses.items():
            error = status.error
            keys += [redis_keys.status(stream_id), Job.key_for(redis_keys.stream_job(stream_id))]
            args += [
                stream_id,
                status.model_dump_json(),
                token or "",
                status.state,
                error.code if error is not None else "",
                error.model_dump_json() if error is not None else "null",
            ]
        return cast("builtins.list[int]", self._save_statuses(keys=keys, args=args))

    @staticmethod
    def _unknown(ref: str) -> StreamerError:
        return StreamerError(
            ErrorCode.UNKNOWN_STREAM,
            f"There is no stream '{ref}': list the streams with `streamer streams`.",
        )

    @staticmethod
    def _name_taken(name: str) -> StreamerError:
        return StreamerError(
            ErrorCode.NAME_TAKEN,
            f"A stream '{name}' already exists: choose another name, or detach that stream first.",
        )


def _numbered(base: str, number: int) -> str:
    return base if number == 1 else f"{base}-{number}"


_MAX_KNOWN = 2048
"""Records of which what was read is kept, as specs seldom change: some kilobytes each."""


@lru_cache(maxsize=_MAX_KNOWN)
def _read_spec(record: bytes) -> StreamSpec:
    """Return a stored spec; do not change it. Raises StreamerError(RECORD_UNREADABLE)."""
    return StreamSpec.read(record)


@lru_cache(maxsize=_MAX_KNOWN)
def _place(stream_id: str, record: bytes) -> tuple[int, str]:
    """Return the place of a stream in lists, which are ordered by when it was attached."""
    try:
        made = datetime.fromisoformat(json.loads(record)["created_at"])
    except (ValueError, KeyError, TypeError, RecursionError):
        return 0, stream_id
    return time_order(made), stream_id


def _stream(spec: StreamSpec, raw_status: bytes | None) -> Stream:
    status = (
        _status(raw_status, spec.created_at)
        if raw_status is not None
        else StreamStatus(since=spec.created_at)
    )
    heard = status.reported_at or spec.created_at
    if status.state in _ATTENDED and (utc_now() - heard).total_seconds() > _MAX_SILENCE:
        status.state, status.since, status.error = StreamState.CONNECTING, heard, _NO_WORKER
    # Both have been validated; to do it once more would take most of the time of a long list.
    return _EMPTY.model_copy(update=spec.__dict__ | status.__dict__)


_EMPTY = Stream.model_construct(name="", url="", live=True)


def _status(raw: bytes, since: datetime) -> StreamStatus:
    """Return a stored status; of one that cannot be read, what can be read of it and why.

    `since` is when its state began, if it does not tell.
    """
    try:
        return StreamStatus.read(raw)
    except StreamerError as error:
        status = StreamStatus.read_in_part(raw, state=StreamState.UNREADABLE, since=since)
        reason = ErrorInfo(code=error.code, message=error.message)
        if status.state is StreamState.UNREADABLE:
            return status.model_copy(update={"error": reason})
        return status.model_copy(update={"warnings": [reason, *status.warnings][:MAX_WARNINGS]})


def _rewritten(before: bytes, old: StreamSpec, new: StreamSpec) -> str:
    """Return `new`, edited from `old`, as JSON. What the edit left as it was stays as it is stored
    in `before`, so that fields which only a newer release knows are kept."""
    stored = json.loads(before)
    fields = new.model_dump(mode="json")
    changed = {name for name in fields if getattr(old, name) != getattr(new, name)}
    if "watches" in changed:
        kept = {
            watch.id: raw for watch, raw in zip(old.watches, stored.get("watches", []), strict=True)
        }
        known = {watch.id: watch for watch in old.watches}
        for index, watch in enumerate(new.watches):
            raw = kept.get(watch.id, {})
            fields["watches"][index] = (
                raw
                if watch == known.get(watch.id)
                else _unknown_fields(raw) | fields["watches"][index]
            )
    return json.dumps(_stored(stored | {name: fields[name] for name in changed}))


def _stored(fields: dict[str, Any]) -> dict[str, Any]:
    """Return the fields of a spec without those that release 0.1.0 refuses, where they say nothing:
    so its ingest workers read streams of this release too."""
    kept = {
        name: value
        for name, value in fields.items()
        if value is not None or name not in _ADDED_TO_STREAMS
    }
    for watch in kept["watches"]:
        for name in _ADDED_TO_WATCHES:
            if watch.get(name) is None:
                watch.pop(name, None)
    return kept


def _changed(old: StreamSpec, new: StreamSpec) -> list[str]:
    """Return the fields that an edit has changed; `url` also if only its password has."""
    changed = {name for name in StreamSpec.model_fields if getattr(old, name) != getattr(new, name)}
    return sorted({"url" if name == "url_version" else name for name in changed})


def _unknown_fields(raw_watch: dict[str, Any]) -> dict[str, Any]:
    fields = with_response_format(raw_watch)
    return {name: value for name, value in fields.items() if name not in Watch.model_fields}


def keep_ids(before: list[Watch], after: list[Watch]) -> list[Watch]:
    """Return `after` with ids of `before`: a watch keeps the id that it has there, and otherwise
    gets the id of one that asks the same."""
    left = {watch.id: watch for watch in before}
    kept: list[Watch] = []
    for watch in after:
        found = left.pop(watch.id, None)
        if found is None:
            same = (k for k in left.values() if k.model_copy(update={"id": watch.id}) == watch)
            found = next(same, None)
        if found is not None:
            left.pop(found.id, None)
            watch = watch.model_copy(update={"id": found.id})
        elif watch.id in {each.id for each in kept}:
            watch = watch.model_copy(update={"id": new_id("wch")})
        kept.append(watch)
    return kept
