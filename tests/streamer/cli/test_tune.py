"""`streamer tune`."""

import json
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from streamer.cli.app import app
from streamer.settings import CONFIG_VARIABLE, load_settings


@pytest.fixture
def runner(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> CliRunner:
    monkeypatch.setenv("STREAMER_DATA_DIR", str(tmp_path))
    monkeypatch.setenv(CONFIG_VARIABLE, "")  # so that what --config sets is taken back
    return CliRunner()


def test_it_writes_a_file_for_the_model_of_the_settings_and_keeps_the_rest(
    runner: CliRunner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine, out = tmp_path / "mine.yaml", tmp_path / "tuned.yaml"
    mine.write_text("model: demo\nfps: 2.5\ndevice: cpu\n")
    monkeypatch.setenv("STREAMER_QUANTIZE", "int8")

    said = runner.invoke(app, ["--config", str(mine), "tune", "--seconds", "1", "--out", str(out)])

    assert said.exit_code == 0, said.output
    assert "defaults" in said.stdout
    monkeypatch.setenv(CONFIG_VARIABLE, str(out))
    loaded = load_settings()
    assert (loaded.model, loaded.device, loaded.fps) == ("demo", "cpu", 2.5)
    written = yaml.safe_load(out.read_text())
    assert {"max_num_batched_tokens", "step_tiles", "threads"} <= set(written)
    assert written["quantize"] == "int8"  # for which all that was found


def test_with_json_it_prints_one_object_and_nothing_else(runner: CliRunner, tmp_path: Path) -> None:
    out = tmp_path / "tuned.yaml"

    said = runner.invoke(app, ["tune", "--seconds", "1", "--out", str(out), "--json"])

    assert said.exit_code == 0, said.output
    found = json.loads(said.stdout)
    assert found["file"] == str(out)
    assert found["gain"] >= 1
    assert found["summary"].endswith(".")
    written = yaml.safe_load(out.read_text())
    both = written.keys() & found["settings"].keys()
    assert {"max_num_batched_tokens", "step_tiles", "threads"} <= both
    assert all(written[name] == found["settings"][name] for name in both)


def test_bad_input_is_one_sentence(runner: CliRunner, tmp_path: Path) -> None:
    mine = tmp_path / "mine.yaml"
    mine.write_text("fps: 2.5\n")

    for arguments, words in (
        (["--out", str(mine)], "give --out the name of another"),
        (["--model", str(tmp_path / "nowhere"), "--out", str(tmp_path / "x.yaml")], "nowhere"),
    ):
        said = runner.invoke(app, ["tune", "--seconds", "1", *arguments])

        assert said.exit_code == 1
        assert words in said.stderr
        assert "Traceback" not in said.stderr
    assert mine.read_text() == "fps: 2.5\n"
