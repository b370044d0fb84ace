"""Options that set the format of an answer."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from nvila_core.generation.schema_limits import MAX_SCHEMA

if TYPE_CHECKING:
    from streamer.response_format import ResponseFormat

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


def response_format_of(choices: list[str] | None, schema: str | None) -> "ResponseFormat | None":
    """Return the format that the options set, or None without them.

    Raises typer.BadParameter for options that exclude each other or a schema that cannot be read,
    StreamerError(INVALID_REQUEST) for a format that is not valid.
    """
    from streamer.response_format import ChoiceFormat, JsonFormat
    from streamer.validation import validated

    if choices and schema is not None:
        raise typer.BadParameter("--choice and --json-schema exclude each other: use one of them.")
    if choices:
        return validated(ChoiceFormat, choices=choices)
    if schema is not None:
        return validated(JsonFormat, json_schema=_read(schema))
    return None


def _read(schema: str) -> object:
    if not schema.lstrip().startswith(("{", "[")):
        try:
            with Path(schema).expanduser().open(encoding="utf-8") as file:
                text = file.read(MAX_SCHEMA + 1)
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or "not a text file"
            raise typer.BadParameter(
                f"--json-schema: cannot read {schema[:200]} ({reason}): give a file, or the schema "
                "itself."
            ) from None
        if len(text) > MAX_SCHEMA:
            raise typer.BadParameter(
                f"--json-schema: {schema[:200]} has more than {MAX_SCHEMA} characters: simplify it."
            )
        schema = text
    try:
        return json.loads(schema)
    except (ValueError, RecursionError) as error:
        raise typer.BadParameter(f"--json-schema is not valid JSON: {error}.") from None
