"""A password or token goes in through every door, and out through none.

One scenario with real programs, then a look at all that anybody could read: what the commands
print, what the processes log at debug level, what the API answers, the list of processes, every
key and value in Redis, the job data of RQ (which is compressed there) and the timeline database.
"""

import base64
import contextlib
import json
import socket
import subprocess
import sys
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from typing import Any, Self
from urllib.parse import quote

import httpx
import psutil
import pytest
import redis
from typer.testing import CliRunner

from nvila_core.resolution.policy import Measures
from streamer import redis_keys
from streamer.cli.app import app
from streamer.errors import StreamerError
from streamer.service import Service
from streamer.settings import Settings
from streamer.sources.streams import StreamRegistry
from tests.support.cameras import SilentServer
from tests.support.installation import PROGRAM, clean_environment, run_cli

USER = "operator"
PARTS = ("Kq7wTz", "Zr3vLn", "Xp9mBd", "Ty5nQh", "Gb2kVs")  # too long to come up by chance
PASSWORD = "{}@{}/{}#{}% {}".format(*PARTS)
KEY = "a passphrase of this installation"

QUERY = {"jwt": "Hw4xCs", "pw": "Jd8yRf", "_sid": "Lf2zGt", "hmac": "Mv6aKw", "st": "Qn3bPx"}
"""Secrets of a URL's query, by names that no list of secret names has."""
PATH_TOKEN = "Wb7cNq4Ue1Yr9Zs5"

LOGIN = base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()
FORBIDDEN = [
    *QUERY.values(),
    PATH_TOKEN,
    *PARTS,  # of it raw, percent-encoded, quoted or cut in pieces, one of them is left
    LOGIN.rstrip("=")[:-2],
    base64.b64encode(PASSWORD.encode()).decode().rstrip("=")[:-2],
    PASSWORD.encode().hex(),
]


class Refusing:
    """An RTSP server that refuses every login, and remembers what it received."""

    def __enter__(self) -> Self:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        self.logins: list[str] = []
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                threading.Thread(target=self._refuse, args=(connection,), daemon=True).start()

    def _refuse(self, connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError, ValueError):
            reader = connection.makefile("rb")
            while reader.readline():
                headers = {}
                while line := reader.readline().strip():
                    name, _, value = line.decode().partition(":")
                    headers[name.lower()] = value.strip()
                if "authorization" in headers:
                    self.logins.append(headers["authorization"])
                answer = (
                    f"RTSP/1.0 401 Unauthorized\r\nCSeq: {headers['cseq']}\r\n"
                    'WWW-Authenticate: Basic realm="camera"\r\n\r\n'
                )
                connection.sendall(answer.encode())


@pytest.fixture
def refusing() -> Iterator[Refusing]:
    with Refusing() as server:
        yield server


