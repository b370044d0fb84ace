"""Define the records of webhooks: where events are sent, and the state of each delivery."""

from pydantic import Field

from streamer.domain.record import Record
from streamer.domain.timestamp import Timestamp
from streamer.open_enum import OpenEnum

TEST_TYPE = "webhook.test"
"""Type of the message that tries a webhook."""


class Webhook(Record):
    """A program that is sent events."""

    id: str
    url: str
    types: list[str] | None = Field(
        default=None, description="types of events, such as incident.*; null: all"
    )
    streams: list[str] | None = Field(
        default=None, description="ids or names of streams; null: all, and events of no stream"
    )
    description: str | None = None
    enabled: bool = True
    disabled_reason: str | None = Field(
        default=None, description="why the service disabled it; null if it did not"
    )
    dropped: int = Field(
        default=0, description="events that were not sent, because too many waited"
    )
    created_at: Timestamp


class DeliveryState(OpenEnum):
    """State of a delivery; the last two are final, until another attempt is requested."""

    PENDING = "pending"
    DELIVERED = "delivered"
    FAILED = "failed"


class Delivery(Record):
    """An event on its way to a webhook."""

    id: str = Field(description="the `webhook-id` of every attempt")
    webhook_id: str
    event_id: str
    type: str
    state: DeliveryState
    attempts: int = Field(description="attempts that have failed")
    status: int | None = Field(default=None, description="HTTP status of the last attempt")
    error: str | None = Field(default=None, description="why the last attempt failed")
    created_at: Timestamp
    due_at: Timestamp | None = Field(default=None, description="when the next attempt is due")
    ended_at: Timestamp | None = None
