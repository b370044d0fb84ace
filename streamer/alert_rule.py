"""The rule of an alert: when answers become an incident, and what its messages say."""

from datetime import datetime
from datetime import time as clock_time
from typing import Annotated, Any, Literal, Self
from zoneinfo import ZoneInfo, available_timezones

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

from streamer.limits import MAX_PROMPT, PROMPT_SCHEMA

ALERT_CHOICES = ["yes", "no"]
"""The answers of an alert: what is asked about is there, or not."""

SUMMARY_PROMPT = "Describe the scene."
"""What the model is asked about a new incident, unless the rule says otherwise."""

MAX_RULE_WINDOWS = 100
"""Windows that a rule may count."""

MAX_LABELS = 32
MAX_LABEL_VALUE = 256
"""Characters of the value of a label."""

RESERVED_LABELS = ("alertname", "incident", "severity", "stream", "watch")
"""Labels that every incident has by itself."""

Day = Literal["mon", "tue", "wed", "thu", "fri", "sat", "sun"]
DAYS: list[Day] = ["mon", "tue", "wed", "thu", "fri", "sat", "sun"]


Severity = Literal["info", "warning", "critical"]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", serialize_by_alias=True, validate_by_name=True)


class RaiseRule(_Part):
    """An incident opens when `k` of the last `n` answered windows are this probable."""

    probability: float = Field(default=0.7, gt=0, le=1, description="a window counts from here on")
    k: int = Field(default=2, ge=1, le=MAX_RULE_WINDOWS, description="windows that must count")
    n: int = Field(default=3, ge=1, le=MAX_RULE_WINDOWS, description="of this many answered ones")

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if self.k > self.n:
            raise PydanticCustomError(
                "alert",
                "{k} of {n} windows can never be: give a k that is at most n",
                {"k": self.k, "n": self.n},
            )
        return self


class ClearRule(_Part):
    """An incident is over when the last `m` answered windows are at most this probable."""

    probability: float = Field(default=0.3, ge=0, lt=1, description="a window is clear up to here")
    m: int = Field(default=3, ge=1, le=MAX_RULE_WINDOWS, description="clear windows in a row")


def _known_zone(name: str) -> str:
    try:
        ZoneInfo(name)
    except (KeyError, ValueError, OSError):
        raise PydanticCustomError(
            "alert",
            "'{name}' is not a time zone: write one such as Europe/Berlin or UTC",
            {"name": name[:60]},
        ) from None
    return name


_TimeOfDay = Annotated[
    str, Field(pattern=r"^([01][0-9]|2[0-3]):[0-5][0-9]$", description="time of day: 22:00")
]


class Schedule(_Part):
    """The hours in which an alert may open incidents; one that is open ends at any time."""

    days: list[Day] = Field(
        default_factory=DAYS.copy,
        min_length=1,
        max_length=7,
        description="days on which the hours begin",
    )
    start: _TimeOfDay = Field(default="00:00", alias="from")
    end: _TimeOfDay = Field(
        default="00:00", alias="to", description="an end before the start is on the next day"
    )
    timezone: Annotated[str, AfterValidator(_known_zone)] = Field(
        default="UTC",
        max_length=64,
        description="time zone of the hours",
        json_schema_extra=lambda schema: schema.update(enum=[*sorted(available_timezones())]),
    )

    def holds(self, moment: datetime) -> bool:
        """Return whether `moment` (aware) is within the hours."""
        local = moment.astimezone(ZoneInfo(self.timezone))
        start, end = clock_time.fromisoformat(self.start), clock_time.fromisoformat(self.end)
        now = local.time().replace(tzinfo=None)
        today, yesterday = DAYS[local.weekday()], DAYS[local.weekday() - 1]
        if start < end:
            return today in self.days and start <= now < end
        return (today in self.days and now >= start) or (yesterday in self.days and now < end)


