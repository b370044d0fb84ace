"""The options that say in which form an answer is wanted."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from streamer.answer_form import AnswerForm

ChoiceOption = Annotated[
    list[str] | None,
    typer.Option("--choice", help="The answer is one of these; repeat it for each."),
]
SchemaOption = Annotated[
    str | None,
    typer.Option(
        "--json-schema",
        metavar="FILE_OR_TEXT",
        help="The answer is JSON that fits this JSON schema.",
    ),
]


def form_from(choices: list[str] | None, schema: str | None) -> "AnswerForm | None":
    """What the options ask for; None when they say nothing.

    Raises StreamerError(INVALID_REQUEST) for a schema that cannot be read.
    """
    from streamer.answer_form import AnswerForm
    from streamer.validation import validated

    if choices and schema is not None:
        raise typer.BadParameter("--choice and --json-schema exclude each other: choose one.")
    if choices:
        return validated(AnswerForm, output="choice", choices=choices)
    if schema is not None:
        return validated(AnswerForm, output="json", json_schema=_read(schema))
    return None


def _read(schema: str) -> object:
    if not schema.lstrip().startswith(("{", "[")):
        try:
            schema = Path(schema).expanduser().read_text(encoding="utf-8")
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or "it is not text"
            raise typer.BadParameter(
                f"--json-schema: {schema[:200]} cannot be read ({reason}): name a file, or write "
                "the schema itself."
            ) from None
    try:
        return json.loads(schema)
    except (ValueError, RecursionError) as error:
        raise typer.BadParameter(f"--json-schema is not JSON: {error}.") from None
