"""Keep a program running: start it, watch it, and restart it when it ends."""

import json
import subprocess
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from streamer.clock import Clock, SystemClock
from streamer.local.process import rotate_log, spawn, stop

MIN_DELAY = 0.5
_MAX_DELAY = 30.0
"""Seconds before a restart, which double with each failure."""

STABLE_SECONDS = 60.0
"""Seconds of running after which earlier failures are forgotten."""


class SupervisedProcess:
    """A supervised program. It reports in its log that it is ready: a JSON line, event `ready`.

    Use it from one thread, which must outlive the program (see `spawn`). `spawn_with` starts it in
    place of `spawn`, with the same arguments.
    """

    def __init__(
        self,
        name: str,
        argv: Sequence[str],
        environment: Mapping[str, str],
        log: Path,
        clock: Clock | None = None,
        spawn_with: Callable[..., "subprocess.Popen[bytes]"] | None = None,
    ) -> None:
        self.name = name
        self.environment = dict(environment)
        self.ready: dict[str, Any] | None = None
        """Fields of the `ready` line; None until it is logged."""
        self.was_ready = False
        """Whether the program, or one that it replaces after a restart, has been ready."""
        self._argv = list(argv)
        self._log = log
        self._clock = clock or SystemClock()
        self._spawn = spawn_with or spawn
        self._process: subprocess.Popen[bytes] | None = None
        self._failures = 0
        self._started = 0.0
        self._retry_at: float | None = None
        self._offset = 0

    def start(self) -> None:
        """Start the program."""
        rotate_log(self._log)
        self._offset = self._log.stat().st_size if self._log.is_file() else 0
        self.ready = None
        self._retry_at = None
        self._started = self._clock.monotonic()
        self._process = self._spawn(self._argv, env=self.environment, log=self._log)

    @property
    def pid(self) -> int | None:
        """Process id while the program runs."""
        return self._process.pid if self.running and self._process is not None else None

    @property
    def running(self) -> bool:
        """Whether the program is running."""
        return self._process is not None and self._process.poll() is None

    @property
    def exit_code(self) -> int | None:
        """How the program ended last (negative: the signal that ended it); None before that."""
        return self._process.poll() if self._process is not None else None

    def check_ready(self) -> bool:
        """Return whether the program has reported that it is ready."""
        if self.ready is None:
            self.new_lines()
        return self.ready is not None

    def new_lines(self) -> list[str]:
        """Return what the program has logged since it was last asked, and note if it is ready."""
        lines = self._read_log()
        for event in map(log_event, lines if self.ready is None else []):
            if event is not None and event.get("event") == "ready":
                self.ready = event
                self.was_ready = True
        return lines

    def _read_log(self) -> list[str]:
        if not self._log.is_file():
            return []
        with self._log.open("rb") as file:
            file.seek(self._offset)
            text = file.read()
        end = text.rfind(b"\n") + 1
        self._offset += end
        return text[:end].decode(errors="replace").splitlines()

    def rotate_log(self) -> None:
        """Move the program's log aside if it is large, once it has said that it is ready."""
        if self.ready is not None and rotate_log(self._log):
            self._offset = 0

    def last_message(self) -> str:
        """Return the last line of its log without a prefix, or a sentence that names the log."""
        try:
            tail = self._log.read_bytes()[-8192:].decode(errors="replace")
        except OSError:
            tail = ""
        for line in reversed(tail.splitlines()):
            event = log_event(line)
            message = line if event is None else str(event.get("event", ""))
            if message.strip():
                return message.strip().removeprefix("streamer: ")
        return f"no message; see its log {self._log}"

    def restart_if_ended(self) -> str | None:
        """Restart the program if it has ended, after a growing delay; return news, if any."""
        if self.running:
            return None
        now = self._clock.monotonic()
        if self._retry_at is None:
            code = self._process.returncode if self._process is not None else None
            self._failures = 1 if now - self._started > STABLE_SECONDS else self._failures + 1
            delay = min(_MAX_DELAY, MIN_DELAY * 2 ** (self._failures - 1))
            self._retry_at = now + delay
            return (
                f"The {self.name} ended unexpectedly (exit code {code}: {self.last_message()}); "
                f"restarting it in {delay:g} s."
            )
        if now >= self._retry_at:
            self.start()
        return None

    def postpone(self, seconds: float) -> None:
        """Restart the program, which has ended, after `seconds` and not sooner."""
        self._retry_at = self._clock.monotonic() + seconds

    def ask_to_stop(self) -> None:
        """Send SIGTERM and return at once."""
        if self.running and self._process is not None:
            self._process.terminate()

    def stop(self, timeout: float) -> None:
        """Stop the program; kill it after `timeout` seconds."""
        if self._process is not None:
            stop(self._process, max(0.1, timeout))


def log_event(line: str) -> dict[str, Any] | None:
    """Return the event of a line of a log; None if the line is no event."""
    try:
        event = json.loads(line)
    except ValueError:
        return None
    return event if isinstance(event, dict) else None
