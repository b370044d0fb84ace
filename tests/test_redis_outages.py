"""`streamer up` on a Redis that refuses work: every program waits, says so once and goes on."""

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from streamer.demo.loopback_camera import LoopbackCamera
from tests.support.installation import Up
from tests.support.moody_redis import KINDS, PASSWORD, MoodyRedis

Eventually = Callable[..., None]

WAITING_AT_FIRST = ("recorder", "model-worker", "ingest-worker")
PROGRAMS = ("api", "recorder", "model-worker", "ingest-worker")

SAYS = {
    "READONLY": "read-only replica",
    "MASTERDOWN": "read-only replica|lost its primary",
    "OOM": "Redis is full",
    "NOREPLICAS": "min-replicas-to-write",
    "NOPERM": "lacks a right",
    "MISCONF": "cannot save its data",
    "BUSY": "busy with a script",
    "MAXCLIENTS": "maxclients",
    "LOADING": "loading its data",
    "CLUSTERDOWN": "cluster is down",
    "TRYAGAIN": "moving keys",
    "INPROG": "Failover already in progress",
}
"""What the API says of each refusal: one of these."""


QUICK = {"READONLY"}
"""The refusals of the default suite; tests/streamer/redis_client/test_access.py meets the
others."""


class Service:
    """A running installation on a moody Redis, with a stream, and what its programs log.

    `first_output` is what they logged until the first question was accepted.
    """

    def __init__(self, up: Up, redis: MoodyRedis) -> None:
        self.up = up
        self.redis = redis
        self.first_output = ""
        self.api = httpx.Client(base_url=up.api_url, timeout=60)
        self._read = dict.fromkeys(PROGRAMS, 0)

    def log(self, program: str) -> list[dict[str, Any]]:
        """Return the events that a program has logged since `forget`."""
        lines = self.log_text(program).splitlines()[self._read[program] :]
        return [json.loads(line) for line in lines if line.startswith("{")]

    def log_text(self, program: str) -> str:
        path = self.up.data_dir / "logs" / f"{program}.log"
        return path.read_text()

    def wait_settled(self) -> None:
        """Wait until questions are accepted and every outage that was logged has ended."""
        deadline = time.monotonic() + 240
        while self.ask().status_code != 202 or not self._settled():
            assert time.monotonic() < deadline, self.up.output
            time.sleep(0.1)

    def _settled(self) -> bool:
        output = self.up.output
        return output.count("outage_began") == output.count("outage_ended")

    def forget(self) -> None:
        """Forget what was logged so far."""
        self._read = {program: len(self.log_text(program).splitlines()) for program in PROGRAMS}

    def count(self, program: str, event: str) -> int:
        return [entry["event"] for entry in self.log(program)].count(event)

    def ended(self, program: str) -> bool:
        """Return whether a program has said of each outage that it is over."""
        return self.count(program, "outage_began") == self.count(program, "outage_ended")

    def ask(self) -> httpx.Response:
        question = {"stream": "yard", "prompt": "Anyone?", "max_tokens": 2}
        return self.api.post("/v1/queries", json=question)

    def answer(self, query_id: str) -> dict[str, Any]:
        body: dict[str, Any] = self.api.get(f"/v1/queries/{query_id}", params={"wait": 30}).json()
        return body

    def recorded(self) -> set[str]:
        page = self.api.get("/v1/results", params={"limit": 1000}).json()
        return {result["request_id"] for result in page["results"]}

    def sampled(self) -> int:
        return int(self.api.get("/v1/streams").json()["streams"][0]["counters"]["sampled"])


