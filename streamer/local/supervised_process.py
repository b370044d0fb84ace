"""A program that is kept running: started, watched, started again when it dies."""

import json
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from streamer.local.process import spawn, stop

MIN_DELAY = 0.5
MAX_DELAY = 30.0
STABLE_SECONDS = 60.0
"""A child that lived so long, in seconds, starts again without delay next time."""

MAX_LOG_BYTES = 4 << 20
"""Bytes beyond which a log of an earlier run is set aside."""


class SupervisedProcess:
    """One supervised program. Its log tells when it is ready: a JSON line with event `ready`.

    Use it from one thread, which must outlive the program (see `spawn`).
    """

    def __init__(
        self, name: str, argv: Sequence[str], environment: Mapping[str, str], log: Path
    ) -> None:
        self.name = name
        self.environment = dict(environment)
        self.ready: dict[str, Any] | None = None
        """The fields of the `ready` line, once it was printed."""
        self._argv = list(argv)
        self._log = log
        self._process: subprocess.Popen[bytes] | None = None
        self._failures = 0
        self._started = 0.0
        self._retry_at: float | None = None
        self._offset = 0

    def start(self) -> None:
        """Start the program."""
        if self._log.is_file() and self._log.stat().st_size > MAX_LOG_BYTES:
            self._log.replace(self._log.with_suffix(".log.1"))
        self._offset = self._log.stat().st_size if self._log.is_file() else 0
        self.ready = None
        self._retry_at = None
        self._started = time.monotonic()
        self._process = spawn(self._argv, env=self.environment, log=self._log)

    @property
    def pid(self) -> int | None:
        """Process id, while it runs."""
        return self._process.pid if self.running and self._process is not None else None

    @property
    def running(self) -> bool:
        """Whether the program runs."""
        return self._process is not None and self._process.poll() is None

    def check_ready(self) -> bool:
        """Whether it has said that it is ready."""
        if self.ready is None:
            for line in self._new_lines():
                event = _event(line)
                if event is not None and event.get("event") == "ready":
                    self.ready = event
        return self.ready is not None

    def _new_lines(self) -> list[str]:
        if not self._log.is_file():
            return []
        with self._log.open("rb") as file:
            file.seek(self._offset)
            text = file.read()
        end = text.rfind(b"\n") + 1
        self._offset += end
        return text[:end].decode(errors="replace").splitlines()

    def last_words(self) -> str:
        """The sentence with which it ended, or where to look for it."""
        try:
            tail = self._log.read_bytes()[-8192:].decode(errors="replace")
        except OSError:
            tail = ""
        for line in reversed(tail.splitlines()):
            event = _event(line)
            said = line if event is None else str(event.get("event", ""))
            if said.strip():
                return said.strip().removeprefix("streamer: ")
        return f"it said nothing; its log is {self._log}"

    def revive(self) -> str | None:
        """Start it again once it has died, after a growing delay; a sentence when that is news."""
        if self.running:
            return None
        now = time.monotonic()
        if self._retry_at is None:
            code = self._process.returncode if self._process is not None else None
            self._failures = 1 if now - self._started > STABLE_SECONDS else self._failures + 1
            delay = min(MAX_DELAY, MIN_DELAY * 2 ** (self._failures - 1))
            self._retry_at = now + delay
            return (
                f"The {self.name} ended by itself (exit code {code}: {self.last_words()}); "
                f"starting it again in {delay:g} s."
            )
        if now >= self._retry_at:
            self.start()
        return None

    def ask_to_stop(self) -> None:
        """Send SIGTERM and return at once."""
        if self.running and self._process is not None:
            self._process.terminate()

    def stop(self, timeout: float) -> None:
        """Stop it within `timeout` seconds, by force in the end."""
        if self._process is not None:
            stop(self._process, max(0.1, timeout))


def _event(line: str) -> dict[str, Any] | None:
    try:
        event = json.loads(line)
    except ValueError:
        return None
    return event if isinstance(event, dict) else None
