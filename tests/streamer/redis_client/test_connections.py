import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess

import pytest
import redis

from streamer.errors import ErrorCode, StreamerError
from streamer.local.redis_server import EmbeddedServer
from streamer.redis_client.connections import (
    Connections,
    connect,
    read_run_file,
    run_file_path,
)
from streamer.settings import Settings
from tests.support.clocks import ManualClock


def write_run_file(settings, **values):
    run_file_path(settings).parent.mkdir(parents=True, exist_ok=True)
    run_file_path(settings).write_text(json.dumps(values))


def test_connect_answers_bytes(valkey):
    with connect(valkey.url) as client:
        client.set("key", "value")
        assert client.get("key") == b"value"


@pytest.mark.skipif(not hasattr(socket, "TCP_USER_TIMEOUT"), reason="Linux only")
def test_a_machine_that_vanishes_is_noticed_by_the_kernel(valkey):
    with connect(valkey.url) as client:
        connection = client.connection_pool.get_connection()
        options = {
            name: connection._sock.getsockopt(socket.IPPROTO_TCP, getattr(socket, name))
            for name in ("TCP_KEEPIDLE", "TCP_KEEPINTVL", "TCP_KEEPCNT", "TCP_USER_TIMEOUT")
        }
        assert connection._sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        client.connection_pool.release(connection)
    silent = options["TCP_KEEPIDLE"] + options["TCP_KEEPINTVL"] * options["TCP_KEEPCNT"]
    assert 0 < silent <= 15
    assert 0 < options["TCP_USER_TIMEOUT"] <= 15_000


def test_a_server_that_is_not_there_is_one_sentence_without_the_password():
    with pytest.raises(StreamerError) as caught:
        connect("redis://:s3cret@127.0.0.1:1/0")
    assert caught.value.code is ErrorCode.REDIS_UNAVAILABLE
    assert "does not answer" in caught.value.message
    assert "s3cret" not in caught.value.message
    assert "\n" not in caught.value.message


def test_a_wrong_password_is_called_so(valkey):
    with pytest.raises(StreamerError, match="refused the password") as caught:
        connect(f"redis://:wr0ng@127.0.0.1:{valkey.port}/0")
    assert "wr0ng" not in caught.value.message


def test_an_address_that_is_none_says_how_one_looks():
    with pytest.raises(StreamerError, match="redis://host:6379/0"):
        connect("http://:s3cret@example.org")


def test_without_settings_the_run_file_of_a_local_installation_is_used(valkey, tmp_path):
    settings = Settings(data_dir=tmp_path)
    write_run_file(settings, redis_url=valkey.url, frames_redis_url=valkey.url)
    with Connections(settings) as connections:
        assert connections.main.ping()
        assert connections.frames is not connections.main


def test_the_sockets_of_a_local_installation_are_preferred(valkey, tmp_path):
    # given a run file with a socket that is there, and one that is not
    assert valkey.socket_url is not None
    gone = f"unix://:secret@{tmp_path}/gone.sock?db=0"
    settings = Settings(data_dir=tmp_path)
    write_run_file(
        settings,
        redis_url="redis://127.0.0.1:1/0",
        redis_socket_url=valkey.socket_url,
        frames_redis_url=valkey.url,
        frames_redis_socket_url=gone,
    )
    # then programs use the first, and the port instead of the second
    assert read_run_file(settings)["redis_url"] == valkey.socket_url
    assert read_run_file(settings)["frames_redis_url"] == valkey.url
    with Connections(settings) as connections:
        assert connections.main.ping()
        assert connections.frames.ping()


def test_a_socket_that_outlived_its_server_means_nothing_is_running(tmp_path):
    # given the run file of an installation that was killed with its server
    server = EmbeddedServer(tmp_path / "main", persistent=False, max_memory=None)
    server.start()
    run = {"redis_url": server.url, "redis_socket_url": server.socket_url}
    assert server.pid is not None
    os.kill(server.pid, signal.SIGKILL)
    server.stop()
    assert (tmp_path / "main" / "server.sock").exists()
    settings = Settings(data_dir=tmp_path)
    write_run_file(settings, **run)
    # then programs say so
    with pytest.raises(StreamerError, match=r"start `streamer up`"):
        Connections(settings)
    with pytest.raises(StreamerError, match="does not answer") as caught:
        connect(str(run["redis_socket_url"]))
    assert server.url.split(":")[2].split("@")[0] not in caught.value.message


