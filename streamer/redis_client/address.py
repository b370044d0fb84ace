"""Open a client for the address of a Redis: TCP, TLS, Unix socket, or a name behind Sentinel."""

import copy
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

import redis
from redis.backoff import ExponentialWithJitterBackoff
from redis.retry import Retry
from redis.sentinel import Sentinel, SentinelConnectionPool

from streamer import redis_keys

SENTINEL_SCHEMES = ("redis+sentinel", "rediss+sentinel")

FORMS = (
    "redis://host:6379/0, rediss://host:6379/0 (TLS), unix:///path/redis.sock or "
    "redis+sentinel://host:26379,host2:26379/mymaster/0"
)
"""What an address may look like."""

_SENTINEL_PORT = 26379

_DRIVER = redis.DriverInfo()
"""The client's name and version that servers receive. Otherwise each connection would look it up in
the metadata of the package, which takes ten times as long as connecting."""

# A machine that vanishes is noticed after about ten seconds, whether the connection waits for an
# answer or is idle. For a frozen server the kernel still answers: there the time-out counts.
_KEEPALIVE: dict[str, Any] = {
    "socket_keepalive": True,
    "socket_keepalive_options": {
        getattr(socket, name): value
        for name, value in (
            ("TCP_KEEPIDLE", 5),
            ("TCP_KEEPINTVL", 2),
            ("TCP_KEEPCNT", 3),
            ("TCP_USER_TIMEOUT", 10_000),  # milliseconds; Linux only
        )
        if hasattr(socket, name)
    },
}


@dataclass(frozen=True)
class SentinelAddress:
    """A Redis whose current primary the Sentinels at `hosts` know as `service`.

    It is written `redis+sentinel://[user:password@]host[:port][,host[:port]...]/service[/db]`.
    User and password are those of the Redis servers; `?sentinel_username=` and
    `?sentinel_password=` are those of the Sentinels. With `rediss+sentinel://` all connections use
    TLS.
    """

    hosts: tuple[tuple[str, int], ...]
    service: str
    db: int
    login: dict[str, str]
    sentinel_login: dict[str, str]
    tls: bool

    @classmethod
    def parse(cls, url: str) -> "SentinelAddress":
        """Parse a URL. Raises ValueError if it is none."""
        parts = urlsplit(url)
        user, _, hosts = parts.netloc.rpartition("@")
        service, _, db = parts.path.strip("/").partition("/")
        options = dict(parse_qsl(parts.query))
        unknown = sorted(set(options) - {"sentinel_username", "sentinel_password"})
        if parts.scheme not in SENTINEL_SCHEMES or not hosts or not service or unknown:
            raise ValueError("not the address of a service behind Sentinel")
        name, _, password = user.partition(":")
        login = {"username": unquote(name), "password": unquote(password)}
        sentinel_login = {
            key.removeprefix("sentinel_"): value for key, value in options.items() if value
        }
        return cls(
            hosts=tuple(_host_and_port(host) for host in hosts.split(",")),
            service=unquote(service),
            db=int(db or 0),
            login={key: value for key, value in login.items() if value},
            sentinel_login=sentinel_login,
            tls=parts.scheme.startswith("rediss"),
        )


def _host_and_port(text: str) -> tuple[str, int]:
    parts = urlsplit(f"//{text}")
    if not parts.hostname:
        raise ValueError("a host is missing")
    return parts.hostname, parts.port or _SENTINEL_PORT


def open_redis(
    url: str, *, connect_timeout: float, timeout: float, retries: int = 0
) -> redis.Redis:
    """Return a client of the Redis at `url`, which connects on first use and gives bytes.

    `connect_timeout` and `timeout` are seconds. A command whose connection breaks is sent again up
    to `retries` times. Raises ValueError if `url` is no address.
    """
    options: dict[str, Any] = {
        "socket_connect_timeout": connect_timeout,
        "socket_timeout": timeout,
        "health_check_interval": 15,
        "decode_responses": False,
        "protocol": 2,
        "driver_info": _DRIVER,
    }
    scheme = urlsplit(url).scheme
    if scheme in SENTINEL_SCHEMES:
        return _open_sentinel(SentinelAddress.parse(url), options, retries)
    if scheme != "unix":
        options |= _KEEPALIVE
    client: redis.Redis = redis.Redis.from_url(url, retry=_retry(retries), **options)
    return client


def _open_sentinel(address: SentinelAddress, options: dict[str, Any], retries: int) -> redis.Redis:
    common = {**options, **_KEEPALIVE}
    if address.tls:
        common["ssl"] = True
    sentinels: Sentinel = _Sentinels(
        address.hosts,
        {
            **common,
            **address.sentinel_login,
            "socket_timeout": options["socket_connect_timeout"],
            "retry": _retry(0),
        },
    )
    # The pool asks Sentinel at each new connection, and tries that as often as a command.
    client: redis.Redis = sentinels.master_for(
        address.service,
        **common,
        **address.login,
        db=address.db,
        retry=_retry(min(retries, 1)),
    )
    return client


class _Sentinels(Sentinel):
    """Sentinels that many threads ask at once, each time a connection to the primary is opened.

    Args:
        hosts: their addresses.
        options: of the connections to them.
    """

    def __init__(self, hosts: Sequence[tuple[str, int]], options: dict[str, Any]) -> None:
        Sentinel.__init__(self, hosts, sentinel_kwargs=options)

    def discover_master(self, service_name: str) -> Any:
        """Return the address of the primary. Raises redis.sentinel.MasterNotFoundError."""
        # It puts the one that answers first: two threads that do so in one list lose another one.
        asked = copy.copy(self)
        asked.sentinels = list(self.sentinels)
        try:
            address = Sentinel.discover_master(asked, service_name)
        finally:
            for client in asked.sentinels:  # else each keeps a connection for every thread
                client.connection_pool.disconnect(inuse_connections=False)
        self.sentinels = asked.sentinels
        return address


def _retry(retries: int) -> Retry:
    return Retry(ExponentialWithJitterBackoff(base=0.02, cap=1.0), retries=retries)


def await_replica(client: redis.Redis, milliseconds: int = 500) -> None:
    """Wait until a replica has everything that was written so far, if `client` is behind Sentinel.

    A failover then loses nothing that was accepted before. Without a replica that keeps up,
    the call returns after `milliseconds`: refusing work then is up to `min-replicas-to-write`.

    Raises redis.exceptions.ConnectionError where another server has become the primary: one that
    comes back takes writes for a moment, which are lost when it learns of that.
    """
    pool = client.connection_pool
    if not isinstance(pool, SentinelConnectionPool):
        return
    # WAIT counts the writes of its own connection, so it needs one that comes last.
    with client.client() as single:
        single.set(redis_keys.REPLICATED, 1, ex=60)
        if single.execute_command("WAIT", 1, milliseconds):
            return
        asked = (single.connection.host, single.connection.port)
    if pool.get_master_address() != asked:
        raise redis.exceptions.ConnectionError(
            "The Redis server that took this write is not the primary any more: try again."
        )
