"""The form that an answer is asked for in: free text, one of some choices, or JSON of a schema."""

import json
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

from streamer.errors import ErrorCode, StreamerError

MAX_SCHEMA = 65536
"""Characters of a JSON schema at most; it travels in every job."""

_GOES_WITH = {"text": set[str](), "choice": {"choices"}, "json": {"json_schema"}}


class AnswerForm(BaseModel):
    """Free text unless something is asked for; watches, requests and jobs all carry one."""

    model_config = ConfigDict(extra="forbid")

    output: Literal["text", "choice", "json"] = "text"
    choices: list[Annotated[str, Field(max_length=1000)]] = Field(
        default_factory=list, max_length=256, description="the answer is one of them"
    )
    json_schema: dict[str, Any] | None = Field(
        default=None, description="the answer is JSON that fits it"
    )

    @model_validator(mode="after")
    def _goes_together(self) -> Self:
        given = {name for name in ("choices", "json_schema") if getattr(self, name)}
        if self.json_schema == {}:
            given.add("json_schema")  # any JSON
        if given != _GOES_WITH[self.output]:
            wanted = " and ".join(_GOES_WITH[self.output]) or "neither choices nor json_schema"
            raise PydanticCustomError(
                "answer_form",
                "the output '{output}' takes {wanted}",
                {"output": self.output, "wanted": wanted},
            )
        if self.json_schema is not None and len(json.dumps(self.json_schema)) > MAX_SCHEMA:
            raise PydanticCustomError(
                "answer_form",
                "the JSON schema is longer than {most} characters",
                {"most": MAX_SCHEMA},
            )
        return self

    @property
    def form(self) -> dict[str, Any]:
        """The three fields, to give to another record that has them."""
        return {name: getattr(self, name) for name in AnswerForm.model_fields}

    def read(self, text: str) -> dict[str, Any]:
        """What a complete answer says, as entries of a result's `data`."""
        if self.output == "choice":
            return {"choice": text}
        return {"json": json.loads(text)} if self.output == "json" else {}


def check_form(form: AnswerForm) -> None:
    """Raise StreamerError(INVALID_REQUEST) for a form that no answer could be held to."""
    if form.output == "text":
        return
    from nvila_core.errors import PromptError
    from nvila_core.generation.grammar import check_choice, grammar_of, schema_text

    try:
        if form.output == "choice":
            check_choice(form.choices)
        else:
            grammar_of(schema=schema_text(form.json_schema))
    except PromptError as error:
        raise StreamerError(ErrorCode.INVALID_REQUEST, str(error)) from None
