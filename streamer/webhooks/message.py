"""A message to a webhook, and the outcome of an attempt to send it."""

from dataclasses import dataclass

MAX_ATTEMPT_SECONDS = 15.0
"""Seconds that an attempt may take, all in all."""


@dataclass(frozen=True)
class Outgoing:
    """A message as it is sent: what `id` and `body` are stays the same over all attempts."""

    url: str
    secret: str
    id: str
    body: str


@dataclass(frozen=True)
class Outcome:
    """The outcome of an attempt.

    Attributes:
        status: HTTP status; None without an answer.
        error: why it failed; None if the receiver has taken it.
        retry_after: seconds after which the receiver wants the next attempt.
    """

    status: int | None = None
    error: str | None = None
    retry_after: float | None = None
