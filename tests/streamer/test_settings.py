"""Renamed settings keep working under their old name for one release, and say so."""

import warnings
from pathlib import Path
from typing import Any

import pytest

from streamer.errors import ErrorCode, StreamerError
from streamer.settings import CONFIG_VARIABLE, load_settings

OLD, NEW = "step_tokens", "max_num_batched_tokens"


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "settings.yaml"
    path.write_text("")
    monkeypatch.setenv(CONFIG_VARIABLE, str(path))
    return path


def test_an_old_name_in_the_file_works_and_names_the_new_one(config: Path) -> None:
    config.write_text(f"{OLD}: 96\n")
    with pytest.warns(FutureWarning, match=f"'{OLD}' is now '{NEW}'") as caught:
        settings = load_settings()
    assert settings.max_num_batched_tokens == 96
    assert len(caught) == 1


def test_an_old_name_as_a_keyword_works() -> None:
    with pytest.warns(FutureWarning, match=NEW):
        assert load_settings(**dict[str, Any]({OLD: 96})).max_num_batched_tokens == 96


def test_an_old_variable_wins_over_the_new_name_in_the_file(
    config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config.write_text(f"{NEW}: 7\n")
    monkeypatch.setenv(f"STREAMER_{OLD.upper()}", "96")
    with pytest.warns(FutureWarning, match=NEW):
        assert load_settings().max_num_batched_tokens == 96


def test_the_new_name_wins_over_the_old_one_beside_it(
    config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(f"STREAMER_{OLD.upper()}", "96")
    monkeypatch.setenv(f"STREAMER_{NEW.upper()}", "7")
    with pytest.warns(FutureWarning, match=NEW):
        assert load_settings().max_num_batched_tokens == 7


def test_an_old_name_with_a_bad_value_is_an_error_that_names_the_setting(config: Path) -> None:
    config.write_text(f"{OLD}: 0\n")
    with (
        pytest.warns(FutureWarning, match=NEW),
        pytest.raises(StreamerError, match=f"Setting '{NEW}'") as caught,
    ):
        load_settings()
    assert caught.value.code is ErrorCode.SETTINGS_INVALID


def test_new_names_say_nothing(config: Path) -> None:
    config.write_text(f"{NEW}: 96\n")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert load_settings().max_num_batched_tokens == 96
