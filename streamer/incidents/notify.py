"""Send messages about incidents to people, through the services that Apprise knows."""

import tempfile
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from streamer.domain.timestamp import rfc3339
from streamer.errors import ErrorCode, StreamerError
from streamer.events import EventType
from streamer.incidents.messages import Message
from streamer.incidents.records import Incident, ResolveReason

_TITLES = {
    EventType.INCIDENT_OPENED: "{title} on {stream}",
    EventType.INCIDENT_UPDATED: "{title} on {stream} (update)",
    EventType.INCIDENT_RESOLVED: "Over: {title} on {stream}",
    EventType.INCIDENT_ACKNOWLEDGED: "Acknowledged: {title} on {stream}",
}
_ENDS = {
    ResolveReason.CLEARED: "It is no longer seen.",
    ResolveReason.STREAM_LOST: "Whether it is still there is unknown: the stream is lost.",
    ResolveReason.WATCH_REMOVED: "Its watch was removed.",
    ResolveReason.MANUAL: "A person resolved it.",
}
TIMEOUT = 30.0
"""Seconds that a service may take for a message: less than another recorder waits before it sends
the same."""

_MAX_LISTED = 10
"""Messages that a digest names."""


class Notifier:
    """Sends to one Apprise URL, such as `ntfy://topic` or `mailto://...`.

    Raises StreamerError(SETTINGS_INVALID) without the extra `notify`, or for a URL that Apprise
    does not know.

    Args:
        place: which of `notify_urls` it is, for messages: the URL holds secrets.
        timeout: seconds that the service may take for a message.
    """

    def __init__(self, url: str, place: int, timeout: float = TIMEOUT) -> None:
        try:
            import apprise
        except ImportError:
            raise StreamerError(
                ErrorCode.SETTINGS_INVALID,
                "The setting notify_urls needs Apprise: install nvila-streamer[notify].",
            ) from None
        self._place, self._timeout = place, timeout
        self._sending: threading.Thread | None = None
        self._service: Any = apprise.Apprise()
        self._kinds: Any = apprise.NotifyType
        if not self._service.add(url):
            raise StreamerError(
                ErrorCode.SETTINGS_INVALID,
                f"URL {place} of notify_urls is not one that Apprise knows: see its documentation.",
            )

    def send(self, messages: Sequence[Message], picture: bytes | None = None) -> None:
        """Send one message, with a picture, or several as one digest.

        Raises StreamerError(DELIVERY_FAILED).
        """
        title, body = digest_text(messages) if len(messages) > 1 else message_text(messages[0])
        over = all(message.type is EventType.INCIDENT_RESOLVED for message in messages)
        critical = any(message.incident.severity == "critical" for message in messages)
        kind = self._kinds.SUCCESS if over else self._kinds.WARNING
        if critical and not over:
            kind = self._kinds.FAILURE
        fields = {"title": title, "body": body, "notify_type": kind}
        self._notify(fields, picture if len(messages) == 1 else None)

    def _notify(self, fields: dict[str, Any], picture: bytes | None) -> None:
        """Send in a thread of its own: each service has its own idea of a time-out, and a slow one
        must not keep other messages waiting. Raises StreamerError(DELIVERY_FAILED)."""
        if self._sending is not None and self._sending.is_alive():
            raise self._failure("is still busy with an earlier message")
        outcome: list[bool | Exception] = []

        def send() -> None:
            try:
                with tempfile.TemporaryDirectory() as folder:
                    attached = None
                    if picture is not None:
                        attached = str(Path(folder) / "picture.jpg")
                        Path(attached).write_bytes(picture)
                    outcome.append(bool(self._service.notify(attach=attached, **fields)))
            except Exception as error:  # whatever the code of one of a hundred services raises
                outcome.append(error)

        self._sending = threading.Thread(target=send, name="notify", daemon=True)
        self._sending.start()
        self._sending.join(self._timeout)
        match outcome:
            case []:
                raise self._failure(f"did not answer within {self._timeout:g} s")
            case [Exception() as error]:
                raise self._failure(f"failed with {type(error).__name__}") from None
            case [False]:
                raise self._failure("did not take the message: the log says why")

    def _failure(self, what: str) -> StreamerError:
        return StreamerError(
            ErrorCode.DELIVERY_FAILED,
            f"The service of URL {self._place} of notify_urls {what}: check the URL and the "
            "service.",
        )


def message_text(message: Message) -> tuple[str, str]:
    """Return the title and the text of a message."""
    incident = message.incident
    title = _TITLES[message.type].format(title=incident.title, stream=incident.stream_name)
    lines = [incident.question]
    if message.type is EventType.INCIDENT_RESOLVED and incident.resolve_reason is not None:
        lines.append(_ENDS[incident.resolve_reason])
    elif message.type is EventType.INCIDENT_ACKNOWLEDGED and incident.acknowledged is not None:
        lines.append(f"By {incident.acknowledged.by}.")
    else:
        lines.append(f"Probability {incident.probability.max:.0%}.")
    if incident.summary:
        lines.append(incident.summary)
    lines.append(f"{_when(incident)}  {incident.id}")
    return title, "\n".join(lines)


def digest_text(messages: Sequence[Message]) -> tuple[str, str]:
    """Return the title and the text of one message in place of several."""
    lines = [message_text(message)[0] for message in messages[:_MAX_LISTED]]
    if len(messages) > _MAX_LISTED:
        lines.append(f"and {len(messages) - _MAX_LISTED} more: `streamer incidents` lists them")
    return f"{len(messages)} messages about incidents", "\n".join(lines)


def _when(incident: Incident) -> str:
    return rfc3339(incident.raised_at or incident.opened_at)
