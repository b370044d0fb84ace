"""Webhooks over HTTP."""

import pytest

from streamer.api.app import create_app
from streamer.service import Service

URL = "http://127.0.0.1:9/hook"


@pytest.fixture
def client(settings):
    with Service(settings.model_copy(update={"webhook_hosts": ["127.0.0.1"]})) as opened:
        yield opened


def add(api, **fields):
    response = api.post("/v1/webhooks", json={"url": URL, **fields})
    assert response.status_code == 201, response.text
    return response.json()


def test_the_secret_is_shown_once(api):
    made = add(api, types=["incident.*"], streams=["yard"], description="mine")

    assert made.pop("secret").startswith("whsec_")
    assert made["enabled"]
    assert api.get(f"/v1/webhooks/{made['id']}").json() == made
    assert api.get("/v1/webhooks").json()["webhooks"] == [made]


def test_a_webhook_is_changed_and_removed(api):
    made = add(api, types=["incident.*"])
    path = f"/v1/webhooks/{made['id']}"

    changed = api.patch(path, json={"types": None, "description": "mine", "enabled": False}).json()

    assert (changed["types"], changed["description"], changed["enabled"]) == (None, "mine", False)
    assert changed["url"] == URL
    assert api.patch(path, json={"url": None}).json() == changed
    assert api.delete(path).json() == changed
    assert api.get(path).json()["error"]["code"] == "UNKNOWN_WEBHOOK"


def test_a_webhook_is_tested_and_its_deliveries_are_listed(api):
    path = f"/v1/webhooks/{add(api)['id']}"

    tests = [api.post(f"{path}/test") for _ in range(3)]

    assert {response.status_code for response in tests} == {202}
    first = api.get(f"{path}/deliveries", params={"limit": 2}).json()
    second = api.get(
        f"{path}/deliveries", params={"limit": 2, "cursor": first["next_cursor"]}
    ).json()
    listed = first["deliveries"] + second["deliveries"]
    assert [each["id"] for each in listed] == [each.json()["id"] for each in reversed(tests)]
    assert second["next_cursor"] is None
    again = api.post(f"{path}/deliveries/{listed[0]['id']}/retry")
    assert (again.status_code, again.json()["id"]) == (202, listed[0]["id"])


@pytest.mark.parametrize(
    ("fields", "status", "code"),
    [
        ({"url": "http://192.168.1.20/"}, 403, "WEBHOOK_URL_FORBIDDEN"),
        ({"url": "ftp://127.0.0.1/"}, 422, "INVALID_REQUEST"),
        ({"url": "http://me:secret@127.0.0.1/"}, 422, "INVALID_REQUEST"),
        ({"types": ["nothing"]}, 422, "INVALID_REQUEST"),
        ({"types": []}, 422, "INVALID_REQUEST"),
        ({"secret": "mine"}, 422, "INVALID_REQUEST"),
        ({"description": "x" * 501}, 422, "INVALID_REQUEST"),
    ],
)
def test_a_wrong_webhook_is_refused(api, fields, status, code):
    response = api.post("/v1/webhooks", json={"url": URL} | fields)

    assert (response.status_code, response.json()["error"]["code"]) == (status, code)
    assert "secret@" not in response.text
    assert api.get("/v1/webhooks").json()["webhooks"] == []


@pytest.mark.parametrize(
    ("method", "path", "code"),
    [
        ("GET", "/v1/webhooks/none", "UNKNOWN_WEBHOOK"),
        ("PATCH", "/v1/webhooks/none", "UNKNOWN_WEBHOOK"),
        ("DELETE", "/v1/webhooks/none", "UNKNOWN_WEBHOOK"),
        ("POST", "/v1/webhooks/none/test", "UNKNOWN_WEBHOOK"),
        ("GET", "/v1/webhooks/none/deliveries", "UNKNOWN_WEBHOOK"),
        ("POST", "/v1/webhooks/none/deliveries/none/retry", "UNKNOWN_WEBHOOK"),
    ],
)
def test_an_unknown_webhook_is_not_found(api, method, path, code):
    response = api.request(method, path, json={} if method == "PATCH" else None)

    assert (response.status_code, response.json()["error"]["code"]) == (404, code)


def test_a_webhook_is_described_in_the_schema(client):
    paths = create_app(client).openapi()["paths"]

    assert set(paths["/v1/webhooks/{webhook_id}"]) == {"get", "patch", "delete"}


def test_what_was_read_can_be_sent_back(api):
    made = add(api, types=["incident.*"])
    path = f"/v1/webhooks/{made['id']}"
    read = api.get(path).json()

    assert api.patch(path, json=read).json() == read
    assert api.post("/v1/webhooks", json=read).status_code == 201
