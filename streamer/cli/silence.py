"""`streamer silence`: record incidents without delivering them, for a while."""

import getpass
import re
from datetime import timedelta
from typing import TYPE_CHECKING, Annotated, Any

import typer

from streamer.cli.context import Json, open_client

if TYPE_CHECKING:
    from streamer.incidents.silences import Silence

_MATCHER = re.compile(r"\s*([a-zA-Z_]\w*)\s*(=~|!~|!=|=)\s*\"?(.*?)\"?\s*", re.DOTALL)

_OPERATORS = {(True, False): "=", (False, False): "!=", (True, True): "=~", (False, True): "!~"}


def silence_add(
    matchers: Annotated[
        list[str],
        typer.Argument(
            metavar="MATCHER...",
            help="Conditions on labels, as in Alertmanager: stream=lobby, severity!=critical, "
            "site=~north.*; all must hold. Labels: stream, severity, watch, alertname, and those "
            "of the alert.",
        ),
    ],
    duration: Annotated[
        str, typer.Option("--for", metavar="TIME", help="Last this long: 30m, 2h, 7d.")
    ] = "1h",
    reason: Annotated[str, typer.Option(help="Say why.")] = "",
    as_json: Json = False,
) -> None:
    """Keep incidents from being delivered for a while. They are recorded all the same."""
    from streamer.domain.timestamp import utc_now
    from streamer.incidents.silences import Matcher, Silence
    from streamer.times import parse_duration
    from streamer.validation import validated

    parsed = [validated(Matcher, **_matcher(text)) for text in matchers]
    seconds = parse_duration(duration)
    with open_client() as client:
        now = utc_now()
        silence = validated(
            Silence,
            matchers=parsed,
            starts_at=now,
            ends_at=now + timedelta(seconds=seconds),
            reason=reason,
            created_by=getpass.getuser()[:100],
        )
        _show([client.incidents.silence(silence)], as_json)


def silence_list(as_json: Json = False) -> None:
    """List the silences that have not ended."""
    with open_client() as client:
        _show(client.incidents.silences(), as_json)


def silence_end(
    silence_id: Annotated[
        str, typer.Argument(metavar="ID", help="Id of the silence; `silence list` shows it.")
    ],
    as_json: Json = False,
) -> None:
    """End a silence. Incidents that are still open are delivered."""
    with open_client() as client:
        _show([client.incidents.end_silence(silence_id)], as_json)


def _matcher(text: str) -> dict[str, Any]:
    found = _MATCHER.fullmatch(text)
    if found is None:
        raise typer.BadParameter(
            f"'{text[:60]}' is not a matcher: write stream=lobby, severity!=critical or "
            "site=~north.*."
        )
    name, operator, value = found.groups()
    return {
        "name": name,
        "value": value,
        "isRegex": "~" in operator,
        "isEqual": not operator.startswith("!"),
    }


def _show(silences: "list[Silence]", as_json: bool) -> None:
    from streamer.terminal import console, json_lines, plain, time_of_day

    if as_json:
        json_lines(silences)
        return
    out = console()
    for silence in silences:
        conditions = ", ".join(
            m.name + _OPERATORS[m.is_equal, m.is_regex] + m.value for m in silence.matchers
        )
        reason = f"  {plain(silence.reason)}" if silence.reason else ""
        end = time_of_day(silence.ends_at)
        out.print(f"{silence.id}  until {end}  {plain(conditions)}{reason}", soft_wrap=True)
    if not silences:
        out.print("No silences.")
