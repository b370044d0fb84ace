"""Keys, scopes, sessions of browsers, and rate limits."""

import re
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import redis
from fastapi import WebSocket
from fastapi.testclient import TestClient
from starlette.testclient import WebSocketDenialResponse
from starlette.websockets import WebSocketDisconnect
from typer.testing import CliRunner

from streamer import redis_keys
from streamer.api.app import create_app
from streamer.api_keys import SESSION_SECONDS, ApiKeys, require_keys
from streamer.cli.app import app as cli
from streamer.domain.scope import Scope
from streamer.errors import ErrorCode, StreamerError
from streamer.local.redis_server import EmbeddedServer
from streamer.service import Service
from streamer.settings import Settings

HOST = "streamer.example"
ORIGIN = {"origin": f"http://{HOST}"}
STREAM: dict[str, Any] = {"url": "rtsp://cam.invalid/x", "name": "gate", "probe": False}

Open = Callable[..., TestClient]


@pytest.fixture
def client(settings: Settings) -> Service:
    return Service(settings)


@pytest.fixture
def keys(client: Service) -> ApiKeys:
    return ApiKeys(client.connections.main, client.settings)


@pytest.fixture
def open_api(client: Service) -> Iterator[Open]:
    opened: list[TestClient] = []

    def make(scheme: str = "http", **changes: Any) -> TestClient:
        for name, value in changes.items():
            setattr(client.settings, name, value)
        app = create_app(client)

        @app.websocket("/echo")
        async def echo(socket: WebSocket) -> None:
            await socket.accept()
            await socket.send_text(str(socket.state.key))
            await socket.close()

        api = TestClient(app, base_url=f"{scheme}://{HOST}", raise_server_exceptions=False)
        api.__enter__()
        opened.append(api)
        return api

    yield make
    for api in opened:
        api.__exit__(None, None, None)


def bearer(secret: str) -> dict[str, str]:
    return {"authorization": f"Bearer {secret}"}


def refusal(response: Any) -> tuple[int, str]:
    return response.status_code, response.json()["error"]["code"]


# Keys


def test_a_key_is_stored_hashed_and_works_until_it_is_revoked(
    open_api: Open, keys: ApiKeys, redis_client: redis.Redis
) -> None:
    # given
    key, secret = keys.add("phone", [Scope.READ])
    api = open_api()
    # then it works, and Redis does not hold it
    assert api.get("/v1/streams", headers=bearer(secret)).status_code == 200
    stored = redis_client.hgetall(redis_keys.API_KEYS)
    assert secret not in str(stored)
    assert key.digest in str(stored)
    # when it is revoked
    keys.revoke("phone")
    keys.add("other", [Scope.READ])
    api.app.state.keyring.read()  # type: ignore[attr-defined]
    # then
    assert refusal(api.get("/v1/streams", headers=bearer(secret))) == (401, "UNAUTHORIZED")


def test_the_scope_read_asks_but_changes_nothing(open_api: Open, keys: ApiKeys) -> None:
    # given
    reader, operator = (keys.add(str(scope), [scope])[1] for scope in Scope)
    api = open_api()
    assert api.post("/v1/streams", json=STREAM, headers=bearer(operator)).status_code == 201
    # when every call that the API has is made with the scope read
    paths = api.get("/openapi.json", headers=bearer(reader)).json()["paths"]
    for path, calls in paths.items():
        for method in calls.keys() - {"get"}:
            call = (method.upper(), re.sub(r"{\w+}", "gate", path))
            response = api.request(*call, json={}, headers=bearer(reader))
            # then it may ask and sign in, and nothing else
            if call in {("POST", "/v1/queries"), ("POST", "/v1/chat/completions")}:
                assert response.status_code in (400, 422), call
            elif path != "/v1/session":
                assert refusal(response) == (403, "FORBIDDEN"), call
                assert response.json()["error"]["type"] == "permission_error"
    (stream,) = api.get("/v1/streams", headers=bearer(reader)).json()["streams"]
    assert (stream["name"], stream["paused"]) == ("gate", False)


def test_keys_of_the_settings_may_do_everything(open_api: Open, keys: ApiKeys) -> None:
    keys.add("phone", [Scope.READ])
    api = open_api(api_keys=["from-the-settings"])
    headers = bearer("from-the-settings")
    assert api.post("/v1/streams", json=STREAM, headers=headers).status_code == 201


