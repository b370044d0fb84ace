"""Define the record of a watch: a standing question about a stream."""

from typing import Self

from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from streamer.alert_rule import ALERT_CHOICES, AlertRule
from streamer.domain.ids import new_id
from streamer.domain.record import ModelName, Record
from streamer.limits import MAX_ANSWER_TOKENS, MAX_CLIP_FRAMES, MAX_WINDOW
from streamer.response_format import ChoiceFormat, ResponseFormat, TextFormat, with_response_format


class Watch(Record):
    """A standing question about a stream: one result per window.

    With `alert`, the answers are yes or no with a probability, and open and end incidents.
    """

    id: str = Field(default_factory=lambda: new_id("wch"))
    prompt: str = Field(min_length=1, description="the question or instruction")
    window: float = Field(
        default=10.0, gt=0, le=MAX_WINDOW, description="seconds that a clip spans"
    )
    max_frames: int = Field(
        default=16, ge=1, le=MAX_CLIP_FRAMES, description="maximum frames of a clip"
    )
    max_tokens: int = Field(
        default=128, ge=1, le=MAX_ANSWER_TOKENS, description="maximum tokens of an answer"
    )
    response_format: ResponseFormat = Field(
        default_factory=TextFormat, description="format of the answer: text, choice or json_schema"
    )
    alert: AlertRule | None = Field(
        default=None, description="when the answers open an incident; null: they never do"
    )
    model: ModelName | None = Field(
        default=None, description="model that answers; null: that of the stream"
    )

    _read_old = model_validator(mode="before")(with_response_format)

    @model_validator(mode="after")
    def _answered_as_alert(self) -> Self:
        """Set the format of an alert's answers. Refuse any other."""
        form = self.response_format
        if self.alert is None or form == ALERT_FORMAT:
            return self
        if form.type != "text":
            raise PydanticCustomError(
                "alert", "an alert is answered with yes or no: leave out 'response_format'"
            )
        # bypasses the validation of assignments, which would call this validator again
        self.__dict__["response_format"] = ALERT_FORMAT.model_copy(deep=True)
        return self


ALERT_FORMAT = ChoiceFormat(choices=ALERT_CHOICES)
"""The format of an alert's answers."""
