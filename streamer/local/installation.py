"""Run a whole installation on this machine: servers, workers, recorder and API, supervised."""

import contextlib
import fcntl
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import redis

from streamer.api_keys import require_keys
from streamer.domain.stream import StreamState
from streamer.errors import ErrorCode, StreamerError
from streamer.local.fork_server import CannotFork, ForkServer
from streamer.local.process import spawn
from streamer.local.redis_server import EmbeddedServer
from streamer.local.supervised_process import SupervisedProcess
from streamer.redis_client.connections import run_file_path
from streamer.redis_client.errors import trouble_of
from streamer.service import Service
from streamer.settings import ENV_PREFIX, Settings

STOP_SECONDS = 5.0
"""Seconds that workers have to finish their work before they are killed."""

MIN_SERVER_MEMORY = 256 << 20
"""Minimum memory, in bytes, of each embedded server."""

MIN_SERVER_UPTIME = 10.0
"""Seconds: a server that ends again sooner than this is not restarted a second time."""

_COMMON = (
    "encodings.idna",
    "workers.ingest.__main__",
    "streamer.cli.app",
    "streamer.api.server",
    "workers.recorder.__main__",
)

SHARED_MODULES = {
    "workers.gpu": ("encodings.idna", "workers.gpu.__main__"),  # the slowest waits for no more
    "workers.ingest": _COMMON,
    "workers.recorder": _COMMON,
    "workers.mqtt": (*_COMMON, "workers.mqtt.__main__"),
    "streamer.cli": _COMMON,
}
"""What is imported before a program is forked, by its module; no PyTorch, and nothing with threads.
To import writes to the modules that are there already. So all programs but the first are forked
from the same ones, even if they do not use all of them: those of an earlier fork would be copies.
The fork server imports them by name: the service starts workers as programs and does not use them.
"""

_SUPERVISOR_SECONDS = 2.0  # that the supervisor of the GPUs gets to kill workers which take longer
_LOOK_SECONDS = 5.0  # between two looks whether a stream has a history
_LONG_TTL = 3600.0  # seconds of `frame_ttl` beyond which frames survive a restart, like a history