def test_known_keys_count_while_redis_is_away(
    open_api: Open, client: Service, keys: ApiKeys
) -> None:
    # given a key that was used, and a Redis that then goes away
    secret = keys.add("phone", [Scope.READ])[1]
    api = open_api()
    assert api.get("/v1/results", headers=bearer(secret)).status_code == 200
    pool = client.connections.main.connection_pool
    pool.disconnect()
    pool.connection_kwargs["port"] = 1
    pool.reset()
    # then what needs no Redis works, and other keys are still refused
    assert api.get("/v1/results", headers=bearer(secret)).status_code == 200
    assert refusal(api.get("/v1/results", headers=bearer("wrong"))) == (401, "UNAUTHORIZED")


def test_keys_survive_a_restart_of_redis(tmp_path: Path, settings: Settings) -> None:
    for attempt in range(2):
        server = EmbeddedServer(tmp_path / "main", persistent=True, max_memory=None)
        server.start()
        with Service(settings.model_copy(update={"redis_url": server.url})) as client:
            keys = ApiKeys(client.connections.main, settings)
            if attempt == 0:
                keys.add("phone", [Scope.READ])
            assert [key.name for key in keys.list()] == ["phone"]
        server.stop()


def test_the_command_line_adds_lists_and_revokes(
    open_api: Open, client: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    # given
    monkeypatch.setenv("STREAMER_REDIS_URL", client.settings.redis_url or "")
    run = CliRunner().invoke
    # when
    added = run(cli, ["keys", "add", "phone", "--scope", "read"])
    assert added.exit_code == 0, added.output
    secret = added.stdout.strip()
    # then the key is on stdout alone, and nowhere afterwards
    assert secret.startswith("nvs_")
    assert "only now" in added.stderr
    api = open_api()
    assert api.get("/v1/streams", headers=bearer(secret)).status_code == 200
    api.app.state.keyring.note_used()  # type: ignore[attr-defined]
    listed = run(cli, ["keys", "list", "--json"])
    assert secret not in listed.stdout
    (key,) = map(_json, listed.stdout.splitlines())
    assert secret.startswith(key["prefix"])
    assert (key["name"], key["scopes"]) == ("phone", ["read"])
    assert datetime.fromisoformat(key["last_used_at"]).tzinfo == UTC
    assert "phone" in run(cli, ["keys", "list"]).stdout
    again = run(cli, ["keys", "add", "phone"])
    assert (again.exit_code, "already exists" in again.stderr) == (1, True)
    assert run(cli, ["keys", "revoke", "phone"]).exit_code == 0
    gone = run(cli, ["keys", "revoke", "phone"])
    assert (gone.exit_code, "no key 'phone'" in gone.stderr) == (1, True)


def _json(line: str) -> Any:
    import json

    return json.loads(line)


def test_without_a_key_only_loopback(settings: Settings, keys: ApiKeys) -> None:
    everywhere = settings.model_copy(update={"api_host": "0.0.0.0"})
    with pytest.raises(StreamerError, match="streamer keys add") as caught:
        require_keys(everywhere)
    assert caught.value.code is ErrorCode.SETTINGS_INVALID
    keys.add("phone", [Scope.READ])
    require_keys(everywhere)


# Sessions


def test_a_browser_signs_in_and_out(
    open_api: Open, keys: ApiKeys, redis_client: redis.Redis
) -> None:
    # given
    secret = keys.add("page", list(Scope))[1]
    api = open_api()
    assert refusal(api.post("/v1/session", json={"key": "wrong"})) == (401, "UNAUTHORIZED")
    # when
    signed_in = api.post("/v1/session", json={"key": secret}, headers=ORIGIN)
    # then
    assert signed_in.json() == {"key": "page", "scopes": ["read", "operate"]}
    cookie = signed_in.headers["set-cookie"]
    assert "HttpOnly" in cookie
    assert "SameSite=strict" in cookie
    assert "Secure" not in cookie
    assert secret not in cookie
    token = api.cookies["streamer_session"]
    (name,) = redis_client.keys(redis_keys.session("*"))
    assert token not in str(name)
    assert 0 < redis_client.ttl(name) <= SESSION_SECONDS
    assert api.get("/v1/session").json() == signed_in.json()
    assert api.get("/v1/streams").status_code == 200
    # when it signs out
    assert api.delete("/v1/session", headers=ORIGIN).status_code == 204
    # then the token is worth nothing
    assert api.cookies.get("streamer_session") is None
    stale = {"cookie": f"streamer_session={token}"}
    assert refusal(api.get("/v1/streams", headers=stale)) == (401, "UNAUTHORIZED")


def test_the_cookie_is_secure_on_https(open_api: Open, keys: ApiKeys) -> None:
    secret = keys.add("page", list(Scope))[1]
    signed_in = open_api("https").post("/v1/session", json={"key": secret})
    assert "Secure" in signed_in.headers["set-cookie"]


def test_a_session_ends_with_its_key(open_api: Open, keys: ApiKeys) -> None:
    # given
    secret = keys.add("page", list(Scope))[1]
    keys.add("other", list(Scope))
    api = open_api()
    api.post("/v1/session", json={"key": secret})
    # when its key is revoked, and another one gets the name
    keys.revoke("page")
    keys.add("page", list(Scope))
    api.app.state.keyring.read()  # type: ignore[attr-defined]
    # then
    assert refusal(api.get("/v1/streams")) == (401, "UNAUTHORIZED")


@pytest.mark.parametrize(
    "origin",
    [
        None,
        "null",
        "http://evil.example",
        f"http://{HOST}.evil.example",
        f"http://{HOST}:81",
        "http://[bad",
    ],
)
def test_another_site_cannot_use_the_cookie(
    open_api: Open, keys: ApiKeys, origin: str | None
) -> None:
    # given
    secret = keys.add("page", list(Scope))[1]
    api = open_api()
    api.post("/v1/session", json={"key": secret})
    headers = {"origin": origin} if origin else {}
    # then calls that change something, and sockets, are refused; a program's key needs no Origin
    assert refusal(api.post("/v1/streams", json=STREAM, headers=headers)) == (403, "FORBIDDEN")
    socket = api.websocket_connect(f"ws://{HOST}/echo", headers=headers)
    with pytest.raises(WebSocketDenialResponse) as caught, socket:
        pass
    assert caught.value.status_code == 403
    api.cookies.clear()
    made = api.post("/v1/streams", json=STREAM, headers=bearer(secret) | headers)
    assert made.status_code == 201


def test_sockets_take_a_session_or_a_key(open_api: Open, keys: ApiKeys) -> None:
    secret = keys.add("page", list(Scope))[1]
    api = open_api()
    with pytest.raises(WebSocketDisconnect) as caught, api.websocket_connect("/echo") as socket:
        socket.receive_text()
    assert caught.value.code == 4401
    with api.websocket_connect("/echo", headers=bearer(secret)) as socket:
        assert socket.receive_text() == "page"
    api.post("/v1/session", json={"key": secret})
    with api.websocket_connect(f"ws://{HOST}/echo", headers=ORIGIN) as socket:
        assert socket.receive_text() == "page"


# Rate limits


def test_each_key_has_its_own_rate(open_api: Open, keys: ApiKeys) -> None:
    # given
    first, second = (keys.add(name, [Scope.READ])[1] for name in ("first", "second"))
    api = open_api(rate_limit=3)
    # when
    answers = [api.get("/v1/streams", headers=bearer(first)) for _ in range(5)]
    # then
    assert [answer.status_code for answer in answers[:3]] == [200, 200, 200]
    limited = answers[-1]
    assert refusal(limited) == (429, "RATE_LIMITED")
    assert limited.json()["error"]["type"] == "rate_limit_error"
    assert 1 <= int(limited.headers["retry-after"]) <= 60
    assert "x-should-retry" not in limited.headers
    assert api.get("/v1/streams", headers=bearer(second)).status_code == 200
    assert all(api.get("/healthz").status_code == 200 for _ in range(5))


def test_a_limited_key_may_call_again_later(
    open_api: Open, keys: ApiKeys, redis_client: redis.Redis
) -> None:
    # given a key that has used up its minute
    secret = keys.add("first", [Scope.READ])[1]
    api = open_api(rate_limit=2)
    headers = bearer(secret)
    while api.get("/v1/streams", headers=headers).status_code != 429:
        pass
    # when half a minute has passed, by what Redis holds
    name = redis_keys.rate("first")
    full_at = float(redis_client.get(name) or 0)
    redis_client.set(name, full_at - 30_000)
    # then there is room for one call
    assert api.get("/v1/streams", headers=headers).status_code == 200
    assert api.get("/v1/streams", headers=headers).status_code == 429
    assert 0 < redis_client.pttl(name) <= 60_000
