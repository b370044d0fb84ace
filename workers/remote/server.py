"""Talk to the model's server: one event loop for all slots, and what each failure means."""

import asyncio
import contextlib
import json
import random
import threading
from collections.abc import Callable, Sequence
from email.utils import parsedate_to_datetime
from typing import Any, NoReturn

import httpx
import structlog

from streamer.clock import Clock
from streamer.errors import ErrorCode, StreamerError
from streamer.model_server import CONNECT_TIMEOUT, MAX_REPLY, ModelServer, listed_name
from streamer.settings import Settings
from workers.context import BrokeDown, GiveBack
from workers.remote.streamed import StreamedReply

_CHECK_INTERVAL = 0.25  # seconds between two checks whether the answer is still wanted
_PIECE_INTERVAL = 0.05  # seconds between two looks at what a streamed answer has by now
_MAX_PAUSE = 30.0  # seconds between two tries, unless the server asks for more
_MAX_RETRY_AFTER = 300.0
_REFUSED_PAUSE = 30.0  # seconds until a server that refused the key is asked again
_ATTEMPTS = 3  # of a request that the server failed on
DEFAULT_SLOTS = 16  # requests that a server gets at once
_KEEP_ALIVE = 2.0  # seconds: servers close idle connections after five

_TOO_LONG = (
    "context length",
    "context size",
    "context_length_exceeded",
    "exceed_context_size",
    "too long to fit",
    "max_tokens must be at least",
    "longer than the model",
    "longer than the maximum model length",
    "too many images",
    "image(s) may be provided",
)
"""What servers say of a prompt that does not fit, in lower case."""

_BLIND = (
    "image input is not supported",
    "not a multimodal model",
    "at most 0 image",
    "does not support image",
    "only 'text' content type",
    "missing data required for image input",
)
"""What servers say of a picture for a model without vision, in lower case."""

_BROKEN_OFF = ("abort", "error", "load", "unload")
"""Values of `finish_reason`, beside those of OpenAI's API, of an answer that is not whole."""

_FEWEST = 256
"""Tokens to which an answer is shortened to fit the context; beyond, the prompt is too long."""

_OPTIONAL = {
    "max_completion_tokens": ("max_tokens",),
    "logprobs": ("logprobs", "top_logprobs"),
    "temperature": ("temperature",),
    "response_format": ("response_format",),
    "stream_options": ("stream_options",),
    "'stream'": ("stream", "stream_options"),
}
"""Words of a refusal -> fields of the request that such a server is not sent any more."""

_log = structlog.get_logger(__name__)


