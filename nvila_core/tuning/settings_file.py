"""The result of tuning, and the settings file for it."""

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from nvila_core.engine.engine import Engine
from nvila_core.errors import NVILAError
from nvila_core.model import NVILA
from nvila_core.models.device import step_limits

FILE_HEADER = "# Written by tune"
"""First words of every file that tune writes; only such a file is ever overwritten."""


@dataclass(frozen=True, kw_only=True)
class EngineSettings:
    """The settings that are tuned, and `quantize`, for which they were tuned.

    Names and defaults are those of the service's settings.
    """

    quantize: str | None = None
    dtype: str = "auto"
    threads: int | None = None
    compile: bool = False
    max_num_seqs: int = 32
    kv_cache_tokens: int = 65536
    max_num_batched_tokens: int
    step_tiles: int

    @classmethod
    def default(cls, device: torch.device, quantize: str | None = None) -> "EngineSettings":
        """Return the settings that a worker on a device uses by default."""
        limits = step_limits(device)
        return cls(
            quantize=quantize,
            max_num_batched_tokens=limits.max_num_batched_tokens,
            step_tiles=limits.step_tiles,
        )

    def engine(self, model: NVILA) -> Engine:
        """Return an engine with these settings, except those that `model` was loaded with.

        These are `quantize`, `dtype` and `compile`.
        """
        return Engine(
            model,
            self.max_num_seqs,
            self.kv_cache_tokens,
            max_num_batched_tokens=self.max_num_batched_tokens,
            step_tiles=self.step_tiles,
        )


@dataclass(frozen=True)
class Tuning:
    """The result of tuning.

    Attributes:
        settings: the settings to use.
        gain: their requests per second, relative to the defaults; 1 if the defaults stay.
        pairs: that ratio, once for each comparison.
        notes: the measurements, one line each.
    """

    settings: EngineSettings
    gain: float
    pairs: list[float] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def summary(self) -> str:
        """The result in one sentence."""
        if self.gain == 1:
            return "No settings were measurably better, so the defaults stay."
        return (
            f"{self.gain:.2f} times the requests per second of the defaults "
            f"(median of {len(self.pairs)} comparisons, {min(self.pairs):.2f} to "
            f"{max(self.pairs):.2f})."
        )


def settings_lines(
    tuning: Tuning, model: str, device: str, base: Mapping[str, Any]
) -> Iterator[str]:
    """Yield the lines of the settings file."""
    yield f"{FILE_HEADER} for {model} on {device}; PyTorch {torch.__version__}."
    yield f"# {tuning.summary}"
    yield "#"
    for note in tuning.notes:
        yield f"# {note}"
    yield ""
    chosen = {"model": model, "device": device, **asdict(tuning.settings)}
    for key, value in {**base, **chosen}.items():
        yield f"{key}: {json.dumps(value)}"  # JSON is YAML


def check_writable(path: Path) -> None:
    """Check that the settings file can be written, before spending a minute on tuning.

    Raises:
        NVILAError: the file cannot be written, or would overwrite a file that tune did not write.
    """
    if path.is_dir() or not path.absolute().parent.is_dir():
        raise NVILAError(f"{path} cannot be written: give --out a file in an existing folder.")
    if path.exists() and not path.read_text(errors="replace").startswith(FILE_HEADER):
        raise NVILAError(
            f"{path} exists and was not written by tune: give --out the name of another file."
        )


def write_settings(
    path: Path, tuning: Tuning, model: str, device: str, base: Mapping[str, Any] | None = None
) -> None:
    """Write a file for `streamer --config`, readable by its owner only.

    Args:
        path: file to write.
        tuning: the settings to write, and their measurements as comments.
        model: path or hub id of the model.
        device: device that the model was tuned on.
        base: other settings to keep in the file; they may contain passwords.

    Raises:
        NVILAError: see `check_writable`.
    """
    check_writable(path)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.writelines(line + "\n" for line in settings_lines(tuning, model, device, base or {}))
