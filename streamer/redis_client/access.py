"""Examine what a Redis server lets this program do: version, mode, rights, memory policy, role."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

import redis

from streamer import redis_keys
from streamer.errors import ErrorCode, StreamerError
from streamer.redis_client.errors import trouble_of
from streamer.redis_client.memory_reserve import require_room

MIN_VERSION = (6, 2)

RedisPart = Literal["jobs", "frames"]
"""What a server holds: jobs, results and streams, or frames."""

_OURS = redis_keys.KEY_PREFIX

ADVISED_ACL = f"~rq:* ~{_OURS}* &rq:* &{_OURS}* +@all -@admin -@dangerous +info"
"""Rules of a user that may do what the service needs, and little else."""

_S, _RQ = _OURS + "probe", "rq:probe"

# One command of each sort that the service or RQ sends. None is executed.
_FRAME_COMMANDS = tuple(
    line.split()
    for line in f"""
    GET {_S}|MGET {_S}|SET {_S} 1|UNLINK {_S}|EXISTS {_S}|PTTL {_S}
    PEXPIRE {_S} 1|EXPIRE {_S} 1
    HGET {_S} f|HSET {_S} f 1|HMGET {_S} f|HDEL {_S} f|HINCRBY {_S} f 1
    ZADD {_S} 1 m|ZRANGE {_S} 0 1|ZRANDMEMBER {_S}|ZREM {_S} m|ZCARD {_S}
    XADD {_S} * f 1|XRANGE {_S} - +|XREVRANGE {_S} + -|XLEN {_S}|XDEL {_S} 1-1|XINFO STREAM {_S}
    RPUSH {_S} 1|LRANGE {_S} 0 1|LINDEX {_S} 0|LTRIM {_S} 0 1
    """.replace("\n", "|").split("|")
    if line.strip()
)
_JOB_COMMANDS = tuple(
    line.split()
    for line in f"""
    GET {_S}|MGET {_S}|SET {_S} 1|DEL {_S}|EXISTS {_S}|EXPIRE {_S} 1|TIME
    HSET {_S} f 1|HSETNX {_S} f 1|HGET {_S} f|HVALS {_S}|HEXISTS {_S} f|HDEL {_S} f|HGETALL {_S}
    ZADD {_S} 1 m|ZREM {_S} m|ZRANGE {_S} 0 1|ZREVRANGE {_S} 0 1|ZREMRANGEBYRANK {_S} 0 1
    XADD {_S} * f 1|XTRIM {_S} MAXLEN 1|XREAD STREAMS {_S} 0|XREVRANGE {_S} + -|XACK {_S} g 1-1
    HINCRBY {_S} f 1|HLEN {_S}|HRANDFIELD {_S} 1|ZCARD {_S}|ZRANGEBYSCORE {_S} 0 1|TTL {_S}
    UNLINK {_S}|XPENDING {_S} g|XINFO GROUPS {_S}|XINFO STREAM {_S}|XRANGE {_S} - +
    XINFO CONSUMERS {_S} g|XDEL {_S} 1-1|MEMORY USAGE {_S}
    INCR {_S}
    XREADGROUP GROUP g c STREAMS {_S} >|XGROUP CREATE {_S} g 0|XAUTOCLAIM {_S} g c 0 0
    LPUSH {_S} 1|LTRIM {_S} 0 1|BLPOP {_S} 1|PUBLISH {_S} 1|SUBSCRIBE {_S}
    GET {_RQ}|SET {_RQ} 1|DEL {_RQ}|EXISTS {_RQ}|EXPIRE {_RQ} 1|PERSIST {_RQ}|HSET {_RQ} f 1
    HGETALL {_RQ}|HGET {_RQ} f|HMGET {_RQ} f|HDEL {_RQ} f|HINCRBY {_RQ} f 1|ZRANGE {_RQ} 0 1
    HINCRBYFLOAT {_RQ} f 1|LTRIM {_RQ} 0 1|LPUSH {_RQ} 1|RPUSH {_RQ} 1|LREM {_RQ} 0 1
    LRANGE {_RQ} 0 1|LLEN {_RQ}|LPOS {_RQ} 1|LMOVE {_RQ} {_RQ} LEFT RIGHT|SADD {_RQ} 1|SREM {_RQ} 1
    SMEMBERS {_RQ}|ZADD {_RQ} 1 m|ZREM {_RQ} m|ZSCORE {_RQ} m|ZRANGEBYSCORE {_RQ} 0 1
    ZREMRANGEBYSCORE {_RQ} 0 1|XADD {_RQ} * f 1|XREVRANGE {_RQ} + -|WATCH {_RQ}|MULTI|EXEC
    PUBLISH {_RQ} 1|SUBSCRIBE {_RQ}
    """.replace("\n", "|").split("|")
    if line.strip()
)

# Redis 7 and Valkey tell a script what its user may do; older servers have no such function.
# ARGV: for each command, the number of its words, and they
_DENIED = """
if not redis.acl_check_cmd then return false end
local denied, at = {}, 1
while at <= #ARGV do
  local count, words = tonumber(ARGV[at]), {}
  for i = 1, count do words[i] = ARGV[at + i] end
  local known, allowed = pcall(redis.acl_check_cmd, unpack(words))
  if not known or not allowed then denied[#denied + 1] = words[1] .. ' ' .. (words[2] or '') end
  at = at + count + 1
end
return denied
"""

_MAX_NAMED = 6


@dataclass(frozen=True)
class Lack:
    """Something that a server does not do as the service needs it.

    Attributes:
        kind: `version`, `cluster`, `rights`, `info`, `role`, `eviction` or `maxmemory`.
        message: a sentence that names the cause and what to do.
        fatal: whether the service cannot run without it, and waiting does not help.
    """

    kind: str
    message: str
    fatal: bool = False


def read_info(client: redis.Redis) -> dict[str, Any] | None:
    """Return `INFO`; None if the user may not run it. Raises redis.exceptions.RedisError."""
    try:
        return client.info()
    except redis.exceptions.ResponseError as error:
        if trouble_of(error).kind != "NOPERM":
            raise
        return None


def require_usable(client: redis.Redis) -> None:
    """Raise StreamerError(REDIS_UNAVAILABLE) if the service can never run on the server.

    Raises redis.exceptions.RedisError if it does not answer.
    """
    for lack in _version_and_mode(read_info(client)):
        if lack.fatal:
            raise StreamerError(ErrorCode.REDIS_UNAVAILABLE, lack.message)


def examine_server(client: redis.Redis, parts: Sequence[RedisPart]) -> list[Lack]:
    """Return what the server lacks to hold `parts`; empty if nothing.

    It writes nothing. Raises redis.exceptions.RedisError if the server does not answer.
    """
    info = read_info(client)
    lacks = _version_and_mode(info)
    if info is not None:
        lacks += _role(info) + _memory(info, parts)
    else:
        lacks.append(
            Lack(
                "info",
                "The Redis user may not run INFO, so version and memory are unknown: allow it with "
                "`+info`, or set frames_memory.",
            )
        )
    return lacks + _rights(client, parts)


def _version_and_mode(info: dict[str, Any] | None) -> list[Lack]:
    if info is None:
        return []
    release = str(info.get("redis_version", "0"))
    lacks = []
    numbers = tuple(int(part) for part in release.split(".")[:2] if part.isdigit())
    if numbers < MIN_VERSION:
        lacks.append(
            Lack("version", f"This is Redis {release}: install 6.2 or newer, or Valkey.", True)
        )
    if "cluster" in (info.get("redis_mode"), info.get("server_mode")):
        lacks.append(
            Lack(
                "cluster",
                "Redis runs in cluster mode, which is not supported: name a server without "
                "cluster-enabled (for high availability, one behind Sentinel).",
                True,
            )
        )
    return lacks


def _role(info: dict[str, Any]) -> list[Lack]:
    if info.get("role") != "slave" or int(info.get("slave_read_only", 1)) == 0:
        return []
    return [
        Lack(
            "role",
            "Redis is a read-only replica, so nothing can be stored: name the primary, or let "
            "Sentinel name it.",
        )
    ]


def _memory(info: dict[str, Any], parts: Sequence[RedisPart]) -> list[Lack]:
    policy, limit = str(info.get("maxmemory_policy", "noeviction")), int(info.get("maxmemory", 0))
    if "jobs" in parts and limit and policy != "noeviction":
        return [
            Lack(
                "eviction",
                f"When Redis is full, it may evict jobs and results (policy {policy}): set its "
                "maxmemory-policy to noeviction. The service itself bounds the frames.",
            )
        ]
    if "frames" in parts and not limit:
        return [
            Lack(
                "maxmemory",
                "Redis has no maxmemory, so frames may take a quarter of its machine's memory: set "
                "its maxmemory, or the setting frames_memory.",
            )
        ]
    return []


def require_writable(client: redis.Redis, parts: Sequence[RedisPart]) -> None:
    """Raise redis.exceptions.RedisError if the server does not let the service write now.

    It writes nothing, but the server refuses the command as it would refuse any other.
    """
    client.set(redis_keys.REPLICATED, 1, xx=True, keepttl=True)
    if "jobs" in parts:
        require_room(client)
    if denied := _denied(client, parts):
        raise redis.exceptions.NoPermissionError(f"no permission for {denied[0]}")


def _rights(client: redis.Redis, parts: Sequence[RedisPart]) -> list[Lack]:
    denied = _denied(client, parts)
    if not denied:
        return []
    named = ", ".join(denied[:_MAX_NAMED])
    more = f" and {len(denied) - _MAX_NAMED} more" if len(denied) > _MAX_NAMED else ""
    return [
        Lack(
            "rights",
            f"The Redis user may not do what the service needs ({named}{more}): give it the rules "
            f"`{ADVISED_ACL}`.",
        )
    ]


def _denied(client: redis.Redis, parts: Sequence[RedisPart]) -> list[str]:
    """Return the commands that the user may not run, each with a key or channel."""
    commands = [
        command
        for part, needed in (("jobs", _JOB_COMMANDS), ("frames", _FRAME_COMMANDS))
        if part in parts
        for command in needed
    ]
    arguments = [str(word) for command in commands for word in (len(command), *command)]
    try:
        answer = cast("list[bytes] | None", client.eval(_DENIED, 0, *arguments))
    except redis.exceptions.ResponseError as error:
        if trouble_of(error).kind != "NOPERM":
            raise
        answer = [b"EVAL"]
    return sorted({item.decode().strip() for item in answer or []})