class ChatServer:
    """Sends requests to the model's server, and knows whether it takes any.

    A server that does not answer, or refuses the key or the model, is asked for its models again
    now and then. Until it has what is needed, the worker takes no jobs.

    Attributes:
        trouble: why it cannot be used at the moment; None if it can.
        retries: how often a request was sent again.
    """

    def __init__(self, settings: Settings, clock: Clock) -> None:
        self.server = ModelServer(settings)
        self._model = settings.model
        self._clock = clock
        self._options = self.server.options()
        self._slots = settings.worker_slots or DEFAULT_SLOTS
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="remote", daemon=True)
        self._lock = threading.Lock()
        self._without: set[str] = set()
        self._look: Any = None
        self._pause = 0.5
        self._closed_until = 0.0
        self._lacks_model = False
        self.trouble: StreamerError | None = None
        self.max_model_len: int | None = None
        self.retries = 0

    def start(self, within: float) -> None:
        """Connect, and look at the models of the server, for at most `within` seconds."""
        self._thread.start()
        limits = httpx.Limits(
            max_connections=self._slots + 4,
            max_keepalive_connections=self._slots,
            keepalive_expiry=_KEEP_ALIVE,
        )
        self._client = httpx.AsyncClient(**self._options, limits=limits)
        look = asyncio.run_coroutine_threadsafe(self._look_at_models(), self._loop)
        try:
            look.result(within)
        except TimeoutError:
            look.cancel()
            self._close(self.server.away(TimeoutError(f"no answer within {within:g} s")))

    def stop(self) -> None:
        """Close the connections."""
        closing = asyncio.run_coroutine_threadsafe(self._client.aclose(), self._loop)
        with contextlib.suppress(TimeoutError, httpx.HTTPError):
            closing.result(1.0)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(1.0)
        if not self._thread.is_alive():
            self._loop.close()

    def closed(self) -> bool:
        """Return whether to send no request now. Look at the server again when it is time."""
        with self._lock:
            if self._clock.monotonic() < self._closed_until:
                return True
            if self.trouble is None:
                return False
            if self._look is None or self._look.done():
                self._look = asyncio.run_coroutine_threadsafe(self._look_at_models(), self._loop)
            return True

    async def _look_at_models(self) -> None:
        """Ask for the list of models, and note whether the server can be used."""
        limits = httpx.Timeout(CONNECT_TIMEOUT)
        try:
            status, _, content = await self._exchange("GET", "/models", None, limits)
            listed = self.server.read_models(status, content)
            name = listed_name(self._model, listed)
            if self._lacks_model and listed and name is None:
                raise self.server.lacks(self._model, list(listed))
        except httpx.HTTPError as error:
            self._close(self.server.away(error))
        except StreamerError as error:
            self._close(error)
        else:
            if listed and name is None:
                _log.warning("model_not_listed", model=self._model, listed=list(listed)[:8])
            self.max_model_len = None if name is None else listed[name]
            self._open()

    def _close(self, trouble: StreamerError) -> None:
        """Send nothing for a while, because of `trouble`; log it when it is news."""
        with self._lock:
            if self.trouble is None or self.trouble.code is not trouble.code:
                refused = trouble.code is ErrorCode.MODEL_SERVER_REFUSES
                (_log.error if refused else _log.warning)(trouble.message)
                self._pause = _REFUSED_PAUSE if refused else 0.5
            self.trouble = trouble
            pause = self._pause * random.uniform(0.75, 1.25)
            self._closed_until = self._clock.monotonic() + pause
            self._pause = min(2 * self._pause, max(_MAX_PAUSE, _REFUSED_PAUSE))

    def _open(self) -> None:
        with self._lock:
            if self.trouble is not None:
                _log.info("model_server_works", server=self.server.url)
            self.trouble, self._pause, self._lacks_model = None, 0.5, False

    def _hold(self, pause: float) -> None:
        """Let the worker take no jobs for `pause` seconds: the server has too much to do."""
        with self._lock:
            self._closed_until = max(self._closed_until, self._clock.monotonic() + pause)

    def ask(
        self,
        body: dict[str, Any],
        seconds_left: Callable[[], float],
        cancelled: Callable[[], bool],
        stopping: Callable[[], bool],
        heard: Callable[[dict[str, Any]], None] | None = None,
    ) -> dict[str, Any]:
        """Return the reply to `POST /chat/completions`.

        While the server is busy, the request is sent again later. `stopping` ends that wait, and
        `cancelled` also one for the answer. With `heard` the answer is streamed, and `heard` is
        called with what has come of the reply, again and again.

        Raises:
            TimeoutError: no seconds are left.
            StreamerError: the server refuses this request or fails on it.
            GiveBack: no answer is wanted, or the server cannot be used at the moment.
            BrokeDown: the server ended while it worked on this request, or broke its answer off.
        """
        if heard is not None:
            body = body | {"stream": True, "stream_options": {"include_usage": True}}
        attempt, pause = 0, 0.5
        while True:
            sent = {key: value for key, value in body.items() if key not in self._without}
            if "max_tokens" in self._without:
                sent["max_completion_tokens"] = body["max_tokens"]
            status, headers, content = self._send(sent, seconds_left(), cancelled, heard)
            if status == 200:
                self._open()
                return _whole(self._read(content))
            busy = status == 429 or (status == 503 and "retry-after" in headers)
            busy = busy or (status == 503 and attempt < _ATTEMPTS)
            wait = None
            if busy and "insufficient_quota" not in content.decode(errors="replace"):
                wait = _retry_after(headers) or pause * random.uniform(0.75, 1.25)
                self._hold(wait)
            elif status == 400:
                reduced = _reduced(body, content)
                if reduced is not None or self._adapt(sent, content):
                    body, wait = reduced or body, 0.0
            elif status == 500 and attempt < _ATTEMPTS - 1 and not _hopeless(content):
                wait = pause * random.uniform(0.75, 1.25)
            if wait is None:
                self._fail(status, content)
            if wait >= seconds_left():
                raise TimeoutError
            self.retries += 1
            attempt, pause = attempt + 1, min(2 * pause, _MAX_PAUSE)
            self._sleep(wait, stopping)

    def _sleep(self, seconds: float, stopping: Callable[[], bool]) -> None:
        ends = self._clock.monotonic() + seconds
        while (left := ends - self._clock.monotonic()) > 0:
            if stopping():
                raise GiveBack
            self._clock.sleep(min(left, _CHECK_INTERVAL))

    def _send(
        self,
        body: dict[str, Any],
        seconds: float,
        cancelled: Callable[[], bool],
        heard: Callable[[dict[str, Any]], None] | None,
    ) -> tuple[int, httpx.Headers, bytes]:
        if seconds <= 0:
            raise TimeoutError
        limits = httpx.Timeout(seconds, connect=min(seconds, CONNECT_TIMEOUT))
        content = json.dumps(body).encode()
        streamed = StreamedReply() if body.get("stream") else None
        reply = asyncio.run_coroutine_threadsafe(
            self._exchange("POST", "/chat/completions", content, limits, streamed), self._loop
        )
        ends = self._clock.monotonic() + seconds
        while True:
            try:
                return reply.result(_CHECK_INTERVAL if streamed is None else _PIECE_INTERVAL)
            except TimeoutError:
                if heard is not None and streamed is not None and streamed.began:
                    heard(streamed.body())
                if cancelled():
                    reply.cancel()
                    raise GiveBack from None
                if self._clock.monotonic() > ends:
                    reply.cancel()
                    raise
            except (httpx.ConnectError, httpx.ConnectTimeout) as error:
                self._close(self.server.away(error))
                raise GiveBack from None
            except httpx.TimeoutException:
                raise TimeoutError from None
            except httpx.HTTPError as error:
                self._close(self.server.away(error))
                raise BrokeDown from error

    async def _exchange(
        self,
        method: str,
        path: str,
        content: bytes | None,
        limits: httpx.Timeout,
        streamed: StreamedReply | None = None,
    ) -> tuple[int, httpx.Headers, bytes]:
        """Return the status, the headers and the body of a reply. One that is streamed is fed to
        `streamed`, and returned as if it had come at once."""
        headers = {"Content-Type": "application/json"} if content is not None else None
        async with self._client.stream(
            method, self.server.url + path, content=content, headers=headers, timeout=limits
        ) as reply:
            received, size = bytearray(), 0
            events = reply.headers.get("content-type", "").startswith("text/event-stream")
            async for piece in reply.aiter_bytes():
                size += len(piece)
                if size > MAX_REPLY:
                    raise httpx.DecodingError(f"more than {MAX_REPLY} bytes")
                if streamed is not None and events:
                    streamed.feed(piece)
                else:
                    received += piece
            if streamed is None or not events:
                return reply.status_code, reply.headers, bytes(received)
            return self._joined(reply, streamed)

    def _joined(
        self, reply: httpx.Response, streamed: StreamedReply
    ) -> tuple[int, httpx.Headers, bytes]:
        if streamed.error is None:
            if not streamed.complete:
                raise httpx.RemoteProtocolError("the answer broke off")
            return reply.status_code, reply.headers, json.dumps(streamed.body()).encode()
        if streamed.began:  # whatever its status: another answer must not follow its first half
            raise httpx.RemoteProtocolError(f"broke off: {self.server.says(streamed.error)}")
        return streamed.status, reply.headers, streamed.error

    def _read(self, content: bytes) -> dict[str, Any]:
        try:
            body = json.loads(content)
        except ValueError:
            body = None
        if not isinstance(body, dict):
            raise StreamerError(
                ErrorCode.MODEL_FAILED,
                f"{self.server.url} did not answer with JSON: check base_url, which ends with /v1 "
                "for most servers.",
            )
        return body

    def _adapt(self, sent: dict[str, Any], content: bytes) -> bool:
        """Leave out from now on what this server says it does not take; return whether it is
        anything that was sent."""
        said = self.server.says(content).lower()
        for word, fields in _OPTIONAL.items():
            if word in said and fields[0] in sent:
                self._without.update(fields)
                _log.warning("field_not_taken", fields=list(fields), server=self.server.url)
                return True
        return False

    def _fail(self, status: int, content: bytes) -> NoReturn:
        """Raise what an error of the server means."""
        said = self.server.says(content)
        if status in (401, 403):
            self._close(self.server.refuses(status, content))
            raise GiveBack
        if status == 404:
            self._lacks_model = True
            self._close(self.server.lacks(self._model, [], said))
            raise GiveBack
        if status in (429, 502, 503, 504):  # of a proxy, or of an account without credit
            self._close(
                StreamerError(
                    ErrorCode.MODEL_SERVER_UNAVAILABLE,
                    f"The model's server at {self.server.url} is not ready (HTTP {status}: "
                    f"{said}): wait until it is, or check it.",
                )
            )
            raise GiveBack
        if _blind(content):
            raise StreamerError(
                ErrorCode.MODEL_FAILED,
                f"The model's server cannot see pictures with this model ({said}): load a vision "
                "language model there, with llama.cpp also its --mmproj.",
            )
        if _too_long(content):
            raise StreamerError(
                ErrorCode.PROMPT_TOO_LONG,
                f"The frames and the question are too long for the model's server ({said}): ask "
                "about fewer frames, lower clip_tokens, or give the server a longer context.",
            )
        if status == 413:
            raise StreamerError(
                ErrorCode.REQUEST_TOO_LARGE,
                f"The request is too large for the model's server ({said}): ask about fewer "
                "frames, lower clip_tokens, or raise the limit there.",
            )
        raise StreamerError(
            ErrorCode.MODEL_FAILED, f"The model's server refused or failed (HTTP {status}): {said}"
        )


