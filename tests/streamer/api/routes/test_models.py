"""The OpenAI-compatible endpoint of a service in which no model worker runs."""

import json

import pytest

HI = {"model": "demo", "messages": [{"role": "user", "content": "Hi"}]}


def test_the_model_of_the_settings_is_listed_without_its_length(api, client):
    client.settings.model = "Efficient-Large-Model/NVILA-Lite-2B"
    (model,) = api.get("/v1/models").json()["data"]
    assert model["id"] == "NVILA-Lite-2B"
    assert model["max_model_len"] is None
    assert api.get("/v1/models/NVILA-Lite-2B").json() == model
    assert api.get("/v1/models/a/b").status_code == 404


@pytest.mark.parametrize("stream", [False, True])
def test_a_chat_is_refused_until_a_worker_runs(api, client, stream):
    refused = api.post("/v1/chat/completions", json={**HI, "stream": stream})
    error = refused.json()["error"]
    assert (refused.status_code, error["code"], error["type"]) == (503, "NO_WORKER", "server_error")
    assert int(refused.headers["retry-after"]) > 0
    assert client.queries() == []


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({**HI, "messages": "Hi"}, "messages"),
        ({**HI, "messages": [{"role": "tool", "content": "1"}]}, "messages.0.role"),
        ({**HI, "messages": [{"role": "user", "content": [{"type": "text"}]}]}, None),
        ({**HI, "messages": [{"role": "user", "content": "\ud800"}]}, None),
        ({**HI, "temperature": "hot"}, "temperature"),
        ({**HI, "stream": "maybe"}, "stream"),
        ([], None),
    ],
)
def test_what_is_no_chat_is_400(api, body, param):
    headers = {"Content-Type": "application/json"}
    refused = api.post("/v1/chat/completions", content=json.dumps(body), headers=headers)
    error = refused.json()["error"]
    assert (refused.status_code, error["type"]) == (400, "invalid_request_error")
    if param is not None:
        assert error["param"] == param
