"""`streamer probe`, in this process: what it prints and its exit code."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from streamer.cli.app import app
from streamer.cli.probe import describe_drift, facts
from streamer.media.probe.report import ProbeReport
from tests.support.videos import write_video

PASSWORD = "hunter2secret"


@pytest.fixture
def runner(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> CliRunner:
    monkeypatch.setenv("STREAMER_DATA_DIR", str(tmp_path))
    monkeypatch.setenv("COLUMNS", "200")
    return CliRunner()


def test_a_source_that_works(runner: CliRunner, tmp_path: Path) -> None:
    write_video(tmp_path / "v.mp4", seconds=1.0)
    done = runner.invoke(app, ["probe", str(tmp_path / "v.mp4")])
    assert done.exit_code == 0, done.output
    for words in ("ok      open", "320x240", "h264", "25 fps", "every 0.48 s (12 frames)"):
        assert words in done.stdout

    as_json = runner.invoke(app, ["probe", str(tmp_path / "v.mp4"), "--json"])
    found = ProbeReport.model_validate(json.loads(as_json.stdout))
    assert (found.ok, found.codec, found.frames) == (True, "h264", 25)


@pytest.mark.parametrize("as_json", [[], ["--json"]])
def test_a_source_that_fails(runner: CliRunner, as_json: list[str]) -> None:
    url = f"rtsp://admin:{PASSWORD}@127.0.0.1:1/live"
    done = runner.invoke(app, ["probe", url, *as_json])
    assert done.exit_code == 1
    assert PASSWORD not in done.output
    assert "Nothing listens at rtsp://admin:***@127.0.0.1:1/live" in done.stdout
    if as_json:
        found = ProbeReport.model_validate(json.loads(done.stdout))
        assert [(step.name, step.ok) for step in found.steps] == [
            ("name", True),
            ("connect", False),
        ]
        assert found.advice
    else:
        assert "FAILED  connect" in done.stdout
        assert "Try: " in done.stdout


def test_what_is_no_address(runner: CliRunner) -> None:
    done = runner.invoke(app, ["probe", "gopher://h/x"])
    assert (done.exit_code, done.stdout) == (1, "")
    assert "not allowed" in done.stderr
    assert runner.invoke(app, ["probe", "x", "--transport", "pigeon"]).exit_code == 2


def test_words_for_what_is_known() -> None:
    bare = ProbeReport(url="u", live=True, codec="h264", width=640, height=480)
    assert facts(bare) == [("video", "h264"), ("size", "640x480"), ("kind", "live")]
    whole = bare.model_copy(
        update={"transport": "udp", "auth": "Digest", "server": "Cam", "clock_drift": 0.0012}
    )
    assert facts(whole)[3:] == [
        ("transport", "udp"),
        ("login", "Digest"),
        ("server", "Cam"),
        ("clock", "1.2 ms per second slow"),
    ]
    assert (describe_drift(-0.00001), describe_drift(-0.02)) == (
        "no drift",
        "20 ms per second fast",
    )