@pytest.mark.parametrize("content", [None, "", "{", "[]", '{"redis_url": 1}'])
def test_without_a_readable_run_file_nothing_is_running(tmp_path, content):
    settings = Settings(data_dir=tmp_path)
    if content is not None:
        run_file_path(settings).write_text(content)
    with pytest.raises(StreamerError, match=r"start `streamer up`") as caught:
        Connections(settings)
    assert caught.value.code is ErrorCode.REDIS_UNAVAILABLE


def test_a_run_file_that_may_not_be_read_says_so(tmp_path, monkeypatch):
    settings = Settings(data_dir=tmp_path)
    path = run_file_path(settings)
    path.mkdir()  # also root, who may read everything, cannot read a directory as a file
    with pytest.raises(StreamerError) as caught:
        Connections(settings)
    assert "Nothing is running" not in caught.value.message
    assert str(path) in caught.value.message
    assert "cannot be read" in caught.value.message


@pytest.fixture
def small_disk(tmp_path):
    """A folder on a file system of 2 MB."""
    folder = tmp_path / "small"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(folder)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("this user may not mount a small file system")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True, capture_output=True)


def test_on_a_full_disk_the_reason_is_given(small_disk, eventually):
    """Redis then refuses even PING, which was taken for a server that is not there."""
    server = EmbeddedServer(small_disk / "main", persistent=True, max_memory=1 << 28)
    settings = Settings(data_dir=small_disk)
    server.start()
    try:
        write_run_file(settings, redis_url=server.url)
        with contextlib.suppress(OSError), open(small_disk / "filler", "wb", 0) as filler:
            while True:
                filler.write(bytes(4096))
        with redis.Redis.from_url(server.url, protocol=2) as client:

            def refuses():
                try:
                    client.set("key", "x" * 1000)
                except redis.exceptions.ResponseError:
                    return True
                return False

            eventually(refuses)
        with pytest.raises(StreamerError) as caught:
            Connections(settings)
    finally:
        server.stop()
    assert caught.value.code is ErrorCode.REDIS_UNAVAILABLE
    assert "Nothing is running" not in caught.value.message
    assert "make room on its disk" in caught.value.message


def test_a_run_file_that_outlived_its_server_means_nothing_is_running(tmp_path):
    settings = Settings(data_dir=tmp_path)
    write_run_file(settings, redis_url="redis://127.0.0.1:1/0")
    with pytest.raises(StreamerError, match=r"start `streamer up`"):
        Connections(settings)


def test_frames_share_the_main_server_unless_told_otherwise(valkey, tmp_path):
    with Connections(Settings(redis_url=valkey.url)) as connections:
        assert connections.frames is connections.main


def test_closing_gives_the_sockets_back(valkey):
    connections = Connections(Settings(redis_url=valkey.url, frames_redis_url=valkey.url))
    ids = [c.client_id() for c in (connections.main, connections.frames)]
    connections.close()
    with redis.Redis.from_url(valkey.url, protocol=2) as observer:
        living = {int(client["id"]) for client in observer.client_list()}
    assert not living & set(ids)


def test_connections_that_nobody_uses_are_closed_after_minutes(settings, redis_client):
    def number() -> int:
        return len(redis_client.client_list())

    clock = ManualClock()
    others = number()
    with Connections(settings, machine=clock) as connections:
        # given threads that have all been busy at the same moment
        pool = connections.main.connection_pool
        busy = [pool.get_connection() for _ in range(10)]
        for connection in busy[1:]:
            pool.release(connection)
        assert number() == others + 10
        # when some minutes have passed, then only what is in use is left
        clock.sleep(60)
        connections.clock.measure()
        assert number() == others + 10
        clock.sleep(300)
        connections.clock.measure()
        assert number() == others + 1
        # and all of them can be used again
        assert connections.main.ping()
        pool.release(busy[0])
        assert connections.main.ping()
