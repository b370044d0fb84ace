"""One finding of the doctor, and words for it."""

from typing import Literal

from streamer.domain import Record

State = Literal["ok", "warn", "fail"]


class Check(Record):
    """One finding: what was looked at, how it is, and what to do in one sentence."""

    name: str
    state: State
    message: str


def check(name: str, state: State, message: str) -> Check:
    """A finding."""
    return Check(name=name, state=state, message=message)


def told(error: BaseException) -> str:
    """An exception in one line, without passwords."""
    from streamer.media.urls import redact

    return redact(f"{type(error).__name__}: {error}".strip().rstrip(":.")).replace("\n", " ")


def size(count: int) -> str:
    """Bytes for people."""
    for unit, bytes_each in (("GB", 1e9), ("MB", 1e6)):
        if count >= bytes_each:
            return f"{count / bytes_each:.1f} {unit}"
    return f"{count / 1e3:.0f} kB"
