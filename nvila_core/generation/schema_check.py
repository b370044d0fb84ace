"""Check what compiling a JSON schema costs, before a process that matters compiles it.

A schema of 400 bytes can take gigabytes to compile. A process of its own compiles it first, within
limits of memory and time; what passes there costs no more here. Does not import torch.
"""

import atexit
import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import threading
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

from nvila_core.errors import NVILAError, PromptError
from nvila_core.generation.schema_limits import check_shape
from nvila_core.generation.schema_process import read_message, too_costly, write_message

MAX_CACHED = 256
"""Schemas whose outcome is remembered."""

MAX_WAITING_SCHEMAS = 16
"""Callers that wait for their turn; further ones that are not patient are refused."""

MAX_SILENCE = 60.0
"""Seconds without an answer after which the process counts as stuck; its work takes 2 at most."""

KEPT_VARIABLES = ("PATH", "LD_LIBRARY_PATH", "LANG", "LC_ALL")
"""Variables of the environment that the process gets."""


class TooManySchemas(NVILAError):  # noqa: N818
    """More schemas are being checked than one process can check soon."""

    def __init__(self) -> None:
        super().__init__("Too many JSON schemas are being checked: try again in a few seconds.")


@dataclass(frozen=True)
class CheckedSchema:
    """A schema that can be compiled at a bounded cost.

    Attributes:
        grammar: llguidance's grammar of the schema.
        memory: bytes that compiling it took.
    """

    grammar: str
    memory: int


class SchemaChecker:
    """Checks schemas, one at a time, in a process that it starts when it is needed. Thread-safe."""

    max_silence = MAX_SILENCE

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._turn = threading.Lock()
        self._state = threading.Lock()
        self._waiting = 0
        self._known: OrderedDict[str, CheckedSchema | str] = OrderedDict()

    def check(self, schema: str, *, patient: bool = True) -> CheckedSchema:
        """Return the grammar of a schema, given as JSON text, if compiling it stays within limits.

        Raises:
            PromptError: the schema is too large, costs too much, or cannot be followed.
            TooManySchemas: MAX_WAITING_SCHEMAS others wait already, and this caller is not
                `patient`.
        """
        check_shape(schema)
        outcome = self._remembered(schema)
        if outcome is None:
            with self._state:
                if self._waiting >= MAX_WAITING_SCHEMAS and not patient:
                    raise TooManySchemas
                self._waiting += 1
            try:
                with self._turn:
                    outcome = self._remembered(schema) or self._ask(schema)
            finally:
                with self._state:
                    self._waiting -= 1
        if isinstance(outcome, str):
            raise PromptError(outcome)
        return outcome

    def close(self) -> None:
        """End the process; the next check starts another one."""
        with self._turn:
            self._end()

    def forget(self) -> None:
        """Forget the outcomes of earlier checks."""
        with self._state:
            self._known.clear()

    @property
    def waiting(self) -> int:
        """How many callers wait for the process, or for their turn with it."""
        return self._waiting

    @property
    def pid(self) -> int | None:
        """The id of the process; None while there is none."""
        return None if self._process is None else self._process.pid

    def _remembered(self, schema: str) -> CheckedSchema | str | None:
        with self._state:
            outcome = self._known.get(schema)
            if outcome is not None:
                self._known.move_to_end(schema)
            return outcome

    def _ask(self, schema: str) -> CheckedSchema | str:
        answer = self._exchange(schema)
        if answer is None:  # the process was killed meanwhile: by hand, or because memory was short
            answer = self._exchange(schema)
        if answer is None:
            return too_costly("this machine has")
        if "error" in answer:
            outcome: CheckedSchema | str = str(answer["error"])
        else:
            outcome = CheckedSchema(answer["grammar"], answer["memory"])
        with self._state:
            self._known[schema] = outcome
            while len(self._known) > MAX_CACHED:
                self._known.popitem(last=False)
        return outcome

    def _exchange(self, schema: str) -> dict[str, Any] | None:
        """Return the answer of the process; None, and no process is left, if it gives none."""
        process = self._process
        if process is None or process.poll() is not None:
            process = self._start()
        assert process.stdin is not None
        assert process.stdout is not None
        reply = None
        with contextlib.suppress(OSError):
            write_message(process.stdin, schema.encode())
            poll = select.poll()  # `select` refuses file numbers above 1023
            poll.register(process.stdout, select.POLLIN)
            if poll.poll(1000 * self.max_silence):
                reply = read_message(process.stdout)
        if reply is None:
            self._end()
            return None
        answer: dict[str, Any] = json.loads(reply)
        return answer

    def _start(self) -> subprocess.Popen[bytes]:
        self._end()
        kept = {name: os.environ[name] for name in KEPT_VARIABLES if name in os.environ}
        paths = os.pathsep.join(os.path.abspath(path) for path in sys.path)
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "nvila_core.generation.schema_process"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**kept, "PYTHONPATH": paths},  # no secrets of the service
            start_new_session=True,  # Ctrl-C is for others; it ends with its standard input
        )
        return self._process

    def _end(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        for pipe in (process.stdin, process.stdout):
            with contextlib.suppress(OSError):
                if pipe is not None:
                    pipe.close()
        process.wait()


CHECKER = SchemaChecker()
"""The checker of this process."""

atexit.register(CHECKER.close)