@pytest.fixture(scope="module")
def service(
    tmp_path_factory: pytest.TempPathFactory, random_checkpoint: Path, loopback: LoopbackCamera
) -> Iterator[Service]:
    folder = tmp_path_factory.mktemp("outages")
    with MoodyRedis(folder) as redis:
        up = Up(
            folder / "data",
            "--model",
            str(random_checkpoint),
            STREAMER_REDIS_URL=redis.url,
            STREAMER_LEASE="3",
            STREAMER_ALLOWED_HOSTS="127.0.0.1",
            # a busy machine is no reason to refuse a question
            STREAMER_MAX_QUERY_WAIT="86400",
            STREAMER_STALE_AFTER="600",
        )
        try:
            # given a Redis that is a replica when everything starts
            with redis.refusing("READONLY"):
                for name in WAITING_AT_FIRST:
                    _await_word(up, name, "outage_began")
                assert up.process.poll() is None, up.output
            # when it is a primary again
            up.wait_ready()
            for name in WAITING_AT_FIRST:
                _await_word(up, name, "outage_ended")
            running = Service(up, redis)
            made = running.api.post(
                "/v1/streams",
                json={
                    "url": loopback.url,
                    "name": "yard",
                    "sampling": {"fps": 5},
                    "watches": [{"prompt": "What?", "window": 3600}],
                },
            )
            assert made.status_code == 201, made.text
            running.wait_settled()
            running.first_output = up.output
            yield running
        finally:
            up.stop()


def _await_word(up: Up, program: str, word: str) -> None:
    log = up.data_dir / "logs" / f"{program}.log"
    deadline = time.monotonic() + 120
    while not log.is_file() or word not in log.read_text():
        assert time.monotonic() < deadline, f"{program} has not logged {word}:\n{up.output}"
        time.sleep(0.05)


def test_up_that_starts_while_redis_refuses_to_write_waits_and_says_so_once(
    service: Service,
) -> None:
    # given programs that started while Redis was a replica, and went on when it was a primary
    output = service.first_output
    # then none ended meanwhile, and each said once that it waits
    assert "ended unexpectedly" not in output
    assert "Traceback" not in output
    assert output.count("outage_began") == output.count("outage_ended") >= len(WAITING_AT_FIRST)
    assert PASSWORD not in output


@pytest.mark.parametrize(
    "kind",
    [kind if kind in QUICK else pytest.param(kind, marks=pytest.mark.slow) for kind in KINDS],
)
def test_every_program_waits_says_so_once_and_goes_on(
    service: Service, eventually: Eventually, kind: str
) -> None:
    # given a service without an outage, and questions that are being answered
    service.wait_settled()
    accepted = [response.json()["id"] for response in (service.ask() for _ in range(3))]
    pids = {process.pid for process in service.up.descendants()}
    # What ends work goes on in a full server; a busy one answers no reader that waits already.
    spared = {"OOM": ["recorder", "model-worker"], "BUSY": ["recorder"]}.get(kind, [])
    affected = [program for program in PROGRAMS if program not in spared]
    service.forget()
    # when Redis refuses work
    with service.redis.refusing(kind):
        refused = service.ask()
        for program in affected:
            eventually(
                lambda program=program: service.count(program, "outage_began"),
                message=f"{program} does not say that Redis refuses work",
            )
    # then the API says why
    error = refused.json()["error"]
    assert refused.status_code == 503
    assert error["code"] == ("REDIS_FULL" if kind == "OOM" else "REDIS_UNAVAILABLE")
    assert any(words in error["message"] for words in SAYS[kind].split("|")), error
    # and when it works again, so does everything
    eventually(lambda: service.ask().status_code == 202)
    before = service.sampled()
    eventually(lambda: service.sampled() > before, message="no frame is stored")
    asked = service.ask().json()["id"]
    assert service.answer(asked)["status"] == "done"
    for query in accepted:  # a full server makes room by deleting frames
        result = service.answer(query)["result"]
        assert result["error"] is None or result["error"]["code"] == "FRAMES_EXPIRED", result
    eventually(lambda: {asked, *accepted} <= service.recorded(), message="not recorded")
    for program in PROGRAMS:  # on a busy machine one that is spared may have met it too
        eventually(
            lambda program=program: service.ended(program),
            message=f"{program} does not say that Redis works again",
        )
    # and each program, which is still the same process, has said so once, not at each attempt; on a
    # busy machine a thread may hear only after the end that its command was refused
    for program in PROGRAMS:
        began = service.count(program, "outage_began")
        assert (program not in spared) <= began <= 2, service.log(program)
        assert "Traceback" not in service.log_text(program)
        assert PASSWORD not in service.log_text(program)
    assert {process.pid for process in service.up.descendants()} == pids
