"""Renamed settings keep working under their old name for one release, and say so."""

import warnings
from pathlib import Path
from typing import Any

import pytest

from streamer.errors import ErrorCode, StreamerError
from streamer.settings import CONFIG_VARIABLE, RENAMED, Settings, load_settings

OF_0_1_0 = [
    "allowed_dirs",
    "allowed_hosts",
    "api_host",
    "api_keys",
    "api_port",
    "archive_days",
    "archive_url",
    "clip_tokens",
    "compile",
    "data_dir",
    "database_url",
    "device",
    "dtype",
    "fps",
    "frame_bytes_per_stream",
    "frame_ttl",
    "frames_memory",
    "frames_per_stream",
    "frames_redis_url",
    "history",
    "https_verify",
    "hwaccel",
    "ingest_slots",
    "job_timeout",
    "jpeg_quality",
    "kv_cache_tokens",
    "lease",
    "log_level",
    "max_file_clips",
    "max_frames",
    "max_num_batched_tokens",
    "max_num_seqs",
    "max_pending_clips",
    "max_restarts",
    "max_tokens",
    "model",
    "open_timeout",
    "policy",
    "quantize",
    "query_ttl",
    "read_timeout",
    "reconnect_cap",
    "recorded_frame_ttl",
    "redis_url",
    "results_maxlen",
    "secret_key",
    "step_tiles",
    "step_timeout",
    "threads",
    "tile_cache_bytes",
    "tile_tolerance",
    "window",
    "worker_slots",
]
"""All settings of release 0.1.0."""

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


def test_every_setting_of_the_first_release_is_known_or_has_a_new_name() -> None:
    assert len(OF_0_1_0) > 40
    assert set(OF_0_1_0) <= set(Settings.model_fields) | set(RENAMED)
    assert set(RENAMED.values()) <= set(Settings.model_fields)


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


@pytest.mark.parametrize(
    ("given", "address"),
    [
        ("http://127.0.0.1:8000", "http://127.0.0.1:8000/v1"),
        ("https://host/v1/", "https://host/v1"),
        ("https://host/api/openai", "https://host/api/openai"),
        ("http://host:1/v1/chat/completions", "http://host:1/v1"),
    ],
)
def test_the_address_of_a_model_elsewhere_has_its_path(given: str, address: str) -> None:
    assert load_settings(backend="openai", base_url=given, model="eye").base_url == address


@pytest.mark.parametrize(
    "given",
    [
        {"backend": "openai", "model": "eye"},
        {"backend": "openai", "base_url": "http://host/v1"},
        {"base_url": "ftp://host/v1"},
        {"base_url": "http://user:word@host/v1"},
        {"backend": "other"},
    ],
)
def test_a_model_elsewhere_needs_an_address_and_a_name(given: dict[str, Any]) -> None:
    with pytest.raises(StreamerError) as refusal:
        load_settings(**given)
    assert refusal.value.code is ErrorCode.SETTINGS_INVALID
    assert "word" not in refusal.value.message.replace("password", "")
