"""configs/ documents the settings of streamer/settings.py, and every file in it loads."""

import re
from pathlib import Path

import pytest
import yaml

from streamer.errors import StreamerError
from streamer.settings import CONFIG_VARIABLE, Settings, load_settings

ROOT = Path(__file__).parents[2]
REFERENCE = ROOT / "configs" / "streamer.yaml"
EXAMPLES = sorted((ROOT / "configs" / "examples").glob("*.yaml"))

DEPENDS_ON_THE_USER = {"data_dir"}


def test_reference_documents_every_key() -> None:
    text = REFERENCE.read_text()
    documented = list(yaml.safe_load(text)) + re.findall(r"^# (\w+): \S+$", text, re.MULTILINE)

    assert sorted(documented) == sorted(Settings.model_fields)


def test_reference_has_the_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(CONFIG_VARIABLE, str(REFERENCE))  # restored after the test

    loaded = load_settings(REFERENCE)

    assert loaded == Settings.model_construct()
    assert loaded.model_fields_set == set(Settings.model_fields) - DEPENDS_ON_THE_USER


def test_reference_explains_every_key() -> None:
    lines = REFERENCE.read_text().splitlines()
    for number, line in enumerate(lines):
        if key := re.match(r"(\w+):", line):
            above = lines[number - 1]
            assert above.startswith("# ") or re.match(r"\w+:", above), f"{key[1]} has no sentence"


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_examples_load(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(CONFIG_VARIABLE, str(path))

    loaded = load_settings(path)

    assert loaded.model_fields_set == set(yaml.safe_load(path.read_text()))


def test_there_are_examples() -> None:
    assert len(EXAMPLES) >= 3


def test_a_misspelt_key_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("frame_tll: 5\n")
    monkeypatch.setenv(CONFIG_VARIABLE, str(path))

    with pytest.raises(StreamerError, match="frame_tll"):
        load_settings(path)
