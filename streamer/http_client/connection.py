"""What both clients know of the server: its address, the key, timeouts, and when to try again."""

import os
from dataclasses import dataclass, field
from typing import Any

import httpx
from tenacity import RetryCallState, retry_if_exception, stop_after_attempt, wait_random_exponential

from streamer import __version__
from streamer.errors import ErrorCode, StreamerError
from streamer.http_client.call import Call, PassingError

API_URL_VARIABLE = "STREAMER_API_URL"
API_KEY_VARIABLE = "STREAMER_API_KEY"

DEFAULT_API_URL = "http://127.0.0.1:8080"
"""Address of the API of `streamer up` on this machine."""

_MAX_RETRY_AFTER = 60.0
"""Seconds that a server may ask to wait; with more the call fails at once."""

_CONNECT_TIMEOUT = 10.0
_QUIET = 30.0
"""Seconds without an event in which a comment must have come: one comes every 15 seconds."""

_BACKOFF = wait_random_exponential(multiplier=0.25, max=8.0)


@dataclass(frozen=True)
class Connection:
    """The server, and how patient a client is with it.

    Args:
        url: address of the API; None: `STREAMER_API_URL`, or this machine.
        api_key: a key of the API; None: `STREAMER_API_KEY`, or none.
        timeout: seconds without any answer after which a request has failed.
        retries: how often a request that may be repeated is sent again.

    Raises StreamerError(SETTINGS_INVALID) for an address that is no URL.
    """

    url: str | None = None
    api_key: str | None = field(default=None, repr=False)
    timeout: float = 30.0
    retries: int = 2

    def __post_init__(self) -> None:
        self.address  # noqa: B018 - raises

    @property
    def address(self) -> str:
        """URL of the API, without a slash at its end."""
        url = self.url or os.environ.get(API_URL_VARIABLE) or DEFAULT_API_URL
        try:
            parsed = httpx.URL(url)
            sound = parsed.scheme in ("http", "https") and bool(parsed.host)
        except httpx.InvalidURL:
            sound = False
        if not sound:
            raise StreamerError(
                ErrorCode.SETTINGS_INVALID,
                "The address of the API is not a URL: write one such as http://host:8080 "
                f"({API_URL_VARIABLE}).",
            )
        return url.rstrip("/")

    @property
    def options(self) -> dict[str, Any]:
        """Arguments of `httpx.Client`."""
        key = self.api_key or os.environ.get(API_KEY_VARIABLE)
        headers = {"User-Agent": f"nvila-streamer/{__version__}"}
        if key:
            headers["Authorization"] = f"Bearer {key}"
        return {
            "base_url": self.address,
            "headers": headers,
            "timeout": self.timeouts(),
            # a TLS context takes a tenth of a second to make; redirects are not followed
            "verify": self.address.startswith("https:"),
        }

    def timeouts(self, patience: float = 0.0) -> httpx.Timeout:
        """Return the timeouts of a request that the server may need `patience` seconds longer
        for."""
        return httpx.Timeout(
            self.timeout + patience, connect=min(_CONNECT_TIMEOUT, self.timeout), pool=None
        )

    def request(self, call: Call[Any]) -> dict[str, Any]:
        """Return the arguments of `httpx.Client.request` for a call."""
        return {**call.request, "timeout": self.timeouts(call.patience)}

    @property
    def listening(self) -> dict[str, Any]:
        """Arguments of `httpx.Client.stream` for events, between which comments come."""
        return {"timeout": self.timeouts(_QUIET)}

    @property
    def retrying(self) -> dict[str, Any]:
        """Arguments of `tenacity.Retrying`."""
        return {
            "retry": retry_if_exception(_worth_waiting),
            "wait": _pause,
            "stop": stop_after_attempt(self.retries + 1),
            "reraise": True,
        }


def _worth_waiting(error: BaseException) -> bool:
    return isinstance(error, PassingError) and (error.retry_after or 0.0) <= _MAX_RETRY_AFTER


def _pause(state: RetryCallState) -> float:
    error = state.outcome.exception() if state.outcome is not None else None
    asked = error.retry_after if isinstance(error, PassingError) else None
    return _BACKOFF(state) if asked is None else asked
