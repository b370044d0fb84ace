"""What a server does not do as the service needs it, on real servers."""

import contextlib
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from streamer.doctor import redis_server
from streamer.errors import ErrorCode, StreamerError
from streamer.local.redis_server import EmbeddedServer
from streamer.redis_client.access import ADVISED_ACL, examine_server, require_writable
from streamer.redis_client.connections import Connections, connect
from streamer.redis_client.errors import trouble_of
from streamer.redis_client.outage import Outage
from streamer.settings import Settings
from tests.support.moody_redis import MoodyRedis

PASSWORD = "hunter2secret"


@pytest.fixture
def login(valkey: EmbeddedServer, redis_client: redis.Redis) -> Iterator[object]:
    """Return the address of a new user with the given ACL rules."""

    def make(*rules: str) -> str:
        redis_client.execute_command("ACL", "SETUSER", "u", "reset", "on", f">{PASSWORD}", *rules)
        return f"redis://u:{PASSWORD}@127.0.0.1:{valkey.port}/0"

    yield make
    redis_client.execute_command("ACL", "DELUSER", "u")


def lacks(url: str, *parts) -> dict[str, str]:
    with redis.Redis.from_url(url, protocol=2) as client:
        return {
            lack.kind: lack.message for lack in examine_server(client, parts or ("jobs", "frames"))
        }


def test_the_advised_rights_are_enough_and_nothing_is_written(login, redis_client) -> None:
    assert lacks(login(*ADVISED_ACL.split())) == {}
    assert redis_client.keys() == []


@pytest.mark.parametrize(
    ("rules", "kind", "named"),
    [
        ("~* resetchannels +@all", "rights", "SUBSCRIBE"),
        ("~streamer:* &* +@all", "rights", "rq:"),
        ("~rq:* &* +@all", "rights", "streamer:"),
        ("~* &* +@all -xautoclaim", "rights", "XAUTOCLAIM"),
        ("~* &* +@all -@scripting", "rights", "EVAL"),
        ("~* &* +@all -info", "info", "+info"),
    ],
)
def test_a_missing_right_is_one_sentence_that_names_it(login, rules, kind, named) -> None:
    url = login(*rules.split())
    found = lacks(url)
    assert set(found) == {kind}
    assert named in found[kind]
    checks = list(redis_server.servers(Settings(redis_url=url)))
    (check,) = (check for check in checks if check.name == "redis user")
    assert check.state == ("warn" if kind == "info" else "fail")
    assert named in check.message


def test_frames_need_fewer_rights_than_jobs(login) -> None:
    url = login("~streamer:*", "+@all", "resetchannels")
    assert lacks(url, "frames") == {}
    assert set(lacks(url, "jobs")) == {"rights"}


def test_without_info_the_service_works_and_assumes_little_memory(login, tmp_path) -> None:
    url = login("~*", "&*", "+@all", "-info")
    with Connections(Settings(redis_url=url, data_dir=tmp_path)) as connections:
        assert connections.frame_memory == 512 << 20
        (sentence,) = connections.lacks()
    assert "INFO" in sentence


def test_a_cluster_is_refused_with_a_sentence(tmp_path: Path) -> None:
    with (
        EmbeddedServer(
            tmp_path / "cluster",
            persistent=False,
            max_memory=None,
            extra_config=["cluster-enabled yes"],
        ) as server,
        pytest.raises(StreamerError, match="cluster mode") as caught,
    ):
        connect(server.url)
    assert caught.value.code is ErrorCode.REDIS_UNAVAILABLE


def test_a_unix_socket_works(tmp_path_factory) -> None:
    folder = tmp_path_factory.mktemp("s")  # the path of a socket must be short
    path = folder / "redis.sock"
    with EmbeddedServer(
        folder / "u", persistent=False, max_memory=None, extra_config=[f"unixsocket {path}"]
    ) as server:
        url = f"unix://:{server.url.split(':')[2].split('@')[0]}@{path}?db=0"
        with connect(url) as client:
            assert client.ping()


def test_tls_on_a_plain_port_says_so_within_one_time_out(valkey: EmbeddedServer) -> None:
    with pytest.raises(StreamerError, match="write redis:// instead of rediss://"):
        connect(f"rediss://127.0.0.1:{valkey.port}/0")


def test_a_server_that_takes_every_connection_and_says_nothing_is_given_up_once() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        accepted = []

        def accept() -> None:
            with contextlib.suppress(OSError):
                while True:
                    accepted.append(silent.accept())

        threading.Thread(target=accept, daemon=True).start()
        url = f"redis://127.0.0.1:{silent.getsockname()[1]}/0"
        with pytest.raises(StreamerError, match="does not answer"):
            connect(url)
        assert len(accepted) == 1
    for connection, _ in accepted:
        connection.close()


def test_a_program_waits_for_a_server_that_loads_and_a_command_does_not(tmp_path: Path) -> None:
    with MoodyRedis(tmp_path) as moody:
        opened = []
        outage = Outage(first_pause=0.01, max_pause=0.05)
        with moody.refusing("LOADING"):
            with pytest.raises(StreamerError, match="loading its data"):
                connect(moody.url)
            program = threading.Thread(target=lambda: opened.append(connect(moody.url, outage)))
            program.start()
            deadline = time.monotonic() + 120
            while outage.reason is None and time.monotonic() < deadline:
                time.sleep(0.01)
            assert outage.reason is not None
        program.join(60)
        assert outage.reason is None
        with opened[0] as client:
            require_writable(client, ("jobs", "frames"))


def test_a_replica_is_named_by_the_doctor(tmp_path: Path) -> None:
    with MoodyRedis(tmp_path) as moody, moody.refusing("READONLY"):
        assert "role" in lacks(moody.url)
        checks = list(redis_server.servers(Settings(redis_url=moody.url)))
    (check,) = (check for check in checks if check.name == "redis writes")
    assert check.state == "fail"
    assert "read-only replica" in check.message


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        ("ERR Error running script (call to f_1): @user_script:1: -READONLY You can't", "READONLY"),
        ("Command # 1 (SET k OOM) of pipeline caused error: NOREPLICAS Not enough", "NOREPLICAS"),
        ("UNBLOCKED force unblock from blocking operation, instance state changed", "UNBLOCKED"),
        ("ERR max daily request limit exceeded. Limit: 10000", "REFUSED"),
        ("WRONGTYPE Operation against a key holding the wrong kind of value", "BUG"),
        ("BUSYGROUP Consumer Group name already exists", "BUG"),
        ("ERR unknown command 'LMOVE'", "BUG"),
    ],
)
def test_errors_that_no_class_of_redis_py_tells_apart(error: str, kind: str) -> None:
    trouble = trouble_of(redis.exceptions.ResponseError(error))
    assert trouble.kind == kind
    assert trouble.passes == (kind != "BUG")
