"""The client answers as redis-py's own does, whatever happens to its connections."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import redis

from streamer.local.redis_server import EmbeddedServer
from streamer.redis_client.address import open_redis
from tests.support.fork_server import run_python
from tests.support.installation import clean_environment

FORKED = """
import os, sys
from streamer.redis_client.address import open_redis

client = open_redis(sys.argv[1], connect_timeout=5.0, timeout=5.0)
own = client.client_id()
if os.fork() == 0:
    os._exit(0 if client.client_id() != own else 1)
_, status = os.wait()
print(os.waitstatus_to_exitcode(status), client.client_id() == own)
"""


@pytest.fixture(params=["port", "socket"])
def client(valkey: EmbeddedServer, request: pytest.FixtureRequest) -> Iterator[redis.Redis]:
    """A client that sends nothing a second time."""
    url = valkey.url if request.param == "port" else valkey.local_url
    with open_redis(url, connect_timeout=5.0, timeout=5.0) as opened:
        yield opened


def test_a_connection_is_used_again(client: redis.Redis) -> None:
    assert len({client.client_id() for _ in range(3)}) == 1
    with client.pipeline() as pipeline:
        pipeline.client_id()
        assert pipeline.execute() == [client.client_id()]


def test_a_connection_that_the_server_has_closed_is_not(client: redis.Redis) -> None:
    # given a connection that the server closes while nobody uses it
    with client.client() as other:
        own = client.client_id()
        assert other.execute_command("CLIENT", "KILL", "ID", own) == 1
    # then the next command goes by another one
    assert client.client_id() != own


def test_a_connection_with_a_reply_that_nobody_read_is_not(client: redis.Redis) -> None:
    # given a thread that was interrupted before it read the reply
    connection = client.connection_pool.get_connection()
    connection.send_command("ECHO", "of the other")
    assert connection.can_read(timeout=5.0)
    client.connection_pool.release(connection)
    # then the next command gets its own
    assert client.echo("mine") == b"mine"


def test_idle_connections_are_closed_and_those_in_use_are_not(client: redis.Redis) -> None:
    with client.client() as held, client.client() as asked:
        busy, idle = held.client_id(), client.client_id()
        client.connection_pool.disconnect(inuse_connections=False)
        ids = {int(each["id"]) for each in asked.client_list()}
        assert idle not in ids
        assert busy in ids
        assert held.client_id() == busy


def test_each_thread_gets_its_own_answers(client: redis.Redis) -> None:
    def echo(text: str) -> bool:
        return all(client.echo(text) == text.encode() for _ in range(50))

    with ThreadPoolExecutor(16) as threads:
        assert all(threads.map(echo, (f"text {n}" for n in range(64))))


def test_a_forked_process_connects_for_itself(valkey: EmbeddedServer) -> None:
    done = run_python(["-c", FORKED, valkey.local_url], env=clean_environment())
    assert done.stdout.split() == ["0", "True"], done.stderr


def test_a_script_that_the_server_does_not_know_is_loaded(client: redis.Redis) -> None:
    script = client.register_script("return {KEYS[1], ARGV[1], ARGV[2]}")
    client.script_flush()
    assert script(keys=["k"], args=["a", 1]) == [b"k", b"a", b"1"]
    # and in a pipeline too
    client.script_flush()
    with client.pipeline() as pipeline:
        script(keys=["k"], args=["a", 2], client=pipeline)
        assert pipeline.execute() == [[b"k", b"a", b"2"]]


def test_commands_may_have_words_of_all_kinds(client: redis.Redis) -> None:
    assert client.set("packed", memoryview(b"bytes"))
    assert client.get(b"packed") == b"bytes"
    assert client.set("packed", 1.5, ex=10)
    assert client.get("packed") == b"1.5"
    assert client.delete("packed") == 1
    assert client.execute_command("CONFIG GET", "maxmemory-policy")
    assert client.set("packed", "ä\0 b")
    assert client.getdel("packed") == "ä\0 b".encode()
    with pytest.raises(redis.exceptions.DataError):
        client.set("packed", None)  # type: ignore[arg-type]
