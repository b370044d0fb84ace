"""A one-off question: one record from the CLI, the API and the client to the job."""

from collections.abc import Sequence
from typing import Annotated, Any, Self

from pydantic import (
    AwareDatetime,
    Field,
    ModelWrapValidatorHandler,
    PrivateAttr,
    Strict,
    WithJsonSchema,
    model_validator,
)

from streamer.domain.record import ModelName, Record
from streamer.domain.timestamp import rfc3339, utc_now
from streamer.errors import ErrorCode, StreamerError, about
from streamer.limits import (
    MAX_ANSWER_TOKENS,
    MAX_CLIP_FRAMES,
    MAX_QUERY_STREAMS,
    MAX_QUERY_WINDOWS,
    MAX_SOURCE,
    MAX_WINDOW,
    MIN_WINDOW,
    PROMPT_SCHEMA,
    SOURCE_SCHEMA,
    check_prompt,
)
from streamer.response_format import ResponseFormat
from streamer.times import TIME_SCHEMA, counts_from_now, moment

# The text of a time becomes a datetime before the fields are validated.
_Time = Annotated[
    Annotated[AwareDatetime, Strict()] | None,
    WithJsonSchema({"anyOf": [*TIME_SCHEMA["anyOf"], {"type": "null"}]}),
]


_SUBJECTS = ("stream", "streams", "file", "url")

_NULL, _GIVEN = {"type": "null"}, {"not": {"type": "null"}}


def _about(given: Sequence[str], left_out: Sequence[str]) -> dict[str, Any]:
    """Return the JSON schema of a question that has some fields and does not have others."""
    properties = dict.fromkeys(given, _GIVEN) | dict.fromkeys(left_out, _NULL)
    return {"required": list(given), "properties": properties}


_SUBJECT_SCHEMA: dict[str, Any] = {
    "anyOf": [
        _about([], ["streams", "file", "url", "since", "until", "window"]),
        _about([], ["stream", "file", "url", "since", "until", "window"]),
        _about(["since"], ["streams", "file", "url"]),
        _about(["since"], ["stream", "file", "url"]),
        _about(["file"], ["stream", "streams", "url", "since", "until"]),
        _about(["url"], ["stream", "streams", "file", "since", "until"]),
    ]
}
"""What a question may be about, as JSON schema: `Question._check` says why."""


class Question(Record):
    """A question about a stream now or, with `since`, about a past range.

    With `streams`, `file`, `url` or `window` it is asked of several windows, one by one, and the
    answer sums up what they show.
    """

    model_config = Record.model_config | {"json_schema_extra": _SUBJECT_SCHEMA}

    prompt: str = Field(description="question to ask", json_schema_extra=PROMPT_SCHEMA)
    stream: str | None = Field(
        default=None, description="id or name; optional if only one stream is attached"
    )
    streams: list[str] | None = Field(
        default=None,
        min_length=1,
        max_length=MAX_QUERY_STREAMS,
        description="ids or names of several streams to ask at once",
    )
    file: str | None = Field(
        default=None, max_length=MAX_SOURCE, description="id of an uploaded file to ask about"
    )
    url: Annotated[str, Field(json_schema_extra=SOURCE_SCHEMA)] | None = Field(
        default=None,
        min_length=1,
        max_length=MAX_SOURCE,
        description="recording to ask about: its URL, or the path of a file on the server",
    )
    window: float | None = Field(
        default=None,
        ge=MIN_WINDOW,
        le=MAX_WINDOW,
        description="seconds of a range or a recording that one answer is about; default: of a "
        "range all, of recordings and several streams the setting, or what keeps the windows "
        f"at {MAX_QUERY_WINDOWS}",
    )
    since: _Time = Field(
        default=None, description="start of a past range: RFC 3339 or relative such as -10m"
    )
    until: _Time = Field(default=None, description="end of the range; default: now")
    max_frames: int | None = Field(
        default=None,
        ge=1,
        le=MAX_CLIP_FRAMES,
        description="maximum number of frames of an answer; default: 1, or the setting with "
        "`since`, `file` or `url`",
    )
    max_tokens: int | None = Field(
        default=None,
        ge=1,
        le=MAX_ANSWER_TOKENS,
        description="maximum number of tokens of the answer; default: the setting",
    )
    response_format: ResponseFormat | None = Field(
        default=None, description="format of the answer; default: text"
    )
    model: ModelName | None = Field(
        default=None, description="model that is to answer; default: that of the stream"
    )
    _asked: dict[str, Any] = PrivateAttr(default_factory=dict)

    stale_ok: bool = Field(
        default=False,
        description="about now: answer from an old frame, and mark the answer, if there is no "
        "recent one",
    )

    @model_validator(mode="before")
    @classmethod
    def _resolve_times(cls, fields: Any) -> Any:
        """Replace relative times, counted from one and the same now, and a missing `until`.

        Raises StreamerError(INVALID_REQUEST) for text that is not a time.
        """
        if not isinstance(fields, dict):
            return fields
        now = utc_now()
        times = {}
        for name in ("since", "until"):
            if isinstance(fields.get(name), str):
                with about(name):
                    times[name] = moment(fields[name], now)
        if fields.get("since") is not None and fields.get("until") is None:
            times["until"] = now
        return fields | times

    @model_validator(mode="wrap")
    @classmethod
    def _keep_texts(cls, fields: Any, read: ModelWrapValidatorHandler[Self]) -> Self:
        question = read(fields)
        if isinstance(fields, dict):
            times = {name: fields.get(name) for name in ("since", "until")}
            question._asked = {
                name: when
                for name, when in times.items()
                if when is None or (isinstance(when, str) and counts_from_now(when))
            }
        return question

    @property
    def as_asked(self) -> dict[str, Any]:
        """The fields as JSON, in which relative times are as they were given: they count from the
        clock of the service that gets them."""
        return self.model_dump(mode="json") | self._asked

    @model_validator(mode="after")
    def _check(self) -> Self:
        """Raise StreamerError: PROMPT_EMPTY, PROMPT_TOO_LONG; INVALID_REQUEST for an open or empty
        range."""
        check_prompt(self.prompt)
        since, until = self.since, self.until
        if until is not None and since is None:
            raise StreamerError(
                ErrorCode.INVALID_REQUEST,
                "The range has an end but no start: give since (--since) too.",
                "since",
            )
        if until is not None and since is not None and since >= until:
            raise StreamerError(
                ErrorCode.INVALID_REQUEST,
                f"The range is empty: it starts at {rfc3339(since)} and ends at {rfc3339(until)}.",
                "until",
            )
        self._check_subject()
        return self

    def _check_subject(self) -> None:
        """Raise StreamerError(INVALID_REQUEST) unless the question is about one thing."""
        given = [name for name in _SUBJECTS if getattr(self, name) is not None]
        if len(given) > 1:
            raise StreamerError(
                ErrorCode.INVALID_REQUEST,
                f"A question is about one of {', '.join(_SUBJECTS)}: leave out all but one.",
                given[-1],
            )
        recording = self.file is not None or self.url is not None
        if recording and self.since is not None:
            raise StreamerError(
                ErrorCode.INVALID_REQUEST,
                "A recording is looked at from its beginning to its end: leave out since and until "
                "(--since, --until).",
                "since",
            )
        if self.window is not None and not recording and self.since is None:
            raise StreamerError(
                ErrorCode.INVALID_REQUEST,
                "Windows divide a range: give since (--since) too, or leave out window (--every).",
                "window",
            )

    @property
    def is_survey(self) -> bool:
        """Whether it is asked of several windows."""
        return any(value is not None for value in (self.streams, self.file, self.url, self.window))
