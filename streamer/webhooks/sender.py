"""Send one message to a webhook, signed, to an address that is checked as it is connected to."""

import asyncio
import ssl
from datetime import datetime
from email.utils import parsedate_to_datetime
from functools import lru_cache

import httpx
from standardwebhooks import Webhook as Signer

from streamer.domain.timestamp import utc_now
from streamer.errors import StreamerError
from streamer.media import tls
from streamer.webhooks.addresses import WebhookAddresses
from streamer.webhooks.message import MAX_ATTEMPT_SECONDS, Outcome, Outgoing

MAX_RETRY_AFTER = 86_400.0
"""Seconds for which a receiver may put off the next attempt."""


class _PinnedTransport(httpx.AsyncHTTPTransport):
    """Connects to addresses that have been checked: a name may lead elsewhere the next time."""

    def __init__(self, addresses: WebhookAddresses) -> None:
        super().__init__(verify=_trust())
        self._addresses = addresses

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send `request` to the first address of its host that answers."""
        url = request.url
        port = url.port or (443 if url.scheme == "https" else 80)
        found = await asyncio.to_thread(self._addresses.resolve, url.host, port)
        request.extensions = {**request.extensions, "sni_hostname": url.host}
        for address in found[:-1]:
            request.url = url.copy_with(host=address)
            try:
                return await super().handle_async_request(request)
            except (httpx.ConnectError, httpx.ConnectTimeout):
                continue
        request.url = url.copy_with(host=found[-1])
        return await super().handle_async_request(request)


@lru_cache(maxsize=1)
def _trust() -> ssl.SSLContext:
    return tls.trusting(True)  # loading the certificates is slow


def load_certificates() -> None:
    """Load the certificates, for which the first message would wait."""
    _trust()


def send(
    message: Outgoing, addresses: WebhookAddresses, *, time_limit: float = MAX_ATTEMPT_SECONDS
) -> Outcome:
    """Send `message` once, and return the outcome. Redirects are not followed."""
    try:
        return asyncio.run(asyncio.wait_for(_post(message, addresses, time_limit), time_limit))
    except (TimeoutError, httpx.TimeoutException):
        return Outcome(error=f"The receiver did not answer within {time_limit:g} s.")
    except StreamerError as error:
        return Outcome(error=error.message)
    except (httpx.HTTPError, httpx.InvalidURL, ssl.SSLError, OSError) as error:
        return Outcome(error=f"The receiver cannot be reached ({type(error).__name__}).")


async def _post(message: Outgoing, addresses: WebhookAddresses, time_limit: float) -> Outcome:
    now = utc_now()
    headers = {
        "content-type": "application/json",
        "user-agent": "nvila-streamer",
        "webhook-id": message.id,
        "webhook-timestamp": str(int(now.timestamp())),
        "webhook-signature": Signer(message.secret).sign(message.id, now, message.body),
    }
    async with (
        httpx.AsyncClient(
            transport=_PinnedTransport(addresses), timeout=time_limit, trust_env=False
        ) as client,
        # What the receiver says beside its status is not read: it may have no end.
        client.stream("POST", message.url, content=message.body, headers=headers) as response,
    ):
        status = response.status_code
        if response.is_success:
            return Outcome(status)
        error = f"The receiver answered {status}."
        return Outcome(status, error, _retry_after(response.headers.get("retry-after"), now))


def _retry_after(value: str | None, now: datetime) -> float | None:
    """Return the seconds that a Retry-After header names, as a number or as a date."""
    if value is None:
        return None
    if value.strip().isdecimal():
        seconds = float(value)
    else:
        try:
            seconds = (parsedate_to_datetime(value) - now).total_seconds()
        except (ValueError, TypeError):
            return None
    return min(max(0.0, seconds), MAX_RETRY_AFTER)
