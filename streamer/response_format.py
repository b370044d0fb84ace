"""The format of an answer: free text, one of some choices, or JSON that matches a schema."""

import json
from typing import Annotated, Any, Literal, cast

from pydantic import AfterValidator, BaseModel, ConfigDict, Field
from pydantic_core import PydanticCustomError

from nvila_core.generation.schema_limits import MAX_SCHEMA
from streamer.errors import ErrorCode, StreamerError
from streamer.limits import MAX_CHOICE, MAX_CHOICES, MAX_CHOICES_LENGTH


def _bounded(schema: dict[str, Any]) -> dict[str, Any]:
    try:
        length = len(json.dumps(schema))
    except RecursionError:
        raise PydanticCustomError("json_schema", "the JSON schema is nested too deep") from None
    if length > MAX_SCHEMA:
        raise PydanticCustomError(
            "json_schema", "the JSON schema is longer than {max} characters", {"max": MAX_SCHEMA}
        )
    return schema


def _require_type(schema: dict[str, Any]) -> None:
    """List `type` as required, as the discriminator of a union is in spite of its default."""
    schema["required"] = ["type", *schema.get("required", [])]


class _Format(BaseModel):
    model_config = ConfigDict(extra="forbid", json_schema_extra=_require_type)

    @property
    def constraint(self) -> dict[str, Any]:
        """Arguments of `nvila_core.SamplingParams` that hold the model to this format."""
        return {}

    def check(self) -> None:
        """Raise StreamerError(INVALID_REQUEST) if no answer could have this format."""

    def complete(self, text: str, finish_reason: str) -> bool:
        """Return whether an answer, which ended for this reason, has the whole format."""
        return True

    def parse(self, text: str) -> dict[str, Any]:
        """Return what a complete answer means, as entries of a result's `data`."""
        return {}


class TextFormat(_Format):
    """Free text."""

    type: Literal["text"] = "text"


_CHOICE = r"^[^\s\u0000](.*[^\s\u0000])?$"
"""One line without white space around it, as JSON schema; `check` refuses what cannot be printed,
too."""


class ChoiceFormat(_Format):
    """One of the given choices, word for word; `data.choice` of the result repeats it."""

    type: Literal["choice"] = "choice"
    choices: list[
        Annotated[str, Field(max_length=MAX_CHOICE, json_schema_extra={"pattern": _CHOICE})]
    ] = Field(min_length=1, max_length=MAX_CHOICES)

    @property
    def constraint(self) -> dict[str, Any]:
        return {"choice": self.choices}

    def check(self) -> None:
        from nvila_core.errors import PromptError
        from nvila_core.generation.grammar import check_choice

        length = sum(map(len, self.choices))
        if length > MAX_CHOICES_LENGTH:
            raise StreamerError(
                ErrorCode.INVALID_REQUEST,
                f"The choices have {length:,} characters together, more than "
                f"{MAX_CHOICES_LENGTH:,}: shorten them.",
            )
        try:
            check_choice(self.choices)
        except PromptError as error:
            raise StreamerError(ErrorCode.INVALID_REQUEST, str(error)) from None

    def complete(self, text: str, finish_reason: str) -> bool:
        from nvila_core.generation.grammar import is_complete

        return is_complete(text, finish_reason, choice=self.choices, schema=False)

    def parse(self, text: str) -> dict[str, Any]:
        return {"choice": text}


class JsonFormat(_Format):
    """JSON that matches a schema; `data.json` of the result holds the parsed value."""

    type: Literal["json_schema"] = "json_schema"
    json_schema: Annotated[dict[str, Any], AfterValidator(_bounded)] = Field(
        description="JSON schema of the answer; {} allows any JSON. Objects that name properties "
        "admit no others, unless `additionalProperties` says so"
    )

    @property
    def constraint(self) -> dict[str, Any]:
        return {"json_schema": self.json_schema}

    def check(self) -> None:
        from nvila_core.errors import PromptError
        from nvila_core.generation.grammar import schema_text
        from nvila_core.generation.schema_check import CHECKER, TooManySchemas

        try:
            CHECKER.check(schema_text(self.json_schema), patient=False)
        except PromptError as error:
            raise StreamerError(ErrorCode.INVALID_REQUEST, str(error)) from None
        except TooManySchemas as error:
            raise StreamerError(ErrorCode.TOO_MANY_QUERIES, str(error)) from None

    def complete(self, text: str, finish_reason: str) -> bool:
        from nvila_core.generation.grammar import is_complete

        return is_complete(text, finish_reason, choice=(), schema=True)

    def parse(self, text: str) -> dict[str, Any]:
        return {"json": json.loads(text)}


ResponseFormat = Annotated[TextFormat | ChoiceFormat | JsonFormat, Field(discriminator="type")]


def with_response_format(fields: Any) -> Any:
    """Convert the fields of a stored record that is older than `response_format`.

    Such records have the form of an answer in `output` (text, choice or json), `choices` and
    `json_schema`. Jobs and streams that an earlier version stored in Redis stay readable.
    """
    if not isinstance(fields, dict) or "output" not in fields:
        return fields
    old = cast(dict[str, Any], fields)
    kept = {key: old[key] for key in old.keys() - {"output", "choices", "json_schema"}}
    match old["output"]:
        case "choice":
            kept["response_format"] = {"type": "choice", "choices": old.get("choices")}
        case "json":
            kept["response_format"] = {
                "type": "json_schema",
                "json_schema": old.get("json_schema"),
            }
        case output:
            kept["response_format"] = {"type": output}
    return kept
