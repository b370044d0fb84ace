"""The finding of one check, and the formatting of its message."""

from typing import Literal

from streamer.domain.record import Record

State = Literal["ok", "warn", "fail"]


class Check(Record):
    """The finding of one check: its subject, its state and one sentence with advice."""

    name: str
    state: State
    message: str


def check(name: str, state: State, message: str) -> Check:
    """Make a finding."""
    return Check(name=name, state=state, message=message)


def describe_error(error: BaseException) -> str:
    """Format an exception as one line without passwords."""
    from streamer.media.urls import redact

    return redact(f"{type(error).__name__}: {error}".strip().rstrip(":.")).replace("\n", " ")


def format_size(count: int) -> str:
    """Format a number of bytes: `1.5 GB`, `20.0 MB`, `3 kB`."""
    for unit, bytes_each in (("GB", 1e9), ("MB", 1e6)):
        if count >= bytes_each:
            return f"{count / bytes_each:.1f} {unit}"
    return f"{count / 1e3:.0f} kB"
