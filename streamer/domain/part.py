"""Define the record of a part of the installation: a program or a server that it needs."""

from typing import Literal

from pydantic import Field

from streamer.domain.record import Record
from streamer.domain.timestamp import Timestamp

PartName = Literal["redis", "frames redis", "database", "ingest worker", "model worker", "recorder"]


PartState = Literal["up", "loading", "impaired", "missing"]


class Part(Record):
    """A program or a server that the installation needs."""

    name: PartName
    up: bool
    last_seen_at: Timestamp | None = Field(
        default=None, description="when it last worked; null if it has not been seen yet"
    )
    state: PartState | None = Field(
        default=None,
        description="loading: a model worker runs, and loads its model; impaired: it runs, but "
        "something is missing, see message; missing: it does not run",
    )
    message: str | None = Field(default=None, description="what is missing, and what to do")
