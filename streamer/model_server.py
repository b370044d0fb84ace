"""A server with OpenAI's API: its address, its key, and what its errors say."""

import json
from collections.abc import Iterable
from typing import Any

import httpx

from nvila_core.errors import shorten
from streamer.errors import ErrorCode, StreamerError
from streamer.media.tls import trusting
from streamer.media.urls import redact
from streamer.settings import Settings

CONNECT_TIMEOUT = 10.0
"""Seconds to wait for a connection."""

MAX_REPLY = 16 << 20
"""Bytes of a reply."""

_MAX_SHOWN = 300


class ModelServer:
    """The server that the settings `base_url` and `model_api_key` name.

    Attributes:
        url: its address, with its path.
    """

    def __init__(self, settings: Settings) -> None:
        assert settings.base_url is not None
        self.url = settings.base_url
        self._key = settings.model_api_key

    def options(self) -> dict[str, Any]:
        """Return the arguments of a client of httpx.

        Raises StreamerError(STREAM_TLS_FAILED) if SSL_CERT_FILE cannot be read.
        """
        headers = {"Accept": "application/json"}
        if self._key:
            headers["Authorization"] = f"Bearer {self._key}"
        secure = self.url.startswith("https:")
        return {"headers": headers, "verify": trusting(True) if secure else True}

    def says(self, content: bytes) -> str:
        """Return what the body of an error says, on one line, without the key."""
        try:
            body = json.loads(content)
        except ValueError:
            body = content.decode(errors="replace")
        for name in ("error", "message", "detail"):
            body = body.get(name, body) if isinstance(body, dict) else body
        return self.clean(body if isinstance(body, str) else json.dumps(body))

    def clean(self, text: str) -> str:
        """Return a text on one line, shortened, without the key and other secrets."""
        if self._key:
            text = text.replace(self._key, "***")
        return shorten(redact(" ".join(text.split())), _MAX_SHOWN)

    def models(self, timeout: float) -> dict[str, int | None]:
        """Return the models that the server lists, with the lengths of their contexts if it tells.

        Raises StreamerError: MODEL_SERVER_UNAVAILABLE, MODEL_SERVER_REFUSES.
        """
        limits = httpx.Timeout(timeout, connect=min(timeout, CONNECT_TIMEOUT))
        try:
            with httpx.Client(**self.options(), timeout=limits) as client:
                reply = client.get(f"{self.url}/models")
        except httpx.HTTPError as error:
            raise self.away(error) from None
        return self.read_models(reply.status_code, reply.content)

    def read_models(self, status: int, content: bytes) -> dict[str, int | None]:
        """Return the models that a reply to `GET /models` lists; none if the server has no list.

        Raises StreamerError: see :meth:`models`.
        """
        if status in (401, 403):
            raise self.refuses(status, content)
        if status in (404, 405):
            return {}
        if status != 200:
            raise StreamerError(
                ErrorCode.MODEL_SERVER_UNAVAILABLE,
                f"The model's server at {self.url} is not ready (HTTP {status}: "
                f"{self.says(content)}): wait until it is, or check it.",
            )
        try:
            listed = json.loads(content)["data"]
            return {
                str(each["id"]): length if isinstance(length, int) else None
                for each in listed
                for length in [each.get("max_model_len")]
            }
        except (ValueError, KeyError, TypeError, AttributeError):
            raise StreamerError(
                ErrorCode.MODEL_SERVER_UNAVAILABLE,
                f"{self.url}/models is not a list of models: check base_url, which ends with /v1 "
                "for most servers.",
            ) from None

    def away(self, error: Exception) -> StreamerError:
        """Return the error of a server that does not answer."""
        reason = self.clean(str(error)) or type(error).__name__
        return StreamerError(
            ErrorCode.MODEL_SERVER_UNAVAILABLE,
            f"The model's server at {self.url} does not answer ({reason}): start it, or check "
            "base_url.",
        )

    def refuses(self, status: int, content: bytes) -> StreamerError:
        """Return the error of a server that refuses the key."""
        return StreamerError(
            ErrorCode.MODEL_SERVER_REFUSES,
            f"The model's server at {self.url} refuses the key (HTTP {status}: "
            f"{self.says(content)}): set model_api_key (STREAMER_MODEL_API_KEY) to a valid one and "
            "restart the worker.",
        )

    def lacks(self, model: str, listed: list[str], said: str = "") -> StreamerError:
        """Return the error of a server that does not have a model."""
        has = said or (f"it has {', '.join(listed[:8])}" if listed else "it lists none")
        return StreamerError(
            ErrorCode.MODEL_SERVER_REFUSES,
            f"The model's server at {self.url} has no model '{model}' ({has}): set model to one of "
            "its models, or load the model there.",
        )


def listed_name(model: str, listed: Iterable[str]) -> str | None:
    """Return the name by which a server lists a model; None if it does not.

    Ollama lists a model that is named without a tag as the one tagged `latest`.
    """
    listed = set(listed)
    return next((name for name in (model, f"{model}:latest") if name in listed), None)