class Installation:
    """Starts the programs of the service, restarts those that end, and cleans up.

    Without `settings.redis_url`, it starts two servers: one for jobs, results and streams (stored
    in `data_dir`), one for frames (in memory, bounded; stored while a stream has a history). Use it
    from the main thread, as a context manager, and call `poll` a few times per second. `say`
    receives news as sentences; `environment` is added to the environment of the programs. With
    `gpus`, which CUDA_VISIBLE_DEVICES could name, there is one model worker for each of them, under
    a supervisor of their own, and `model_workers` does not count. A `fork_server` starts the
    programs, which share memory then, as long as it runs.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        model_workers: int = 1,
        ingest_workers: int = 1,
        gpus: Sequence[str] = (),
        environment: Mapping[str, str] | None = None,
        say: Callable[[str], None] = lambda _: None,
        fork_server: ForkServer | None = None,
    ) -> None:
        self._wanted = settings
        self._say = say
        self._fork_server = fork_server
        self._environment = dict(environment or {})
        self._gpus = list(gpus)
        self._counts = {
            "model worker": 0 if gpus else model_workers,
            "ingest worker": ingest_workers,
        }
        self._servers: dict[str, EmbeddedServer] = {}
        self._children: list[SupervisedProcess] = []
        self._model_workers: list[SupervisedProcess] = []
        self._lock: int | None = None
        self._reachable = False
        self._ready = False
        self._said_why = False
        self._waits_for = ""
        self._restarted = float("-inf")
        self._looked_at = float("-inf")
        self.settings = settings
        """The settings, with the addresses of this installation."""

    def __enter__(self) -> "Installation":
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def api_url(self) -> str:
        """URL of the API; known when the installation is reachable."""
        api = next(child for child in self._children if child.name == "API")
        return str((api.ready or {}).get("url", ""))

    def claim(self) -> None:
        """Take the data folder for this installation; a second call does nothing.

        Raises StreamerError if another installation runs in it.
        """
        if self._lock is not None:
            return
        directory = self._wanted.data_dir
        try:
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._lock = _lock(directory)
        except OSError as error:
            raise StreamerError(
                ErrorCode.SETTINGS_INVALID,
                f"Cannot write to {directory} ({error.strerror}): choose another --data-dir.",
            ) from None

    def start(self) -> None:
        """Start all programs; `reachable()` and `ready()` return how far they are.

        Raises StreamerError if another installation uses `data_dir`, a server does not start, or
        other machines could call the API although it has no keys.
        """
        self.claim()
        directory = self._wanted.data_dir
        run_file_path(self._wanted).unlink(
            missing_ok=True
        )  # left over from an installation that was killed
        if self._wanted.redis_url is None:
            memory = max(MIN_SERVER_MEMORY, _physical_memory() // 4)
            self._servers = {
                "main": EmbeddedServer(
                    directory / "main",
                    persistent=True,
                    max_memory=max(MIN_SERVER_MEMORY, memory // 2),
                ),
                "frames": EmbeddedServer(directory / "frames", persistent=False, max_memory=memory),
            }
            for server in self._servers.values():
                server.start()
        self._fill_in_addresses()
        require_keys(self.settings)
        self._children = self._make_children()
        self._model_workers = self._children[: 1 if self._gpus else self._counts["model worker"]]
        for child in self._children:
            child.start()

    def _fill_in_addresses(self) -> None:
        if self._servers:
            self.settings = self._wanted.model_copy(
                update={
                    "redis_url": self._servers["main"].local_url,
                    "frames_redis_url": self._servers["frames"].local_url,
                }
            )

    def _make_children(self) -> list[SupervisedProcess]:
        programs: list[tuple[str, list[str]]] = []  # the slowest to start comes first
        if self._gpus:
            supervisor = ["streamer.cli", "worker", "--gpus", ",".join(self._gpus)]
            programs.append(("GPU supervisor", supervisor))
        for name, module in (("model worker", "workers.gpu"), ("ingest worker", "workers.ingest")):
            count = self._counts[name]
            programs += [
                (name if count == 1 else f"{name} {n}", [module]) for n in range(1, count + 1)
            ]
        programs += [("API", ["streamer.cli", "serve"]), ("recorder", ["workers.recorder"])]
        if self.settings.mqtt_url is not None:
            programs.append(("MQTT bridge", ["workers.mqtt"]))
        environment = child_environment(self.settings) | self._environment
        logs = self._wanted.data_dir / "logs"
        return [
            SupervisedProcess(
                name,
                [sys.executable, "-m", *arguments],
                environment,
                logs / f"{name.lower().replace(' ', '-')}.log",
                spawn_with=self._spawn if self._fork_server is not None else None,
            )
            for name, arguments in programs
        ]

    def _spawn(
        self, argv: Sequence[str], *, env: Mapping[str, str], log: Path
    ) -> "subprocess.Popen[bytes]":
        """Start `python -m MODULE ...`: fork it if that is possible."""
        arguments = argv[1:]
        if self._fork_server is not None:
            imports = SHARED_MODULES.get(arguments[1], ())
            try:
                return self._fork_server.spawn(arguments, env=env, log=log, imports=imports)
            except CannotFork as error:
                if not self._said_why:
                    self._say(f"Programs need more memory, because {error}.")
                self._said_why = True
        return spawn(argv, env=env, log=log)

    def reachable(self) -> bool:
        """Return whether users can attach streams and ask: everything but the model is ready.

        The first time, write the run file. A model loads for seconds, or is downloaded for minutes;
        until it is ready, questions wait in their queue.

        Raises StreamerError if a program ends before it is ready for the first time.
        """
        if self._reachable:
            return True
        self._require_starts()
        if not all(child.was_ready for child in self._others):
            return False
        self._keep_api_port()
        self._write_run_file()
        self._reachable = self._resume_streams()
        return self._reachable

    def ready(self) -> bool:
        """Return whether all programs have been ready, the model workers too.

        Raises StreamerError if a program ends before it is ready for the first time.
        """
        if not self._ready:
            self._require_starts()
            started = all(child.was_ready for child in self._model_workers)
            self._ready = self.reachable() and started
        return self._ready

    def _require_starts(self) -> None:
        for child in self._children:
            ended = not child.running
            child.check_ready()  # after `running`: a program logs before it ends
            if ended and not child.was_ready:
                raise StreamerError(ErrorCode.INTERNAL, child.last_message())

    @property
    def _others(self) -> list[SupervisedProcess]:
        return self._children[len(self._model_workers) :]

    def waiting_for(self) -> list[str]:
        """Return the names of the programs because of which it is not reachable yet."""
        return [child.name for child in self._others if child.ready is None]

    def _keep_api_port(self) -> None:
        port = self.api_url.rpartition(":")[2]
        for child in self._children:  # a restarted API keeps its port
            child.environment[f"{ENV_PREFIX}API_PORT"] = port

    def _write_run_file(self) -> None:
        run = {
            **self._addresses(),
            "database_url": self.settings.timeline_url,
            "archive_url": self.settings.archive_url,
            "api_url": self.api_url,
            "pid": os.getpid(),
        }
        path = run_file_path(self._wanted)
        draft = path.with_suffix(".new")
        try:
            draft.unlink(missing_ok=True)
            opened = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(opened, "w") as file:
                json.dump(run, file)
            draft.replace(path)
        except OSError as error:
            raise StreamerError(
                ErrorCode.SETTINGS_INVALID,
                f"Cannot write {path} ({error.strerror}): free disk space, or choose another "
                "--data-dir.",
            ) from None

    def _addresses(self) -> dict[str, str | None]:
        """Return the addresses of the servers as the run file has them: those by TCP, which clients
        of any language take, and the sockets, which programs of the service prefer."""
        if not self._servers:
            settings = self.settings
            return {
                "redis_url": settings.redis_url,
                "frames_redis_url": settings.frames_redis_url,
            }
        main, frames = self._servers["main"], self._servers["frames"]
        return {
            "redis_url": main.url,
            "frames_redis_url": frames.url,
            "redis_socket_url": main.socket_url,
            "frames_redis_socket_url": frames.socket_url,
        }

    def _resume_streams(self) -> bool:
        """Start the streams of earlier runs, which outlive `up`; return whether Redis let it.

        A job that a crash lost is submitted again; it is unique per stream.
        """
        try:
            with Service(self.settings) as client:
                for stream in client.streams():
                    if stream.live or stream.state not in (StreamState.ENDED, StreamState.FAILED):
                        client.jobs.start_ingest(stream.id)
        except (redis.exceptions.RedisError, StreamerError) as error:
            trouble = None if isinstance(error, StreamerError) else trouble_of(error)
            if trouble is not None and not trouble.passes:
                raise
            message = str(error) if trouble is None else trouble.message
            if message != self._waits_for:
                self._say(f"{message} Waiting.")
            self._waits_for = message
            return False
        self._waits_for = ""
        return True

    def poll(self) -> None:
        """Restart programs and servers that have ended, from when it is reachable."""
        if time.monotonic() - self._looked_at >= _LOOK_SECONDS:
            self._keep_frames()
        dead = [name for name, server in self._servers.items() if not server.running]
        if dead:
            self._restart_servers(dead)
        for child in self._children:
            # One that has never been ready is not restarted: `ready` says what is wrong with it.
            news = child.restart_if_ended() if child.was_ready else None
            if news is not None:
                self._say(news)
            child.check_ready()
            child.rotate_log()
        for server in self._servers.values():
            server.rotate_log()

    def _keep_frames(self) -> None:
        """Let the server of frames write them to disk while a stream has a history."""
        self._looked_at = time.monotonic()
        frames = self._servers.get("frames")
        if frames is None or not self._reachable:
            return
        # A server that ended is restarted by `poll`.
        with contextlib.suppress(redis.exceptions.RedisError, StreamerError):
            frames.keep_snapshots(self._has_history())

    def _has_history(self) -> bool:
        settings = self.settings
        if settings.history > 0 or settings.frame_ttl > _LONG_TTL:
            return True
        with Service(settings) as client:
            return any(stream.history for stream in client.streams() if stream.live)

    def _restart_servers(self, dead: list[str]) -> None:
        if time.monotonic() - self._restarted < MIN_SERVER_UPTIME:
            raise StreamerError(
                ErrorCode.REDIS_UNAVAILABLE,
                f"The {dead[0]} Redis server ended again soon after its restart: see its log in "
                f"{self._servers[dead[0]].directory}.",
            )
        self._restarted = time.monotonic()
        for name in dead:
            self._say(f"The {name} Redis server ended unexpectedly; restarting all programs.")
        self._stop_children()  # they only know the old addresses
        for name in dead:
            self._servers[name].stop()
            self._servers[name].start()
        self._fill_in_addresses()
        environment = child_environment(self.settings) | self._environment
        port = {f"{ENV_PREFIX}API_PORT": self.api_url.rpartition(":")[2]} if self._reachable else {}
        for child in self._children:
            child.environment = environment | port
            child.start()
        if self._reachable:
            self._write_run_file()

    def _stop_children(self) -> None:
        for child in self._children:
            child.ask_to_stop()
        deadline = time.monotonic() + STOP_SECONDS + (_SUPERVISOR_SECONDS if self._gpus else 0.0)
        for child in self._children:
            child.stop(deadline - time.monotonic())

    def stop(self) -> None:
        """Stop everything within about six seconds (eight with `gpus`), or as long as it takes to
        write the frames of a history to disk. A second call does nothing."""
        if self._lock is None:
            return
        self._keep_frames()
        run_file_path(self._wanted).unlink(missing_ok=True)
        self._stop_children()
        for server in self._servers.values():
            server.stop()
        os.close(self._lock)
        self._lock = None


def child_environment(settings: Settings) -> dict[str, str]:
    """Return the environment with every setting, so that child processes see exactly `settings`."""
    environment = dict(os.environ)
    for key, value in settings.model_dump(mode="json", exclude_none=True).items():
        text = ",".join(value) if isinstance(value, list) else str(value)
        environment[ENV_PREFIX + key.upper()] = text
    return environment


def _lock(directory: Path) -> int:
    descriptor = os.open(directory / "up.lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        owner = os.read(descriptor, 32).decode(errors="replace").strip()
        os.close(descriptor)
        raise StreamerError(
            ErrorCode.SETTINGS_INVALID,
            f"`streamer up` already runs in {directory} (process {owner or 'unknown'}): "
            "use it, stop it, or choose another --data-dir.",
        ) from None
    os.ftruncate(descriptor, 0)
    os.write(descriptor, str(os.getpid()).encode())
    return descriptor


def _physical_memory() -> int:
    pages: Any = os.sysconf("SC_PHYS_PAGES")
    return int(pages) * os.sysconf("SC_PAGE_SIZE")