def _labelled(labels: dict[str, str]) -> dict[str, str]:
    for name in RESERVED_LABELS:
        if name in labels:
            raise PydanticCustomError(
                "alert",
                "the label '{name}' is the incident's own: choose another name",
                {"name": name},
            )
    return labels


def _describe_labels(schema: dict[str, Any]) -> None:
    """Say in the JSON schema which names are taken."""
    (schema["additionalProperties"],) = schema.pop("patternProperties").values()
    schema["propertyNames"] = {"pattern": _LABEL_NAME, "not": {"enum": list(RESERVED_LABELS)}}


_LABEL_NAME = r"^[a-zA-Z_][a-zA-Z0-9_]{0,63}$"

LabelName = Annotated[str, Field(pattern=_LABEL_NAME)]
LabelValue = Annotated[str, Field(max_length=MAX_LABEL_VALUE)]


class AlertRule(_Part):
    """When the answers to a yes/no question open an incident, and when it is over.

    A window without an answer (an error, an absent camera) is unknown: it neither opens nor ends
    an incident.
    """

    raise_: RaiseRule = Field(
        default_factory=RaiseRule, alias="raise", description="when an incident opens"
    )
    clear: ClearRule = Field(default_factory=ClearRule, description="when it is over")
    cooldown: float = Field(
        default=60.0,
        ge=0,
        le=7 * 86400,
        description="seconds after its end in which the same incident opens again",
    )
    severity: Severity = Field(default="warning", description="how urgent an incident is")
    title: str | None = Field(
        default=None, min_length=1, max_length=200, description="title; default: the question"
    )
    describe: (
        bool
        | Annotated[
            str, Field(min_length=1, max_length=MAX_PROMPT, json_schema_extra=PROMPT_SCHEMA)
        ]
    ) = Field(
        default=True,
        description="what the model is asked about a new incident, for its summary; true: "
        f"`{SUMMARY_PROMPT}`; false: nothing",
    )
    schedule: Schedule | None = Field(
        default=None, description="hours in which incidents may open; default: always"
    )
    labels: Annotated[
        dict[LabelName, LabelValue], Field(max_length=MAX_LABELS), AfterValidator(_labelled)
    ] = Field(
        default_factory=dict,
        description="labels for silences and receivers",
        json_schema_extra=_describe_labels,
    )

    @model_validator(mode="after")
    def _apart(self) -> Self:
        if self.clear.probability >= self.raise_.probability:
            raise PydanticCustomError(
                "alert",
                "'clear' ends at {clear}, which must be below {high}, where 'raise' begins",
                {"clear": f"{self.clear.probability:g}", "high": f"{self.raise_.probability:g}"},
            )
        return self

    @property
    def summary_prompt(self) -> str | None:
        """What the model is asked about a new incident; None: nothing."""
        if isinstance(self.describe, str):
            return self.describe
        return SUMMARY_PROMPT if self.describe else None


def merged_rule(rule: AlertRule, changes: AlertRule) -> dict[str, Any]:
    """Return the fields of `rule`, with those that `changes` sets in their place."""
    old, new = rule.model_dump(), changes.model_dump(exclude_unset=True)
    parts = {name: old[name] | new[name] for name in ("raise", "clear") if name in new}
    return old | new | parts


_RULE_FIELDS = {field.alias or name for name, field in AlertRule.model_fields.items()}


def with_nested_rule(fields: Any) -> Any:
    """Convert the fields of a watch in which those of the rule stand beside `output: alert`.

    Then `question` is another name of `prompt`.
    """
    if not isinstance(fields, dict) or fields.get("output") != "alert" or "alert" in fields:
        return fields
    rule = {name: value for name, value in fields.items() if name in _RULE_FIELDS}
    flat = {"output", "question", *_RULE_FIELDS}
    kept = {name: value for name, value in fields.items() if name not in flat}
    if "question" in fields:
        kept.setdefault("prompt", fields["question"])
    return kept | {"alert": rule}
