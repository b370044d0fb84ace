"""Render the street videos that the demo looks at."""

import sys
from pathlib import Path
from typing import Self

from streamer.errors import ErrorCode, StreamerError
from streamer.local.process import spawn, stop

CAMERA_SEED, CAMERA_SECONDS = 2_000_000_011, 48.0
FILE_SEED, FILE_SECONDS = 2_000_000_023, 28.0


class Rendering:
    """A street video that a child process renders; a context manager that stops it."""

    def __init__(self, path: Path, *, seed: int, seconds: float) -> None:
        self.path = path
        self._log = path.parent.with_name(f"{path.stem}.log")
        self._process = spawn(
            [
                *(sys.executable, "-m", "nvila_core.demo", "render", str(path)),
                *("--seconds", str(seconds), "--seed", str(seed)),
            ],
            log=self._log,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        stop(self._process, 1.0)

    def done(self) -> bool:
        """Whether the file is complete. Raises StreamerError(INTERNAL) if rendering failed."""
        code = self._process.poll()
        if code:
            lines = self._log.read_text(errors="replace").strip().splitlines()
            reason = lines[-1] if lines else f"exit code {code}"
            raise StreamerError(ErrorCode.INTERNAL, f"The street could not be rendered: {reason}.")
        return code == 0


def sign_number(seed: int) -> str:
    """Return the number on the street's sign, which the model has to read."""
    from nvila_core.demo.video import StreetVideo

    return str(StreetVideo(seed, 1.0).sign_number)
