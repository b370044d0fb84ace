"""What `tune` finds, and the settings file that it writes."""

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

MARK = "# Written by tune"
"""How such a file begins: nothing else is ever replaced."""


@dataclass(frozen=True, kw_only=True)
class EngineSettings:
    """What can be tuned, and `quantize`, for which it was; names and defaults are those of the
    service's settings.
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
        """What a worker on a device uses when nothing else is said."""
        limits = step_limits(device)
        return cls(
            quantize=quantize,
            max_num_batched_tokens=limits.max_num_batched_tokens,
            step_tiles=limits.step_tiles,
        )

    def engine(self, model: NVILA) -> Engine:
        """An engine with these settings; `quantize`, `dtype` and `compile` are the model's."""
        return Engine(
            model,
            self.max_num_seqs,
            self.kv_cache_tokens,
            max_num_batched_tokens=self.max_num_batched_tokens,
            step_tiles=self.step_tiles,
        )


@dataclass(frozen=True)
class Tuning:
    """What was found.

    Attributes:
        settings: to use.
        gain: how many times the requests a second of the defaults; 1 where they stay.
        pairs: that ratio, each time it was measured.
        notes: what was measured, a line each.
    """

    settings: EngineSettings
    gain: float
    pairs: list[float] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def summary(self) -> str:
        """One sentence."""
        if self.gain == 1:
            return "The defaults are as good as anything that was found, so they stay."
        return (
            f"{self.gain:.2f} times the requests a second of the defaults "
            f"(median of {len(self.pairs)} comparisons, {min(self.pairs):.2f} to "
            f"{max(self.pairs):.2f})."
        )


def lines(tuning: Tuning, model: str, device: str, base: Mapping[str, Any]) -> Iterator[str]:
    """The settings file, line by line."""
    yield f"{MARK} for {model} on {device}; PyTorch {torch.__version__}."
    yield f"# {tuning.summary}"
    yield "#"
    for note in tuning.notes:
        yield f"# {note}"
    yield ""
    chosen = {"model": model, "device": device, **asdict(tuning.settings)}
    for key, value in {**base, **chosen}.items():
        yield f"{key}: {json.dumps(value)}"  # JSON is YAML


def check_writable(path: Path) -> None:
    """See that the settings file can be written, before a minute is spent on it.

    Raises:
        NVILAError: it cannot, or it would replace a file of the user's own.
    """
    if path.is_dir() or not path.absolute().parent.is_dir():
        raise NVILAError(f"{path} cannot be written: give --out a file in a folder that exists.")
    if path.exists() and not path.read_text(errors="replace").startswith(MARK):
        raise NVILAError(f"{path} is a file that tune did not write: give --out another name.")


def write_settings(
    path: Path, tuning: Tuning, model: str, device: str, base: Mapping[str, Any] | None = None
) -> None:
    """Write a file that `streamer --config` takes.

    Args:
        model: path or hub id.
        base: other settings, which the file is to keep; it may hold passwords, so only the user
            may read the file.
    """
    check_writable(path)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.writelines(line + "\n" for line in lines(tuning, model, device, base or {}))
