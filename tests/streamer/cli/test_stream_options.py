"""The options that `attach` and `edit` share, against a real server."""

import json

import pytest
from typer.testing import CliRunner

from streamer.cli.app import app
from streamer.settings import Settings

URL = "rtsp://cam.invalid/x"


@pytest.fixture
def run(settings: Settings, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("STREAMER_REDIS_URL", settings.redis_url or "")
    monkeypatch.setenv("STREAMER_DATA_DIR", str(settings.data_dir))
    return lambda *arguments: CliRunner().invoke(app, arguments)


@pytest.mark.parametrize(
    ("options", "sampling"),
    [
        (["--fps", "0.5"], {"mode": "fps", "fps": 0.5}),
        (
            ["--sampling", "keyframes", "--min-interval", "2"],
            {"mode": "keyframes", "min_interval": 2.0},
        ),
        (
            ["--sampling", "change", "--threshold", "0.3", "--max-interval", "60"],
            {"mode": "change", "threshold": 0.3, "min_interval": 0.2, "max_interval": 60.0},
        ),
    ],
)
def test_attach_and_edit_take_them(run, options: list[str], sampling: dict[str, object]) -> None:
    done = run(
        "attach", URL, "--name", "gate", "--no-probe", "--transport", "udp", "--json", *options
    )
    assert done.exit_code == 0, done.stderr
    stream = json.loads(done.stdout)
    assert (stream["sampling"], stream["transport"]) == (sampling, "udp")
    assert run("edit", "gate", "--fps", "3", "--transport", "tcp").exit_code == 0
    assert run("edit", "gate", *options).exit_code == 0
    (stream,) = [json.loads(line) for line in run("streams", "--json").stdout.splitlines()]
    assert (stream["sampling"], stream["transport"]) == (sampling, "tcp")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--sampling", "keyframes", "--fps", "2"], "'fps' does not go with"),
        (["--threshold", "0.2"], "'threshold' does not go with the sampling mode 'fps'"),
        (["--sampling", "change", "--min-interval", "99"], "is shorter than 'min_interval'"),
    ],
)
def test_what_does_not_go_together(run, options: list[str], said: str) -> None:
    for arguments in (["attach", URL, "--no-probe"], ["edit", "gate"]):
        done = run(*arguments, *options)
        assert done.exit_code == 2
        assert said in done.stderr
        assert len(done.stderr.strip().splitlines()) == 1


@pytest.mark.parametrize(
    "option", [["--window", "5"], ["--max-frames", "2"], ["--choice", "a"], ["--json-schema", "{}"]]
)
def test_what_belongs_to_a_question_is_not_taken_without_one(run, option: list[str]) -> None:
    done = run("edit", "gate", "--fps", "2", *option)
    assert done.exit_code == 2
    assert f"{option[0]} needs a question" in done.stderr
    if option[0] in ("--choice", "--json-schema"):  # the others are those of the caption
        assert run("attach", URL, *option).exit_code == 2


def test_an_option_that_was_renamed_works_with_a_note_and_is_not_in_the_help(run) -> None:
    for arguments, reported in (
        (["attach", URL, "--no-probe", "--every", "4", "--json"], "--window"),
        (["ask", "gate", " ", "--frames", "2"], "--max-frames"),
    ):
        done = run(*arguments)
        assert f"is now called {reported}" in done.stderr
        assert f"{arguments[-2]} " not in run(arguments[0], "--help").output
    (stream,) = [json.loads(line) for line in run("streams", "--json").stdout.splitlines()][-1:]
    assert stream["watches"][0]["window"] == 4.0
    both = run("attach", URL, "--no-probe", "--every", "4", "--window", "6", "--json")
    assert json.loads(both.stdout)["watches"][0]["window"] == 6.0
