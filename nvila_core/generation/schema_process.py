"""The program that compiles JSON schemas for `SchemaChecker`, each in a process of its own.

It is started once, imports little, and forks for every schema: a fork takes a millisecond, may use
MAX_MEMORY and MAX_SECONDS, and dies without harm if the compiler needs more or overflows its stack.
"""

import contextlib
import json
import os
import resource
import signal
import struct
import sys
from typing import IO, Any

from llguidance import LLMatcher, LLTokenizer, TokenizerWrapper

from nvila_core.errors import PromptError
from nvila_core.generation.grammar import LIMITS, grammar_of, schema_error

MAX_MEMORY = 64 << 20
"""Bytes that compiling one schema may take."""

MAX_SECONDS = 2
"""Seconds of processor time that compiling one schema may take."""

LENGTH = struct.Struct("<I")
"""How the length of a message, in bytes, is written before it."""

SIMPLER = (
    "with fewer patterns that hold at once (`allOf`), shorter repetitions or a smaller `multipleOf`"
)


class ByteVocabulary:
    """The 256 bytes as tokens, in the interface that llguidance takes.

    What a schema costs to compile hardly depends on the tokenizer; a small one is built at once.
    """

    eos_token_id, bos_token_id = 256, None

    def __init__(self) -> None:
        self.tokens = [*(bytes([i]) for i in range(256)), b"<end>"]
        self.special_token_ids = [256]

    def __call__(self, text: str | bytes) -> list[int]:
        """Return the ids of `text`."""
        if isinstance(text, bytes):
            raise TypeError("text must be str")  # llguidance probes which types are accepted
        return list(text.encode())


def write_message(file: IO[bytes], message: bytes) -> None:
    """Write a message, after its length."""
    file.write(LENGTH.pack(len(message)) + message)
    file.flush()


def read_message(file: IO[bytes]) -> bytes | None:
    """Return the next message; None at the end of `file`."""
    head = file.read(LENGTH.size)
    if len(head) < LENGTH.size:
        return None
    (length,) = LENGTH.unpack(head)
    message = file.read(length)
    return message if len(message) == length else None


def main() -> None:
    """Answer each schema on standard input with its grammar, or with the reason why it has none."""
    tokenizer = LLTokenizer(TokenizerWrapper(ByteVocabulary()), eos_token=256)
    grammar_of(schema='{"type":"object"}')  # what is allocated once is not counted against a schema
    while (message := read_message(sys.stdin.buffer)) is not None:
        write_message(sys.stdout.buffer, json.dumps(_answer(message.decode(), tokenizer)).encode())


def _answer(schema: str, tokenizer: LLTokenizer) -> dict[str, Any]:
    receiver, sender = os.pipe()
    before = _resident()
    child = os.fork()
    if child == 0:
        os.close(receiver)
        _compile(schema, tokenizer, sender)
    os.close(sender)
    with os.fdopen(receiver, "rb") as pipe:
        reply = pipe.read()
    _, status, usage = os.wait4(child, 0)
    if status == 0 and reply:
        memory = max(0, (usage.ru_maxrss << 10) - before)
        return {**json.loads(reply), "memory": memory}
    late = os.WIFSIGNALED(status) and os.WTERMSIG(status) in (signal.SIGXCPU, signal.SIGKILL)
    return {"error": too_costly(f"{MAX_SECONDS} s" if late else f"{MAX_MEMORY >> 20} MiB")}


def _resident() -> int:
    """Return the bytes of memory that this process takes.

    Its peak, which is asked where there is no /proc, may be gigabytes: a program begins with the
    peak of the process that started it.
    """
    try:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * resource.getpagesize()
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10


def _compile(schema: str, tokenizer: LLTokenizer, sender: int) -> None:
    """Compile `schema` within the limits, write the outcome to `sender`, and exit."""
    code = 1
    try:
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_CPU, (MAX_SECONDS, MAX_SECONDS + 1))
        with contextlib.suppress(OSError):  # no /proc: the time alone is limited
            with open("/proc/self/statm") as file:
                used = int(file.read().split()[0]) * resource.getpagesize()
            resource.setrlimit(resource.RLIMIT_AS, (used + MAX_MEMORY,) * 2)
        try:
            grammar = grammar_of(schema=schema)
            matcher = LLMatcher(tokenizer, grammar, log_level=0, limits=LIMITS)
            if matcher.is_error():
                raise schema_error(matcher.get_error())
            answer = {"grammar": grammar}
        except PromptError as error:
            answer = {"error": str(error)}
        with os.fdopen(sender, "wb") as pipe:
            pipe.write(json.dumps(answer).encode())
        code = 0
    finally:
        os._exit(code)


def too_costly(needed: str) -> str:
    """Return the message for a schema whose compilation needs more than `needed`."""
    return (
        f"The JSON schema cannot be followed (compiling it needs more than {needed}): simplify it, "
        f"for example {SIMPLER}."
    )


if __name__ == "__main__":
    main()
