"""Be a Python program in a forked process: do what an interpreter does for `python -m MODULE`.

A process that is forked from one which has imported the program's modules shares their memory with
it, and need not import them. Linux only.
"""

import contextlib
import gc
import importlib
import io
import json
import os
import runpy
import signal
import sys
import tempfile
import time
import types
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from streamer.local.process import end_with_parent

MAX_BYTES = 128 << 10
"""Maximum size of an order."""

READ_AT_START = (
    *("PYTHON", "LD_", "LC_", "LANG", "MALLOC_", "GLIBC_", "OPENSSL_", "SSL_"),
    *("OMP_", "OPENBLAS_", "MKL_", "KMP_", "CUDA_", "HF_", "REQUESTS_"),
)
"""Variables that an interpreter or a library reads only once, beginning with one of these."""

_ADOPTION_INTERVAL = 0.001  # seconds between two looks at who the parent is


@dataclass(frozen=True)
class Order:
    """A program to start.

    Attributes:
        arguments: those after `python`: `-m MODULE ...`, `-c CODE ...` or `FILE ...`.
        env: its whole environment.
        cwd: its working directory.
        imports: modules that are imported before the fork.
    """

    arguments: Sequence[str]
    env: Mapping[str, str]
    cwd: str
    imports: Sequence[str] = ()

    def encode(self) -> bytes:
        """Return it as a message."""
        return json.dumps(asdict(self)).encode()

    @classmethod
    def decode(cls, message: bytes) -> "Order":
        """Return the order that a message holds."""
        return cls(**json.loads(message))


def same_start(env: Mapping[str, str], other: Mapping[str, str]) -> bool:
    """Return whether two environments agree on what is read only once, at the start."""
    names = [name for name in {*env, *other} if name.startswith(READ_AT_START)]
    return all(env.get(name) == other.get(name) for name in names)


def import_shared(imports: Sequence[str]) -> None:
    """Import modules, so that a process which is forked next shares their memory."""
    for name in imports:
        importlib.import_module(name)
    gc.freeze()  # so that the collector does not write to, and so copy, what processes share


def become_session(descriptors: Sequence[int], parent: int) -> None:
    """Lead a session, end with `parent`, use `descriptors` as standard streams, close all others.

    While a process that will end is the parent, wait until `parent` adopts this one.
    """
    os.setsid()
    first = os.getppid()
    while first != parent and os.getppid() == first:
        time.sleep(_ADOPTION_INTERVAL)
    end_with_parent(parent)
    for number, descriptor in enumerate(descriptors):
        os.dup2(descriptor, number)


def close_descriptors() -> None:
    """Close all but the standard streams."""
    for number in map(int, os.listdir("/proc/self/fd")):
        if number > 2:
            with contextlib.suppress(OSError):  # the descriptor of the listing itself
                os.close(number)


def run_order(order: Order) -> None:
    """Run the program in this process, as a fresh interpreter would. SystemExit leaves it."""
    os.chdir(order.cwd)
    os.environ.clear()
    os.environ.update(order.env)
    time.tzset()
    tempfile.tempdir = None  # chosen by the environment
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
        if signal.getsignal(number) != signal.SIG_IGN:  # as after `nohup`: it stays so
            interrupt = number == signal.SIGINT
            signal.signal(number, signal.default_int_handler if interrupt else signal.SIG_DFL)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(line_buffering=stream is sys.stderr or stream.isatty())
    arguments = list(order.arguments)
    _show_title(arguments)
    sys.orig_argv[:] = [sys.executable, *arguments]
    if arguments[0] == "-m":
        sys.argv[:] = arguments[1:]
        _set_path(order.cwd)
        for name in (arguments[1], f"{arguments[1]}.__main__"):
            # runpy warns of a program that is a module already, unless it is a package
            if not hasattr(sys.modules.get(name), "__path__"):
                sys.modules.pop(name, None)
        runpy.run_module(arguments[1], run_name="__main__", alter_sys=True)
    elif arguments[0] == "-c":
        sys.argv[:] = ["-c", *arguments[2:]]
        _set_path("")
        main = types.ModuleType("__main__")
        sys.modules["__main__"] = main
        exec(compile(arguments[1], "<string>", "exec"), vars(main))
    else:
        sys.argv[:] = arguments
        _set_path(str(Path(arguments[0]).parent))
        runpy.run_path(arguments[0], run_name="__main__")


def _set_path(first: str) -> None:
    if not sys.flags.safe_path:
        sys.path[0] = first


def _show_title(arguments: Sequence[str]) -> None:
    """Show the program in `ps`, where its name and its arguments were those of the process that
    forked it."""
    from setproctitle import setproctitle, setthreadtitle

    shown = [part for part in arguments if "\n" not in part]
    setproctitle(" ".join([sys.executable, *shown]))
    setthreadtitle(Path(sys.executable).name)
