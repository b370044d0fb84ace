"""Options that set the form of an answer."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from streamer.answer_form import AnswerForm

ChoiceOption = Annotated[
    list[str] | None,
    typer.Option("--choice", help="Allow only this answer. Repeat for each allowed answer."),
]
SchemaOption = Annotated[
    str | None,
    typer.Option(
        "--json-schema",
        metavar="FILE_OR_TEXT",
        help="Answer with JSON that matches this JSON schema, given as a file or as text.",
    ),
]


def form_from(choices: list[str] | None, schema: str | None) -> "AnswerForm | None":
    """Return the form that the options set, or None without them.

    Raises typer.BadParameter for options that exclude each other or a schema that cannot be read,
    StreamerError(INVALID_REQUEST) for a form that the record refuses.
    """
    from streamer.answer_form import AnswerForm
    from streamer.validation import validated

    if choices and schema is not None:
        raise typer.BadParameter("--choice and --json-schema exclude each other: use one of them.")
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
            reason = getattr(error, "strerror", None) or "not a text file"
            raise typer.BadParameter(
                f"--json-schema: cannot read {schema[:200]} ({reason}): give a file, or the schema "
                "itself."
            ) from None
    try:
        return json.loads(schema)
    except (ValueError, RecursionError) as error:
        raise typer.BadParameter(f"--json-schema is not valid JSON: {error}.") from None
