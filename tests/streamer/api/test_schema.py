"""Schemathesis, as anybody runs it, against the API: what the schema says is what the API does."""

import os
import subprocess
import sys
from pathlib import Path

import hypothesis
import pytest

from streamer.settings import Settings
from tests.support.api_server import ApiServer

ROOT = Path(__file__).parents[3]

_ENDLESS = "events$"
"""Answers that end only when the caller leaves: they have a test of their own."""

_SEARCH = "^/v1/discovery$"
"""Sends probes into the network."""


@pytest.mark.parametrize(
    "options",
    [
        pytest.param(["--phases", "examples", "-n", "1"], id="examples"),
        pytest.param(
            ["-n", "5"], id="all phases", marks=[pytest.mark.slow, pytest.mark.timeout(3600)]
        ),
    ],
)
def test_schemathesis_finds_no_failure(
    settings: Settings, tmp_path: Path, options: list[str]
) -> None:
    # given an API, and sources that are opened for a moment only
    with ApiServer(settings.model_copy(update={"open_timeout": 0.5, "data_dir": tmp_path})) as api:
        api.client.first_frame_wait = 0.0
        api.app.openapi()  # takes a second, and schemathesis waits for only a few
        # when all calls are made that its description allows, and many that it does not
        done = subprocess.run(
            [
                Path(sys.executable).parent / "st",
                *("--config-file", ROOT / "tests" / "support" / "schemathesis.toml"),
                "run",
                f"{api.url}/openapi.json",
                *options,
                *("--exclude-path-regex", f"{_ENDLESS}|{_SEARCH}"),
                # `accepts_what_the_schema_allows` does the same
                *("--exclude-checks", "positive_data_acceptance"),
                *("--seed", "1", "--no-shrink", "--no-color", "--request-timeout", "60"),
            ],
            cwd=tmp_path,
            env=os.environ
            | {
                "SCHEMATHESIS_HOOKS": "tests.support.schemathesis_checks",
                "PYTHONPATH": str(ROOT),
            },
            capture_output=True,
            text=True,
        )
    # then
    assert done.returncode == 0, done.stdout[-30_000:] + done.stderr[-2000:]


@pytest.mark.slow
@pytest.mark.parametrize("path", ["/v1/events", "/v1/queries/{query_id}/events"])
def test_streams_of_events_begin_as_their_schema_says(settings: Settings, path: str) -> None:
    import requests
    import schemathesis

    with ApiServer(settings) as api:
        operation = schemathesis.openapi.from_dict(api.app.openapi())[path]["GET"]

        # when any call is made that the description allows
        @hypothesis.given(operation.as_strategy())
        @hypothesis.settings(max_examples=10, deadline=None)
        def begins(case: schemathesis.Case) -> None:
            with requests.request(
                **case.as_transport_kwargs(base_url=api.url), stream=True, timeout=60
            ) as response:
                # then its stream begins, unless there is no such query
                if response.status_code == 404:
                    assert "query_id" in path
                    return
                assert response.status_code == 200, response.text
                assert response.headers["content-type"].startswith("text/event-stream")
                assert next(response.iter_lines()) == b"event: hello"

        begins()
