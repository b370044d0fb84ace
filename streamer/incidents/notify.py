"""Send messages about incidents to people, through the services that Apprise knows."""

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from streamer.domain import rfc3339
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
    ResolveReason.MANUAL: "Somebody resolved it.",
}
_MAX_LISTED = 10
"""Messages that a digest names."""


class Notifier:
    """Sends to one Apprise URL, such as `ntfy://topic` or `mailto://...`.

    Raises StreamerError(SETTINGS_INVALID) without the extra `notify`, or for a URL that Apprise
    does not know.
    """

    def __init__(self, url: str, place: int) -> None:
        try:
            import apprise
        except ImportError:
            raise StreamerError(
                ErrorCode.SETTINGS_INVALID,
                "The setting notify_urls needs Apprise: install nvila-streamer[notify].",
            ) from None
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
        with tempfile.TemporaryDirectory() as folder:
            attached = None
            if picture is not None and len(messages) == 1:
                attached = str(Path(folder) / f"{messages[0].incident.id}.jpg")
                Path(attached).write_bytes(picture)
            if not self._service.notify(body=body, title=title, notify_type=kind, attach=attached):
                raise StreamerError(
                    ErrorCode.DELIVERY_FAILED,
                    "The service of notify_urls did not take the message: see the recorder's log.",
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
