"""Tell Prometheus's Alertmanager of incidents: it groups, inhibits and sends them on."""

from collections.abc import Sequence
from datetime import datetime, timedelta

from streamer.domain.timestamp import rfc3339
from streamer.errors import ErrorCode, StreamerError
from streamer.incidents.records import Incident, IncidentState
from streamer.media.urls import redact

RESEND = 30.0
"""Seconds between two sendings of what is open."""

EXPIRY = timedelta(seconds=4 * RESEND)
"""How long Alertmanager takes an alert for firing that is not sent again."""

RESOLVED_FOR = timedelta(minutes=5)
"""How long the end of an incident is sent again, in case a sending was lost."""

_TIMEOUT = 10.0


class Alertmanager:
    """Sends all incidents of now to one Alertmanager.

    Args:
        url: its address, such as `http://alertmanager:9093`; it may hold a user and password.
        public_url: address of this service for links; None: no links.
    """

    def __init__(self, url: str, public_url: str | None = None) -> None:
        self._url = url.rstrip("/") + "/api/v2/alerts"
        self._public_url = (public_url or "").rstrip("/")

    def send(self, incidents: Sequence[Incident], now: datetime) -> None:
        """Send incidents: those that are open fire there; those that are resolved or silenced end.

        Raises StreamerError(DELIVERY_FAILED).
        """
        if not incidents:
            return
        import httpx  # here: many installations have no Alertmanager

        alerts = [self._alert(incident, now) for incident in incidents]
        try:
            httpx.post(self._url, json=alerts, timeout=_TIMEOUT).raise_for_status()
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            reason = redact(str(error) or type(error).__name__).split("\n")[0].rstrip(".")
            raise StreamerError(
                ErrorCode.DELIVERY_FAILED,
                f"Alertmanager did not take the incidents ({reason}): check alertmanager_url.",
            ) from None

    def _alert(self, incident: Incident, now: datetime) -> dict[str, object]:
        texts = {"summary": incident.title, "description": incident.summary or incident.question}
        ended = incident.state is IncidentState.RESOLVED or bool(incident.silenced_by)
        # Alertmanager refuses what starts after it ends, as where a clock is ahead of this one.
        starts_at = min(incident.raised_at or incident.opened_at, now)
        alert: dict[str, object] = {
            # The incident's id keeps two incidents of one watch apart.
            "labels": {**incident.all_labels, "incident": incident.id},
            "annotations": texts,
            "startsAt": rfc3339(starts_at),
            "endsAt": rfc3339(now if ended else now + EXPIRY),
        }
        if self._public_url:
            alert["generatorURL"] = f"{self._public_url}/incidents/{incident.id}"
            if incident.snapshot.best is not None:
                texts["image"] = self._public_url + incident.snapshot.best
        return alert
