"""Schemathesis, as anybody runs it, against the API: what the schema says is what the API does."""

import subprocess
import sys
from pathlib import Path

import pytest

from streamer.settings import Settings
from tests.support.api_server import ApiServer

_ENDLESS = "events$"
"""Answers that end only when the caller leaves."""

_SEARCH = "^/v1/discovery$"
"""Sends probes into the network."""

_INCOMPLETE = "^/readyz$|^/v1/chat/completions$"
"""Tell, rightly, that no worker runs here: 503."""


@pytest.mark.parametrize(
    "options",
    [
        pytest.param(["--phases", "stateful", "-n", "1"], id="quick"),
        pytest.param(
            ["-n", "5"], id="all phases", marks=[pytest.mark.slow, pytest.mark.timeout(1800)]
        ),
    ],
)
def test_schemathesis_finds_no_failure(
    settings: Settings, tmp_path: Path, options: list[str]
) -> None:
    # given an API, and sources that are opened for a moment only
    with ApiServer(settings.model_copy(update={"open_timeout": 0.5, "data_dir": tmp_path})) as api:
        api.client.first_frame_wait = 0.0
        # when all calls are made that its description allows, and many that it does not
        done = subprocess.run(
            [
                Path(sys.executable).parent / "st",
                "run",
                f"{api.url}/openapi.json",
                *options,
                *("--exclude-path-regex", f"{_ENDLESS}|{_INCOMPLETE}|{_SEARCH}"),
                # rules between fields, such as two times in order, are not in the schema
                *("--exclude-checks", "positive_data_acceptance"),
                *("--seed", "1", "--no-shrink", "--no-color", "--request-timeout", "60"),
            ],
            cwd=tmp_path,
            capture_output=True,
            text=True,
        )
    # then
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]
