"""API keys: who may call the HTTP API, and what each caller may do.

A key is 256 random bits, so its SHA-256 is stored: there is nothing to guess, and a slow hash would
cost time at each call. Keys of the setting `api_keys` have all scopes and are not stored.
"""

import ipaddress
import secrets
from hashlib import sha256
from typing import cast

import redis
import structlog
from pydantic import Field

from streamer import redis_keys
from streamer.domain.record import Record
from streamer.domain.scope import Scope
from streamer.domain.timestamp import Timestamp, to_datetime, utc_now
from streamer.errors import ErrorCode, StreamerError
from streamer.redis_client.connections import Connections
from streamer.settings import Settings
from streamer.validation import check_name

MAX_KEYS = 1000
"""Maximum number of stored keys."""

SESSION_SECONDS = 7 * 86400
"""Seconds after which a browser has to sign in again."""

_START = "nvs_"
_SHOWN = 8
"""Characters of a key that lists show, to recognize it by."""

_log = structlog.get_logger(__name__)


class ApiKey(Record):
    """A key, without its secret."""

    name: str
    prefix: str = Field(description="first characters of the key")
    scopes: list[str] = Field(description="what the key may do: read, operate")
    digest: str = Field(description="SHA-256 of the key, hexadecimal")
    created_at: Timestamp = Field(default_factory=utc_now)
    last_used_at: Timestamp | None = Field(
        default=None, description="when it was last used, to about a minute"
    )

    @property
    def may_operate(self) -> bool:
        """Whether the key may change something."""
        return Scope.OPERATE in self.scopes


def digest_of(secret: str) -> str:
    """Return what is stored of a key or of a session."""
    return sha256(secret.encode()).hexdigest()


class ApiKeys:
    """The keys in Redis and in the settings, and the sessions of browsers."""

    def __init__(self, redis: redis.Redis, settings: Settings) -> None:
        self._redis = redis
        self._configured = {
            digest: ApiKey(
                name=f"settings:{digest[:8]}",  # no stored key has a colon in its name
                prefix="",
                scopes=list(Scope),
                digest=digest,
            )
            for digest in map(digest_of, settings.api_keys)
        }

    def add(self, name: str, scopes: list[Scope]) -> tuple[ApiKey, str]:
        """Store a new key and return it with its secret, which cannot be read again.

        Raises StreamerError: NAME_TAKEN; INVALID_REQUEST for an invalid name or at `MAX_KEYS` keys.
        """
        check_name(name)
        if self._redis.hlen(redis_keys.API_KEYS) >= MAX_KEYS:
            raise StreamerError(
                ErrorCode.INVALID_REQUEST,
                f"There are {MAX_KEYS:,} keys, the maximum: revoke one first.",
            )
        secret = _START + secrets.token_urlsafe(32)
        key = ApiKey(
            name=name,
            prefix=secret[: len(_START) + _SHOWN],
            scopes=sorted(scopes, reverse=True),
            digest=digest_of(secret),
        )
        if not self._redis.hsetnx(redis_keys.API_KEYS, name, key.model_dump_json()):
            raise StreamerError(
                ErrorCode.NAME_TAKEN,
                f"A key '{name}' already exists: choose another name, or revoke it first.",
            )
        return key, secret

    def list(self) -> list[ApiKey]:
        """Return the stored keys, oldest first; those that cannot be read are logged."""
        stored = cast("dict[bytes, bytes]", self._redis.hgetall(redis_keys.API_KEYS))
        used = cast("dict[bytes, bytes]", self._redis.hgetall(redis_keys.API_KEYS_USED))
        keys = []
        for name, raw in stored.items():
            try:
                key = ApiKey.read(raw)
            except StreamerError as error:
                _log.warning("api_key_unreadable", name=name.decode(), reason=error.message)
                continue
            if name in used:
                key.last_used_at = to_datetime(float(used[name]))
            keys.append(key)
        return sorted(keys, key=lambda key: key.created_at)

    def revoke(self, name: str) -> None:
        """Delete a key. Raises StreamerError(UNKNOWN_KEY)."""
        if not self._redis.hdel(redis_keys.API_KEYS, name):
            raise StreamerError(
                ErrorCode.UNKNOWN_KEY,
                f"There is no key '{name[:80]}': `streamer keys list` shows the keys.",
            )
        self._redis.hdel(redis_keys.API_KEYS_USED, name)

    @property
    def configured(self) -> dict[str, ApiKey]:
        """The keys of the settings, by digest."""
        return dict(self._configured)

    def by_digest(self) -> dict[str, ApiKey]:
        """Return all keys, those of the settings included, by digest."""
        return {key.digest: key for key in self.list()} | self._configured

    def note_used(self, used: dict[str, float]) -> None:
        """Store when stored keys were last used: epoch seconds by name."""
        known = {key.name for key in self.list()}
        for name in used.keys() & known:
            self._redis.hset(redis_keys.API_KEYS_USED, name, str(used[name]))

    def open_session(self, key: ApiKey) -> str:
        """Begin a session of a browser that has shown `key`; return its token."""
        token = secrets.token_urlsafe(32)
        name = redis_keys.session(digest_of(token))
        self._redis.set(name, key.digest, ex=SESSION_SECONDS)
        return token

    def session_key(self, token: str) -> str | None:
        """Return the digest of the key with which a session was begun; None if there is none."""
        found = cast(bytes | None, self._redis.get(redis_keys.session(digest_of(token))))
        return found.decode() if found is not None else None

    def close_session(self, token: str) -> None:
        """End a session."""
        self._redis.delete(redis_keys.session(digest_of(token)))


def is_loopback(host: str) -> bool:
    """Whether `host`, a name or an address, can only be this machine."""
    if host.lower().rstrip(".") == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def require_keys(settings: Settings) -> None:
    """Raise StreamerError(SETTINGS_INVALID) if other machines could reach the API without a key,
    REDIS_UNAVAILABLE if Redis is needed to tell."""
    if settings.api_keys or is_loopback(settings.api_host):
        return
    try:
        with Connections(settings) as connections:
            if ApiKeys(connections.main, settings).list():
                return
    except StreamerError:
        if settings.redis_url is not None:
            raise
    raise StreamerError(
        ErrorCode.SETTINGS_INVALID,
        f"Without API keys the API listens on 127.0.0.1 only, not on {settings.api_host}: "
        "add a key with `streamer keys add NAME`, set STREAMER_API_KEYS, or omit --host.",
    )
