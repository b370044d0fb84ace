"""Load the settings: defaults, overridden by a YAML file, then by `STREAMER_*` variables."""

import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self
from urllib.parse import urlsplit

from platformdirs import user_data_path
from pydantic import Field, ValidationError, field_validator, model_validator
from pydantic_settings import (
    BaseSettings,
    EnvSettingsSource,
    InitSettingsSource,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    YamlConfigSettingsSource,
)

from nvila_core.errors import PromptError
from nvila_core.file_kind import MAX_PIXELS
from nvila_core.quantization import Quantization
from nvila_core.resolution.policy import parse_policy
from streamer.errors import ErrorCode, StreamerError
from streamer.limits import MAX_ANSWER_TOKENS, MAX_CLIP_FRAMES
from streamer.mqtt_address import MqttAddress

ENV_PREFIX = "STREAMER_"
CONFIG_VARIABLE = ENV_PREFIX + "CONFIG"

MIN_KEY_LENGTH = 12
"""Minimum characters of a secret key."""

MAX_LIVE_PIXELS = 36_000_000
"""Default of `max_live_pixels`: 8K has 33 million."""

RENAMED = {"step_tokens": "max_num_batched_tokens"}
"""Renamed settings, old name -> new name. An old name works, with a warning, for one release."""


def _new_names(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return `values` under the settings' new names; warn of each old name that was used."""
    renamed = dict(values)
    for old, new in RENAMED.items():
        if old in renamed:
            warnings.warn(
                f"The setting '{old}' is now '{new}': use the new name, because the next release "
                "will reject the old one.",
                FutureWarning,
                stacklevel=1,  # in one place: Python shows the same warning once
            )
            value = renamed.pop(old)
            renamed.setdefault(new, value)
    return renamed


def _api_root(url: str) -> str:
    """Return the address under which a server has `/chat/completions`: `/v1` without a path.

    Raises ValueError.
    """
    parts = urlsplit(url.strip())
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
        raise ValueError("give an http(s) address such as http://127.0.0.1:8000/v1")
    if parts.username is not None or parts.password is not None:
        raise ValueError("leave the password out, and put the server's key into model_api_key")
    path = parts.path.rstrip("/").removesuffix("/chat/completions") or "/v1"
    return f"{parts.scheme}://{parts.netloc}{path}"


class _Environment(EnvSettingsSource):
    """Variables of the environment."""

    def __call__(self) -> dict[str, Any]:
        old = {name: os.environ.get(ENV_PREFIX + name.upper()) for name in RENAMED}
        given = {name: value for name, value in old.items() if value}
        return _new_names({**super().__call__(), **given})


class _YamlFile(YamlConfigSettingsSource):
    """Keys of the settings file."""

    def __call__(self) -> dict[str, Any]:
        return _new_names(super().__call__())


class Settings(BaseSettings):
    """All settings of the service. `configs/streamer.yaml` explains each."""

    model_config = SettingsConfigDict(env_prefix=ENV_PREFIX, extra="forbid", env_ignore_empty=True)

    redis_url: str | None = Field(default=None, repr=False)
    frames_redis_url: str | None = Field(default=None, repr=False)
    secret_key: Annotated[list[str], NoDecode] = Field(default_factory=list, repr=False)
    data_dir: Path = Field(default_factory=lambda: user_data_path("nvila-streamer"))
    database_url: str | None = Field(default=None, repr=False)

    model: str = "demo"
    backend: Literal["nvila", "openai"] = "nvila"
    base_url: str | None = None
    model_api_key: str | None = Field(default=None, repr=False)
    default_model: str | None = None
    device: str = "auto"
    dtype: Literal["auto", "float32", "float16", "bfloat16"] = "auto"
    quantize: Quantization | None = None
    max_num_seqs: int | None = Field(
        default=None, ge=1, description="requests that run at once; None: by kv_cache_tokens"
    )
    kv_cache_tokens: int | None = Field(
        default=None, ge=256, description="positions of the key-value cache; None: by free memory"
    )
    gpu_memory_fraction: float = Field(
        default=0.85, gt=0, le=1, description="of a GPU's memory beside the model, for the cache"
    )
    max_num_batched_tokens: int | None = Field(
        default=None,
        ge=1,
        description="maximum LLM positions of an engine step; None: chosen for the device",
    )
    step_tiles: int | None = Field(
        default=None,
        ge=1,
        description="maximum tiles encoded in an engine step; None: chosen for the device",
    )
    tile_cache_bytes: int = Field(default=2**28, ge=0)
    frame_cache_bytes: int = Field(default=2**26, ge=0)
    tile_tolerance: float = Field(default=0.0, ge=0, lt=1)
    threads: int | None = Field(default=None, ge=1, description="PyTorch threads of a gpu worker")
    compile: bool = False
    policy: str = "adaptive"
    clip_tokens: int = Field(default=4096, ge=1, description="maximum vision tokens of a clip")

    worker_slots: int | None = Field(
        default=None, ge=1, description="concurrent clip jobs of a gpu worker; None: chosen"
    )
    ingest_slots: int = Field(default=32, ge=1, description="streams of an ingest worker")
    job_timeout: float = Field(default=600.0, gt=0)
    step_timeout: float = Field(
        default=120.0,
        gt=0,
        description="seconds of an engine step before the engine counts as stuck",
    )
    max_restarts: int = Field(
        default=5, ge=0, description="restarts of a gpu worker in ten minutes"
    )
    lease: float = Field(
        default=12.0,
        ge=2,
        le=600,
        description="seconds of silence before a worker's jobs are taken over",
    )

    fps: float = Field(default=1.0, gt=0, le=60)
    window: float = Field(default=10.0, gt=0, le=3600)
    max_frames: int = Field(default=16, ge=1, le=MAX_CLIP_FRAMES)
    max_tokens: int = Field(default=128, ge=1, le=MAX_ANSWER_TOKENS)
    max_pending_clips: int = Field(
        default=2, ge=1, description="unanswered clips of a live watch before one is dropped"
    )
    max_file_clips: int = Field(
        default=16, ge=1, description="unanswered clips of a recording before reading pauses"
    )

    frame_ttl: float = Field(default=900.0, gt=0)
    recorded_frame_ttl: float = Field(default=86400.0, gt=0)
    frames_per_stream: int = Field(default=5000, ge=8)
    frame_bytes_per_stream: int = Field(default=256 << 20, ge=1 << 20)
    frames_memory: int | None = Field(
        default=None, ge=8 << 20, description="maximum bytes of all frames in Redis"
    )
    history: float = Field(
        default=0.0, ge=0, le=90 * 86400, description="seconds that thinned frames are kept"
    )
    stale_after: float | None = Field(
        default=None,
        gt=0,
        description="seconds after which a frame is too old for a question about now; None: three "
        "sampling intervals, at least 5 s",
    )
    archive_url: str | None = Field(default=None, repr=False)
    archive_days: float = Field(default=7.0, gt=0)
    jpeg_quality: int = Field(default=80, ge=30, le=100)

    files_dir: Path | None = None
    max_files_bytes: int = Field(
        default=20 << 30, ge=1 << 20, description="maximum bytes of all uploaded files"
    )
    max_file_bytes: int = Field(
        default=4 << 30, ge=1 << 20, description="maximum bytes of one uploaded file"
    )
    files_days: float = Field(
        default=7.0, gt=0, description="days that an uploaded file is kept without being used"
    )

    open_timeout: float = Field(default=10.0, gt=0)
    read_timeout: float = Field(default=8.0, gt=0)
    allowed_dirs: Annotated[list[Path], NoDecode] = Field(default_factory=list)
    allowed_hosts: Annotated[list[str], NoDecode] = Field(default_factory=list)
    webhook_hosts: Annotated[list[str], NoDecode] = Field(default_factory=list)
    https_verify: bool = True
    max_pixels: int = Field(
        default=MAX_PIXELS, ge=1, description="maximum pixels of a frame of a recording"
    )
    max_live_pixels: int = Field(
        default=MAX_LIVE_PIXELS, ge=1, description="maximum pixels of a frame of a live stream"
    )
    reconnect_cap: float = Field(default=60.0, gt=0)
    find_moved_after: float | None = Field(
        default=180.0,
        gt=0,
        description="seconds after which a lost camera is searched for in its network; None: never",
    )
    hwaccel: Literal["none", "auto", "cuda"] = "auto"

    retention_days: float | None = Field(
        default=None, gt=0, le=36_500, description="days that results are kept; None: for ever"
    )
    retention_bytes: int | None = Field(
        default=None, ge=1 << 20, description="bytes of the database of results; None: any"
    )
    results_maxlen: int = Field(
        default=10000, ge=100, description="recorded results that stay in the results queue"
    )
    results_max_bytes: int = Field(
        default=256 << 20,
        ge=1 << 20,
        description="bytes of the results queue, with results that are not recorded yet",
    )
    query_ttl: float = Field(default=86400.0, gt=0)
    max_queries: int = Field(
        default=10000, ge=1, description="unanswered queries before more are refused"
    )
    max_query_wait: float = Field(
        default=0.5, gt=0, description="seconds that a query may be expected to wait for a worker"
    )
    max_query_bytes: int = Field(
        default=64 << 20, ge=1 << 20, description="bytes of unanswered queries and their answers"
    )

    incident_days: float = Field(
        default=90.0, gt=0, le=3650, description="days that incidents are kept after their end"
    )
    incident_lost_after: float = Field(
        default=86400.0,
        ge=60,
        description="seconds without an answer after which an open incident ends as stream_lost",
    )
    alertmanager_url: str | None = Field(default=None, repr=False)
    notify_urls: Annotated[list[str], NoDecode] = Field(default_factory=list, repr=False)
    public_url: str | None = Field(
        default=None, description="address of the API, for links in messages"
    )

    mqtt_url: str | None = Field(default=None, repr=False)
    mqtt_prefix: str = Field(
        default="nvila",
        max_length=64,
        pattern=r"^[A-Za-z0-9_-]+(/[A-Za-z0-9_-]+)*$",
        description="first level of all MQTT topics of this installation",
    )

    api_host: str = "127.0.0.1"
    api_port: int = Field(default=8080, ge=0, le=65535)
    api_url: str | None = None
    api_key: str | None = Field(default=None, repr=False)
    api_keys: Annotated[list[str], NoDecode] = Field(default_factory=list, repr=False)
    rate_limit: int | None = Field(
        default=None, ge=1, description="calls a minute of an API key; None: not limited"
    )
    metrics_streams: int = Field(
        default=200, ge=0, description="streams that have metrics of their own at /metrics"
    )
    max_video_viewers: int = Field(
        default=32, ge=0, description="viewers of live video of an API process; 0: none"
    )
    max_body_bytes: int = Field(
        default=2 << 20, ge=4096, description="maximum bytes of the body of an HTTP request"
    )
    max_chat_bytes: int = Field(
        default=32 << 20,
        ge=4096,
        description="maximum bytes of the body of a chat, with the pictures in it",
    )

    fork_programs: bool = Field(
        default=True,
        description="whether `streamer up` forks its programs, so that they share memory",
    )
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    otlp_url: str | None = Field(
        default=None, repr=False, description="address of an OpenTelemetry collector for traces"
    )

    @field_validator("policy")
    @classmethod
    def _known_policy(cls, value: str) -> str:
        try:
            parse_policy(value)
        except PromptError as error:
            raise ValueError(str(error)) from None
        return value

    @field_validator("notify_urls", mode="before")
    @classmethod
    def _split_urls(cls, value: Any) -> Any:
        return value.split() if isinstance(value, str) else value  # URLs may have commas

    @field_validator(
        "api_keys", "secret_key", "allowed_dirs", "allowed_hosts", "webhook_hosts", mode="before"
    )
    @classmethod
    def _split_lists(cls, value: Any) -> Any:
        if isinstance(value, str):
            return [key.strip() for key in value.split(",") if key.strip()]
        return value

    @field_validator("secret_key")
    @classmethod
    def _refuse_short_keys(cls, keys: list[str]) -> list[str]:
        if any(len(key) < MIN_KEY_LENGTH for key in keys):
            raise ValueError(
                f"a key needs at least {MIN_KEY_LENGTH} characters: create one with "
                "`openssl rand -base64 32`"
            )
        return keys

    @field_validator("base_url")
    @classmethod
    def _http_address(cls, value: str | None) -> str | None:
        return None if value is None else _api_root(value)

    @field_validator("otlp_url")
    @classmethod
    def _collector(cls, value: str | None) -> str | None:
        if value is None:
            return None
        parts = urlsplit(value.strip())
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.query:
            raise ValueError("give an http(s) address such as http://127.0.0.1:4318")
        return value.strip().rstrip("/").removesuffix("/v1/traces")

    @field_validator("mqtt_url")
    @classmethod
    def _broker(cls, value: str | None) -> str | None:
        if value is not None:
            MqttAddress.of(value)
        return value

    @model_validator(mode="after")
    def _model_elsewhere(self) -> Self:
        named = "model" in self.model_fields_set
        if self.backend == "openai" and (self.base_url is None or not named):
            raise ValueError(
                "backend 'openai' needs base_url, the address of a server such as "
                "http://127.0.0.1:8000/v1, and model, the name of a model there"
            )
        return self

    @property
    def timeline_url(self) -> str:
        """SQLAlchemy URL of the timeline: `database_url`, or an SQLite file in `data_dir`."""
        return self.database_url or f"sqlite:///{self.data_dir / 'timeline.db'}"

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        path = os.environ.get(CONFIG_VARIABLE)
        yaml = (_YamlFile(settings_cls, yaml_file=path),) if path else ()
        keywords = InitSettingsSource(settings_cls, init_kwargs=_new_names(init_settings()))
        return (keywords, _Environment(settings_cls), *yaml)


def load_settings(config: Path | None = None, **overrides: Any) -> Settings:
    """Load the settings from `config`, the environment and `overrides` that are not None.

    Raises StreamerError(SETTINGS_INVALID): an unknown key, an invalid value, or a missing file.
    """
    if config is not None:
        os.environ[CONFIG_VARIABLE] = str(config)  # child processes read the same file
    path = os.environ.get(CONFIG_VARIABLE)
    if path and not Path(path).is_file():
        raise StreamerError(
            ErrorCode.SETTINGS_INVALID, f"The settings file {path} does not exist: check --config."
        )
    names = [*Settings.model_fields, *RENAMED]
    known = {ENV_PREFIX + name.upper() for name in names} | {CONFIG_VARIABLE}
    unknown = sorted(v for v in os.environ if v.startswith(ENV_PREFIX) and v not in known)
    if unknown:
        raise StreamerError(
            ErrorCode.SETTINGS_INVALID,
            f"Unknown setting {unknown[0]} in the environment: see configs/streamer.yaml.",
        )
    try:
        return Settings(**{k: v for k, v in overrides.items() if v is not None})
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        key = ".".join(str(part) for part in first["loc"])
        subject = f"Setting '{key}'" if key else "Settings"  # of several together
        raise StreamerError(
            ErrorCode.SETTINGS_INVALID,
            f"{subject}: {first['msg']} (see configs/streamer.yaml).",
        ) from None
