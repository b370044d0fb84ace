"""Define the records of an incident: what was seen, who was notified, what people say about it."""

from enum import StrEnum
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from streamer.alert_rule import Severity
from streamer.domain.ids import new_id
from streamer.domain.record import Record
from streamer.domain.timestamp import Timestamp, utc_now

MAX_RESULT_IDS = 100
"""Results that an incident names: the newest ones."""

MAX_SEEN_BY = 32
MAX_DELIVERIES = 50
"""Deliveries that an incident lists: the newest ones."""

MAX_PERSON = 100
"""Characters of the name of a person."""

MAX_NOTE = 2000
"""Characters of a note."""

PersonName = Annotated[str, Field(min_length=1, max_length=MAX_PERSON)]


class IncidentState(StrEnum):
    """State of an incident.

    `pending`: seen, but not yet in as many windows as the rule asks for; no one is notified, and
    the incident is dropped if it comes to nothing. `open`: people are notified. `resolved`: it
    is over.
    """

    PENDING = "pending"
    OPEN = "open"
    RESOLVED = "resolved"


class ResolveReason(StrEnum):
    """Why an incident is over."""

    CLEARED = "cleared"
    STREAM_LOST = "stream_lost"
    WATCH_REMOVED = "watch_removed"
    MANUAL = "manual"


class Probabilities(Record):
    """How probable the windows of an incident were."""

    first: float = Field(description="of the first window that counted")
    last: float = Field(description="of the newest answered window")
    max: float = Field(description="of the most probable window")


class WindowCounts(Record):
    """Windows since the incident was first seen."""

    yes: int = Field(default=0, description="more probable than not")
    no: int = Field(default=0, description="less probable")
    unknown: int = Field(default=0, description="without an answer")


class Snapshots(Record):
    """Paths of the pictures of an incident; null for each that was not kept."""

    opened: str | None = Field(default=None, description="of the window that opened it")
    best: str | None = Field(default=None, description="of the most probable window")
    last: str | None = Field(default=None, description="of the newest window that showed it")


class Acknowledgement(Record):
    """Who has taken care of an incident."""

    by: PersonName
    at: Timestamp = Field(default_factory=utc_now)
    note: str | None = Field(default=None, max_length=MAX_NOTE)


class Feedback(Record):
    """Whether an alert was right."""

    verdict: Literal["right", "wrong", "unsure"]
    by: PersonName | None = None
    at: Timestamp = Field(default_factory=utc_now)
    note: str | None = Field(default=None, max_length=MAX_NOTE)


class Delivered(Record):
    """A message about an incident that was sent, or could not be."""

    channel: str = Field(max_length=200, description="where it went")
    type: str = Field(description="type of the event: incident.opened, incident.updated ...")
    version: int = Field(description="version of the incident in the message")
    at: Timestamp = Field(default_factory=utc_now)
    delivered: bool
    error: str | None = Field(default=None, max_length=500, description="why it was not delivered")


class Incident(Record):
    """What one alert found on one stream, from the first sight to the end.

    At most one incident of a watch and a stream is not resolved.
    """

    id: str = Field(default_factory=lambda: new_id("inc"))
    watch_id: str
    stream_id: str
    stream_name: str
    title: str
    question: str
    severity: Severity
    labels: dict[str, str] = Field(default_factory=dict)
    state: IncidentState
    opened_at: Timestamp = Field(description="start of the first window that showed it")
    raised_at: Timestamp | None = Field(
        default=None, description="when the rule was met and people were notified; null: pending"
    )
    last_seen_at: Timestamp = Field(description="end of the newest window that showed it")
    last_known_at: Timestamp = Field(
        description="end of the newest answered window: what has been since is unknown"
    )
    resolved_at: Timestamp | None = None
    resolve_reason: ResolveReason | None = None
    probability: Probabilities
    windows: WindowCounts = Field(default_factory=WindowCounts)
    reopened: int = Field(default=0, description="times that it came back within its cool-down")
    summary: str | None = Field(default=None, description="what the model says happens")
    snapshot: Snapshots = Field(default_factory=Snapshots)
    clip: str = Field(default="", description="path of its video, made of the frames that are kept")
    result_ids: list[str] = Field(
        default_factory=list, description="results of its windows, the newest ones, oldest first"
    )
    seen_by: list[str] = Field(default_factory=list, description="people who have seen it")
    acknowledged: Acknowledgement | None = None
    feedback: Feedback | None = None
    silenced_by: list[str] = Field(
        default_factory=list, description="silences that keep it from being delivered"
    )
    deliveries: list[Delivered] = Field(
        default_factory=list, description="messages about it, the newest ones, oldest first"
    )
    version: int = Field(default=1, description="grows with every change")

    @model_validator(mode="after")
    def _has_a_clip(self) -> Self:
        self.__dict__["clip"] = self.clip or f"/v1/incidents/{self.id}/clip.mp4"
        return self

    @property
    def all_labels(self) -> dict[str, str]:
        """The labels of its rule and its own: `alertname`, `severity`, `stream` and `watch`."""
        own: dict[str, str] = {
            "alertname": self.title,
            "severity": self.severity,
            "stream": self.stream_name,
            "watch": self.watch_id,
        }
        return self.labels | own

    def changed(self, **fields: Any) -> "Incident":
        """Return this incident with other `fields` and the next version."""
        return self.model_copy(update=fields | {"version": self.version + 1})
