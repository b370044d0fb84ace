"""Silences: which incidents are not delivered, and until when."""

import re
from collections.abc import Mapping
from datetime import datetime
from functools import lru_cache
from typing import Annotated, Self

from pydantic import AfterValidator, Field, model_validator
from pydantic_core import PydanticCustomError

from streamer.alert_rule import MAX_LABEL_VALUE, LabelName
from streamer.domain.ids import new_id
from streamer.domain.record import Record
from streamer.domain.timestamp import Timestamp, utc_now
from streamer.incidents.records import MAX_NOTE, Incident, PersonName

MAX_MATCHERS = 32

MAX_SILENCES = 1000
"""Silences that have not ended."""

MAX_SILENCED_MINUTES = 366 * 24 * 60

_MAX_REPEATS = 3
"""Repeats in a regular expression: with more, matching a long label could take seconds."""

_REPEAT = re.compile(r"(?<!\\)[*+{]")
_REPEATED_GROUP = re.compile(r"(?<!\\)\)[*+{]")


def _usable(pattern: str) -> str:
    try:
        _pattern(pattern)
    except (re.error, RecursionError, OverflowError) as error:
        raise PydanticCustomError(
            "silence", "'{reason}' in the regular expression", {"reason": str(error)[:80]}
        ) from None
    if len(_REPEAT.findall(pattern)) > _MAX_REPEATS or _REPEATED_GROUP.search(pattern):
        raise PydanticCustomError(
            "silence",
            "the regular expression repeats too much: use at most {most} of * and +, and none "
            "after a group",
            {"most": _MAX_REPEATS},
        )
    return pattern


@lru_cache(maxsize=1024)
def _pattern(text: str) -> "re.Pattern[str]":
    return re.compile(text)


class Matcher(Record):
    """One condition on the labels of an incident, as in Alertmanager.

    A label that an incident does not have is empty. A regular expression must match all of it.
    """

    name: LabelName = Field(
        description="a label of the rule, or `alertname`, `severity`, `stream` or `watch`"
    )
    value: str = Field(max_length=MAX_LABEL_VALUE)
    is_regex: bool = Field(default=False, alias="isRegex")
    is_equal: bool = Field(
        default=True, alias="isEqual", description="false: the label must not match"
    )

    model_config = Record.model_config | {"serialize_by_alias": True, "validate_by_name": True}

    @model_validator(mode="after")
    def _compiles(self) -> Self:
        if self.is_regex:
            _usable(self.value)
        return self

    def matches(self, labels: Mapping[str, str]) -> bool:
        """Return whether incidents with these labels fulfil the condition."""
        label = labels.get(self.name, "")
        found = (
            bool(_pattern(self.value).fullmatch(label)) if self.is_regex else label == self.value
        )
        return found is self.is_equal


def _selective(matchers: list[Matcher]) -> list[Matcher]:
    if all(matcher.matches({}) for matcher in matchers):
        raise PydanticCustomError(
            "silence",
            "the matchers would silence everything: name at least one value that a label must have",
        )
    return matchers


class Silence(Record):
    """Keeps the incidents that fulfil all matchers from being delivered; they are recorded."""

    id: str = Field(default_factory=lambda: new_id("sil"))
    matchers: Annotated[list[Matcher], AfterValidator(_selective)] = Field(
        min_length=1, max_length=MAX_MATCHERS
    )
    starts_at: Timestamp = Field(default_factory=utc_now)
    ends_at: Timestamp
    reason: str = Field(default="", max_length=MAX_NOTE)
    created_by: PersonName | None = None
    created_at: Timestamp = Field(default_factory=utc_now)

    @model_validator(mode="after")
    def _ends_after_it_starts(self) -> Self:
        if self.ends_at <= self.starts_at:
            raise PydanticCustomError("silence", "'ends_at' must be after 'starts_at'")
        return self

    def covers(self, incident: Incident, now: datetime) -> bool:
        """Return whether an incident is not delivered at this time."""
        within = self.starts_at <= now < self.ends_at
        return within and all(m.matches(incident.all_labels) for m in self.matchers)