def _whole(reply: dict[str, Any]) -> dict[str, Any]:
    """Return a reply that the server has not broken off. Raises BrokeDown."""
    try:
        reason = reply["choices"][0]["finish_reason"]
    except (KeyError, IndexError, TypeError):
        return reply
    if reason in _BROKEN_OFF:
        _log.warning("answer_broken_off", reason=reason)
        raise BrokeDown
    return reply


def _reduced(body: dict[str, Any], content: bytes) -> dict[str, Any] | None:
    """Return a request without what was wrong with this one alone; None if that is not it."""
    said = content.decode(errors="replace").lower()
    limit = body["max_tokens"]
    if _too_long(content) and limit > _FEWEST and ("max_tokens" in said or "completion" in said):
        return body | {"max_tokens": max(_FEWEST, limit // 2)}
    constrained = body.get("response_format", {}).get("type") == "json_schema"
    if constrained and ("schema" in said or "grammar" in said):
        return {key: value for key, value in body.items() if key != "response_format"}
    return None


def _too_long(content: bytes) -> bool:
    return _says(content, _TOO_LONG)


def _blind(content: bytes) -> bool:
    return _says(content, _BLIND)


def _hopeless(content: bytes) -> bool:
    """Return whether the same request would fail again."""
    return _too_long(content) or _blind(content)


def _says(content: bytes, words: Sequence[str]) -> bool:
    said = content.decode(errors="replace").lower()
    return any(each in said for each in words)


def _retry_after(headers: httpx.Headers) -> float | None:
    """Return the seconds that a server wants to be left alone; None if it does not say."""
    raw = headers.get("retry-after", "")
    try:
        seconds = float(raw)
    except ValueError:
        try:
            when = parsedate_to_datetime(raw)
            sent = parsedate_to_datetime(headers["date"])
            seconds = (when - sent).total_seconds()
        except (KeyError, ValueError, TypeError):
            return None
    return min(seconds, _MAX_RETRY_AFTER) if seconds > 0 else None
