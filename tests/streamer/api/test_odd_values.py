"""Values that Python takes and Redis, JSON or a database does not: an error, never status 500."""

import json
from collections.abc import Iterator
from typing import Any

import pytest
from fastapi.testclient import TestClient
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from streamer.api.app import create_app
from streamer.domain.record import unstorable
from streamer.domain.request import ClipRequest
from streamer.domain.watch import Watch
from streamer.errors import ErrorCode, StreamerError
from streamer.service import Service
from streamer.settings import Settings
from streamer.validation import validated

HALF = "\ud800"

ODD = st.sampled_from(
    ['"\\ud800"', '"a\\u0000b"', "NaN", "-Infinity", "1e400", "9" * 30, "1e-40", "{}", "null"]
)
FIELDS = st.sampled_from(["prompt", "stream", "since", "max_tokens", "max_frames", "name", "url"])


@pytest.fixture
def client(settings: Settings) -> Service:
    return Service(settings)


@pytest.fixture
def api(client: Service) -> Iterator[TestClient]:
    app = create_app(client)
    with TestClient(app, base_url="http://127.0.0.1:8080", raise_server_exceptions=False) as opened:
        yield opened


@settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    path=st.sampled_from(["/v1/queries", "/v1/streams"]),
    fields=st.dictionaries(FIELDS, ODD, min_size=1, max_size=3),
    form=st.one_of(st.none(), ODD),
)
def test_a_body_with_odd_values_is_refused(
    api: TestClient, path: str, fields: dict[str, str], form: str | None
) -> None:
    # given a body that is written by hand, as Python's own writer makes no such JSON
    parts = ['"prompt": "What?"', '"url": "rtsp://127.0.0.1:9/x"'][path.endswith("streams") :][:1]
    parts += [f'"{name}": {value}' for name, value in fields.items()]
    if form is not None:
        schema = f'{{"type": "json_schema", "json_schema": {{"const": {form}}}}}'
        parts.append(f'"response_format": {schema}')
    # when
    answer = api.post(
        path, content="{" + ", ".join(parts) + "}", headers={"content-type": "application/json"}
    )
    # then
    assert 400 <= answer.status_code < 500, answer.text
    assert answer.json()["error"]["message"]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("prompt", f"What {HALF}?"),
        ("prompt", "What\0?"),
        ("stream", HALF),
        ("response_format", {"type": "choice", "choices": ["yes", HALF]}),
        ("response_format", {"type": "json_schema", "json_schema": {"const": float("nan")}}),
        ("response_format", {"type": "json_schema", "json_schema": {"maximum": 2**64}}),
        ("response_format", {"type": "json_schema", "json_schema": {"enum": ["a\0"]}}),
    ],
)
def test_the_reason_is_one_sentence(
    api: TestClient, client: Service, field: str, value: Any
) -> None:
    body = {"prompt": "What?", field: value}
    answer = api.post(
        "/v1/queries", content=json.dumps(body), headers={"content-type": "application/json"}
    )
    assert answer.status_code in (400, 422)
    message = answer.json()["error"]["message"]
    assert any(word in message for word in ("surrogate", "NUL", "not finite", "too large", "JSON"))


@pytest.mark.parametrize(
    "path",
    [
        "/v1/streams/%ED%A0%80",
        "/v1/streams/a%00b",
        "/v1/queries/%00",
        "/v1/results?stream=%00",
        "/v1/results?cursor=%ED%A0%80",
        "/v1/results?since=%ED%A0%80",
        "/v1/results?limit=" + "9" * 30,
        "/v1/results?limit=NaN",
    ],
)
def test_odd_paths_and_parameters_break_nothing(api: TestClient, path: str) -> None:
    assert api.get(path).status_code < 500


def test_a_job_from_the_queue_is_checked_too() -> None:
    with pytest.raises(ValueError, match="surrogate"):
        ClipRequest.model_validate({"prompt": HALF})


@pytest.mark.parametrize(
    "value", ["é漢字🙂", 2**63 - 1, 0.5, True, None, {"a": ["b", {"c": 1.5}]}, ""]
)
def test_what_can_be_stored_is_left_alone(value: Any) -> None:
    assert unstorable(value) is None


def test_the_python_api_says_it_as_the_http_api_does() -> None:
    with pytest.raises(StreamerError, match="surrogate") as caught:
        validated(Watch, prompt=HALF)
    assert caught.value.code is ErrorCode.INVALID_REQUEST