@pytest.fixture
def closed() -> Iterator[int]:
    """A port that refuses connections: bound, so that no other process takes it."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        yield int(probe.getsockname()[1])


TAIL = f"live/{PATH_TOKEN}?channel=1&" + "&".join(f"{k}={v}" for k, v in QUERY.items())


def raw(port: int) -> str:
    """As people type it."""
    return f"rtsp://{USER}:{PASSWORD}@127.0.0.1:{port}/{TAIL}"


def encoded(port: int) -> str:
    """As the standard wants it."""
    return f"rtsp://{USER}:{quote(PASSWORD, safe='')}@127.0.0.1:{port}/{TAIL}"


class Surfaces:
    """Everything that was to be read, by where it was."""

    def __init__(self) -> None:
        self.texts: dict[str, bytes] = {}

    def add(self, where: str, content: str | bytes) -> None:
        data = content.encode() if isinstance(content, str) else content
        self.texts[where] = self.texts.get(where, b"") + data

    def leaks(self) -> list[str]:
        """Where a part of the password is, and which."""
        return [
            f"{where}: {word!r} in {data[max(0, at - 200) : at + 60]!r}"
            for where, data in self.texts.items()
            for word in FORBIDDEN
            if (at := data.lower().find(word.lower().encode())) >= 0
        ]


def redis_content(client: Any) -> Iterator[tuple[str, bytes]]:
    """Yield every key with each of its values; what RQ has compressed is opened."""
    for key in client.keys("*"):
        for value in values(client, key):  # one that expired meanwhile has none
            plain = value
            with contextlib.suppress(zlib.error):
                plain = zlib.decompress(plain)
            yield key.decode(), key + b" " + plain


def values(client: Any, key: bytes) -> list[bytes]:
    """Return all that stands in `key`, names of fields included."""
    match client.type(key).decode():
        case "string":
            return [client.get(key) or b""]
        case "hash":
            return [part for pair in client.hgetall(key).items() for part in pair]
        case "list":
            return list(client.lrange(key, 0, -1))
        case "set":
            return list(client.smembers(key))
        case "zset":
            return list(client.zrange(key, 0, -1))
        case "stream":
            entries = client.xrange(key)
            return [part for _, entry in entries for pair in entry.items() for part in pair]
        case _:
            return []


def test_the_words_that_are_looked_for_are_found() -> None:
    """Of each way to write the password at least one word is seen: the look itself works."""
    for text in (
        raw(1),
        encoded(1),
        quote(encoded(1), safe=""),
        repr(raw(1)),
        json.dumps({"url": encoded(1)}).lower(),
        f"Authorization: Basic {LOGIN}",
        PASSWORD[11:],
        TAIL,
        quote(TAIL, safe=""),
    ):
        surfaces = Surfaces()
        surfaces.add("here", text)
        assert surfaces.leaks(), text


def test_no_surface_shows_a_password(
    settings: Settings,
    redis_client: redis.Redis,
    refusing: Refusing,
    closed: int,
    worker_process: Callable[..., Any],
    eventually: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    surfaces = Surfaces()
    environment = {
        "STREAMER_REDIS_URL": settings.redis_url or "",
        "STREAMER_DATA_DIR": str(settings.data_dir),
        "STREAMER_SECRET_KEY": KEY,
    }
    for name, value in environment.items():
        monkeypatch.setenv(name, value)

    def command(*line: str) -> int:
        """Run it to its end; what it prints is a surface."""
        done = run_cli(*line, timeout=100.0, **environment)
        surfaces.add(f"command {' '.join(line)[:20]}", done.stdout + done.stderr)
        return done.returncode

    def at_once(*line: str, typed: str = "") -> int:
        """The same in this process, which saves starting the program."""
        done = CliRunner().invoke(app, line, input=typed)
        surfaces.add(f"command {line[-1][:4]}", f"{done.output} {done.stderr} {done.exception!r}")
        return done.exit_code

    # given an installation whose programs tell all they know
    ingest = worker_process("ingest", ready=False, STREAMER_SECRET_KEY=KEY)
    recorder = worker_process("recorder", ready=False)
    server = worker_process(
        "streamer.cli", "serve", "--port", "0", ready=False, STREAMER_SECRET_KEY=KEY
    )
    programs = {"ingest": ingest, "recorder": recorder, "api": server}

    # when cameras that cannot be had are tried and attached, in every way and with mistakes
    assert command("--debug", "attach", raw(closed)) == 1
    assert command("attach", "--no-probe", "--json", "--name", "gone", raw(closed)) == 0
    assert at_once("attach", "--no-probe", "--name", "locked", encoded(refusing.port)) == 0
    assert at_once("--debug", "attach", encoded(refusing.port)) == 1
    assert at_once("attach", "--name", "not a name", raw(closed)) == 2
    assert at_once("attach", raw(closed), encoded(closed)) == 2
    assert at_once("analyze", encoded(closed)) == 1
    assert at_once("probe", raw(refusing.port)) == 1
    assert at_once("edit", "gone", "--url", encoded(closed)) == 1
    assert at_once("attach", "--no-probe", "--name", "typed", "-", typed=raw(closed)) == 0

    for program in programs.values():
        program.wait_for('"ready"')
    ready = next(line for line in server.output.splitlines() if '"ready"' in line)
    with httpx.Client(base_url=json.loads(ready)["url"], timeout=30) as http:

        def call(method: str, path: str, **arguments: Any) -> httpx.Response:
            response = http.request(method, path, **arguments)
            surfaces.add(f"{method} {path}", f"{response.headers} {response.text}")
            return response

        body = {"name": "by-api", "url": raw(refusing.port)}
        assert call("POST", "/v1/streams", json=body).status_code == 422
        assert call("POST", "/v1/streams", json=body | {"probe": False}).status_code == 201
        assert call("POST", "/v1/streams", json=body | {"probe": False}).status_code == 409
        assert call("POST", "/v1/streams", json=body | {"fps": encoded(1)}).status_code == 422
        assert call("POST", "/v1/streams", json=body | {"url": [raw(1)]}).status_code == 422
        assert call("POST", "/v1/streams", content=f'{{"url": "{raw(1)}').status_code == 422
        assert call("PATCH", "/v1/streams/locked", json={"url": encoded(closed)}).status_code < 500

        # and their states have come
        def settled() -> bool:
            streams = http.get("/v1/streams").json()["streams"]
            return len(streams) == 4 and all(stream["error"] for stream in streams)

        eventually(settled)
        call("GET", "/v1/streams")
        call("GET", "/v1/streams/locked")
        call("GET", "/metrics")
        call("GET", f"/v1/streams/{quote(raw(closed), safe='')}")
        # and a question that ends with an error is in the queue and in the timeline
        with Service(settings) as client:
            stream = client.registry.get("gone")
            client.frames.put(stream.id, b"x", Measures(8, 8), time=time.time(), pts=0)
            query = client.ask("Anyone?", "gone")
            for where, found in redis_content(redis_client):
                surfaces.add(f"redis {where}", found)
            client.cancel(query.id)
        eventually(lambda: http.get("/v1/results").json()["results"])
        call("GET", "/v1/results")

    # and one who looks at the list of processes while a camera keeps a command waiting
    with SilentServer() as silent:
        waiting = subprocess.Popen(
            [*PROGRAM, "attach", raw(silent.port)],
            env=clean_environment(**environment),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            eventually(lambda: silent.accepted)
            for process in (waiting.pid, *(p.process.pid for p in programs.values())):
                for each in (psutil.Process(process), *psutil.Process(process).children(True)):
                    surfaces.add(f"title of {each.pid}", "\0".join(each.cmdline()))
            titles = b"".join(t for name, t in surfaces.texts.items() if "title" in name)
            assert b"***" in titles
        finally:
            waiting.kill()
            waiting.wait()
    for line in (["streams"], ["streams", "--json"], ["results", "--json"], ["detach", "gone"]):
        assert at_once(*line) == 0

    # then the password got to where it belongs
    assert f"Basic {LOGIN}" in refusing.logins
    # and is nowhere else
    for where, found in redis_content(redis_client):
        surfaces.add(f"redis {where}", found)
    for name, program in programs.items():
        program.terminate()
        program.wait()
        assert program.output
        surfaces.add(f"log of {name}", program.output)
    for path in settings.data_dir.rglob("*"):
        if path.is_file():
            surfaces.add(str(path.name), path.read_bytes())
    assert {"timeline.db", "log of ingest", f"redis {redis_keys.STREAMS}"} <= set(surfaces.texts)
    assert any(name.startswith("redis rq:job:") for name in surfaces.texts)
    assert surfaces.texts[f"redis {redis_keys.SECRETS}"].count(b"sealed:") >= 4
    assert surfaces.leaks() == []


def test_no_exception_shows_a_password(
    settings: Settings, redis_client: redis.Redis, refusing: Refusing, closed: int
) -> None:
    surfaces = Surfaces()
    with Service(settings) as client:
        for url in (raw(closed), encoded(closed), raw(refusing.port), encoded(refusing.port)):
            with pytest.raises(StreamerError) as caught:
                client.attach(url)
            error: BaseException | None = caught.value
            surfaces.add("message", str(error) + repr(error))
            surfaces.add("error", caught.value.message)
        client.attach(encoded(closed), "gone", probe=False)
        surfaces.add("record", repr(client.stream("gone")))
        surfaces.add("registry", repr(vars(StreamRegistry(redis_client))))
    surfaces.add("settings", repr(settings))
    assert surfaces.leaks() == []


CRASH = """
import sys, threading
from streamer.logging_setup import configure_logging
configure_logging("debug")
url = sys.stdin.read()
def fail():
    try:
        raise OSError(f"cannot open {url}")
    except OSError as error:
        raise RuntimeError(f"gave up on '{url}'") from error
thread = threading.Thread(target=fail)
thread.start()
thread.join()
fail()
"""


@pytest.mark.parametrize("url", [raw(554), encoded(554)], ids=["raw", "encoded"])
def test_a_crash_report_shows_what_broke_and_no_password(url: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", CRASH], input=url, capture_output=True, text=True, timeout=100
    )
    assert done.returncode == 1
    assert done.stderr.count("gave up on") >= 2
    assert done.stderr.count("RuntimeError") >= 2
    surfaces = Surfaces()
    surfaces.add("stderr", done.stderr + done.stdout)
    assert surfaces.leaks() == []
