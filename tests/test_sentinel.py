"""A real failover by Sentinel: nothing that was accepted is lost."""

import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import psutil
import pytest
import redis
from redis.sentinel import SentinelConnectionPool

from nvila_core.resolution.policy import Measures
from streamer.domain.query import QueryStatus
from streamer.domain.stream import StreamSpec
from streamer.errors import StreamerError
from streamer.media.urls import redact
from streamer.redis_client.address import SentinelAddress, open_redis
from streamer.redis_client.connections import connect
from streamer.service import Service
from streamer.settings import Settings
from tests.support.sentinel import ENCODED, PASSWORD, SentinelSite

Eventually = Callable[..., None]


@pytest.fixture
def site(tmp_path: Path) -> Iterator[SentinelSite]:
    with SentinelSite(tmp_path) as started:
        yield started


@pytest.fixture
def client(site: SentinelSite, tmp_path: Path) -> Iterator[Service]:
    with Service(Settings(redis_url=site.url, data_dir=tmp_path / "data")) as opened:
        yield opened


@pytest.mark.slow
def test_a_failover_loses_nothing_that_was_accepted(
    site: SentinelSite,
    client: Service,
    random_checkpoint: Path,
    worker_process,
    eventually: Eventually,
) -> None:
    # given workers, and somebody who asks without a pause
    spec = StreamSpec(name="yard", url="rtsp://yard/", live=True)
    client.registry.create(spec, spec.url)
    environment = {"STREAMER_REDIS_URL": site.url, "STREAMER_LEASE": "4"}
    worker = worker_process("gpu", STREAMER_MODEL=str(random_checkpoint), **environment)
    recorder = worker_process("recorder", **environment)
    jpeg = cv2.imencode(".jpg", np.zeros((24, 32, 3), np.uint8))[1].tobytes()
    accepted: list[str] = []
    stopping = threading.Event()

    def ask() -> None:
        while not stopping.is_set():
            try:
                client.frames.put(
                    spec.id, jpeg, Measures(32, 24, change=0.0), time=time.time(), pts=0.0
                )
                accepted.append(client.ask("Anyone?", "yard", max_tokens=2).id)
            except (redis.exceptions.RedisError, StreamerError):
                stopping.wait(0.1)
            stopping.wait(0.05)

    asking = threading.Thread(target=ask)
    asking.start()
    eventually(lambda: len(accepted) > 20)
    # when the primary dies
    old = site.primary()
    site.kill_primary()
    before = len(accepted)
    eventually(lambda: site.primary() != old, message="no failover")
    eventually(lambda: len(accepted) > before + 20, message="nothing is accepted any more")
    stopping.set()
    asking.join(60)
    # then every question that was accepted is answered and recorded, by the same processes
    for query_id in accepted:
        query = client.query(query_id, wait=60)
        assert query.status is QueryStatus.DONE, query
    eventually(lambda: all(client.timeline.get(query_id) for query_id in accepted))
    for process in (worker, recorder):
        assert process.process.poll() is None
        assert "Traceback" not in process.output
        assert PASSWORD not in process.output
        assert ENCODED not in process.output


@pytest.mark.slow
def test_a_primary_that_comes_back_takes_nothing_that_it_loses(
    site: SentinelSite, client: Service, eventually: Eventually
) -> None:
    # given a primary that was frozen while another took its place
    first = StreamSpec(name="yard-0", url="rtsp://yard/", live=True)
    client.registry.create(first, first.url)  # the connection to it stays open
    old = site.primary()
    site.signal(old, signal.SIGSTOP)
    eventually(lambda: site.primary() != old, message="no failover")
    # when streams are attached as soon as it runs again, which it begins as a primary
    site.signal(old, signal.SIGCONT)
    accepted, refused = {"yard-0"}, 0
    for number in range(1, 40):
        spec = StreamSpec(name=f"yard-{number}", url="rtsp://yard/", live=True)
        try:
            client.registry.create(spec, spec.url)
            accepted.add(spec.name)
        except redis.exceptions.RedisError:
            refused += 1
        time.sleep(0.01)
    # then none that was accepted is gone when it has learned its place
    eventually(lambda: site.link(old) == "up", message="the old primary is no replica")
    assert {stream.name for stream in client.registry.list()} == accepted
    assert len(accepted) > 1


@pytest.mark.slow
def test_threads_that_ask_at_once_forget_no_sentinel_and_keep_no_connection(
    site: SentinelSite, monkeypatch: pytest.MonkeyPatch
) -> None:
    with open_redis(site.url, connect_timeout=2, timeout=5) as client:
        pool = client.connection_pool
        assert isinstance(pool, SentinelConnectionPool)
        first, second, third = pool.sentinel_manager.sentinels
        ports = {each.connection_pool.connection_kwargs["port"] for each in (first, second, third)}
        # given a Sentinel that is away, and threads that have the answer of the next one together
        site.signal(first.connection_pool.connection_kwargs["port"], signal.SIGKILL)
        together, ask = threading.Barrier(4), second.sentinel_masters

        def answer() -> Any:
            answered = ask()
            together.wait(60)
            return answered

        monkeypatch.setattr(second, "sentinel_masters", answer)
        threads = [threading.Thread(target=pool.get_master_address) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        # then all three are known still
        assert set(pool.sentinel_manager.sentinels) == {first, second, third}
        remotes = [each.raddr for each in psutil.Process().net_connections() if each.raddr]
        assert not [remote for remote in remotes if remote.port in ports]
        # and the last one is asked when the second is away too
        site.signal(second.connection_pool.connection_kwargs["port"], signal.SIGKILL)
        monkeypatch.undo()
        assert client.ping()


def test_an_address_behind_sentinel_names_hosts_service_database_and_logins() -> None:
    address = SentinelAddress.parse(
        "rediss+sentinel://me:p%40ss@a,b:26380,[::1]:7/main/3?sentinel_password=x"
    )
    assert address.hosts == (("a", 26379), ("b", 26380), ("::1", 7))
    assert (address.service, address.db, address.tls) == ("main", 3, True)
    assert address.login == {"username": "me", "password": "p@ss"}
    assert address.sentinel_login == {"password": "x"}


@pytest.mark.parametrize(
    "url",
    [
        "redis+sentinel://:s3cret@/mymaster",
        "redis+sentinel://:s3cret@a:1",
        "redis+sentinel://:s3cret@a/m/x",
        "redis+sentinel://:s3cret@a/m?sentinel_passwort=s3cret",
    ],
)
def test_an_address_that_lacks_something_is_one_sentence_without_the_password(url: str) -> None:
    with pytest.raises(StreamerError, match="is not a Redis address") as caught:
        connect(url)
    assert "s3cret" not in caught.value.message


def test_the_passwords_of_an_address_are_masked() -> None:
    url = f"redis+sentinel://me:{ENCODED}@a:26379,b:26379/m/0?sentinel_password=s3cret"
    assert redact(url) == "redis+sentinel://me:***@a:26379,b:26379/m/0?sentinel_password=***"
