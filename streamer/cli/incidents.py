"""`streamer incidents`: list what alerts have found, show one incident, say what it was."""

import getpass
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from streamer.cli.context import Json, open_client, typed_range

if TYPE_CHECKING:
    from rich.text import Text

    from streamer.cli.remote import RemoteInstallation
    from streamer.incidents.records import Incident
    from streamer.service import Service


def incidents(
    incident_id: Annotated[
        str | None, typer.Argument(metavar="ID", help="Show all of this incident.")
    ] = None,
    only_open: Annotated[
        bool, typer.Option("--open", help="Show only incidents that are open.")
    ] = False,
    stream: Annotated[
        str | None, typer.Option(help="Show only this stream, given by name or id.")
    ] = None,
    severity: Annotated[
        Literal["info", "warning", "critical"] | None,
        typer.Option(help="Show only incidents of this severity."),
    ] = None,
    since: Annotated[
        str | None,
        typer.Option(
            metavar="TIME", help="Show only what is open or changed since: -1d, 16:00 or RFC 3339."
        ),
    ] = None,
    unseen: Annotated[
        bool, typer.Option("--unseen", help="Show only incidents that no one has seen.")
    ] = False,
    limit: Annotated[
        int, typer.Option(min=1, max=1000, help="Show no more than this number, the newest ones.")
    ] = 100,
    ack: Annotated[
        bool, typer.Option("--ack", help="Acknowledge the incident: you take care of it.")
    ] = False,
    resolve: Annotated[
        bool, typer.Option("--resolve", help="Resolve the incident by hand.")
    ] = False,
    right: Annotated[
        bool | None, typer.Option("--right/--wrong", help="Say whether the alert was right.")
    ] = None,
    note: Annotated[
        str | None, typer.Option(help="Add this note to --ack, --right or --wrong.")
    ] = None,
    as_json: Json = False,
) -> None:
    """List what alerts have found, newest first, or show and change one incident."""
    from streamer.terminal import console, json_lines, print_hanging

    if incident_id is None and (ack or resolve or right is not None):
        raise typer.BadParameter("--ack, --resolve, --right and --wrong need an ID: give one.")
    typed_range(since, None)  # what is wrong with it is said even if nothing runs
    with open_client() as client:
        if incident_id is not None:
            found = [_changed(client, incident_id, ack, resolve, right, note)]
        else:
            found = client.incidents.page(
                state="open" if only_open else None,
                stream=stream,
                severity=severity,
                since=typed_range(since, None)[0],
                unseen=unseen,
                limit=limit,
            ).incidents
    out = console()
    if as_json:
        json_lines(found)
    elif incident_id is not None:
        for name, value in _facts(found[0]):
            from rich.text import Text

            print_hanging(out, Text(f"{name:<14}", "dim"), Text(value))
    elif not found:
        out.print("No incidents.")
    else:
        width = max(len(each.stream_name) for each in found)
        for each in found:
            print_hanging(out, *_line(each, width))


def _changed(
    client: "Service | RemoteInstallation",
    incident_id: str,
    ack: bool,
    resolve: bool,
    right: bool | None,
    note: str | None,
) -> "Incident":
    from streamer.incidents.records import Feedback

    store, me = client.incidents, getpass.getuser()[:100]
    found = store.get(incident_id)
    if ack:
        found = store.acknowledge(incident_id, me, note)
    if right is not None:
        verdict: Literal["right", "wrong"] = "right" if right else "wrong"
        found = store.judge(incident_id, Feedback(verdict=verdict, by=me, note=note))
    if resolve:
        found = store.resolve(incident_id)
    return found


_STYLES = {"info": "cyan", "warning": "yellow", "critical": "bold red"}


def _line(incident: "Incident", width: int) -> "tuple[Text, Text]":
    from rich.text import Text

    from streamer.terminal import plain, time_of_day

    head = Text.assemble(
        (f"{time_of_day(incident.opened_at):<12} ", "dim"),
        (f"{plain(incident.stream_name):<{width}}  ", "cyan"),
    )
    style = _STYLES[incident.severity] if incident.state == "open" else ""
    body = Text.assemble(
        (f"{_state(incident)}  ", "dim"),
        (plain(incident.title), style),
        ("  " + incident.id, "dim"),
    )
    if incident.summary:
        body.append(f"  {plain(incident.summary)}")
    return head, body


def _state(incident: "Incident") -> str:
    from streamer.terminal import age

    words = f"{incident.state}, {incident.severity}"
    if incident.resolve_reason is not None:
        words += f", {incident.resolve_reason.replace('_', ' ')}"
    elif incident.acknowledged is not None:
        words += f", acknowledged by {incident.acknowledged.by}"
    if incident.state == "open" and _is_unknown(incident):
        words += f", unknown for {age(incident.last_known_at)}"
    if incident.silenced_by:
        words += ", silenced"
    return words


def _is_unknown(incident: "Incident") -> bool:
    """Return whether there has been no answer for longer than a few windows may take."""
    from streamer.domain.timestamp import utc_now

    return (utc_now() - incident.last_known_at).total_seconds() > 60


def _probability(incident: "Incident") -> str:
    found = incident.probability
    return f"{found.first:.2f}, last {found.last:.2f}, most {found.max:.2f}"


def _facts(incident: "Incident") -> list[tuple[str, str]]:
    from streamer.terminal import plain, time_of_day

    windows = incident.windows
    delivered = [d for d in incident.deliveries if d.delivered]
    facts: list[tuple[str, str | None]] = [
        ("incident", incident.id),
        ("title", plain(incident.title)),
        ("question", plain(incident.question)),
        ("stream", plain(incident.stream_name)),
        ("state", _state(incident)),
        ("summary", plain(incident.summary) if incident.summary else None),
        ("first seen", time_of_day(incident.opened_at)),
        ("opened", time_of_day(incident.raised_at)),
        ("last seen", time_of_day(incident.last_seen_at)),
        ("last known", time_of_day(incident.last_known_at)),
        ("resolved", time_of_day(incident.resolved_at)),
        ("probability", _probability(incident)),
        ("windows", f"{windows.yes} yes, {windows.no} no, {windows.unknown} unknown"),
        ("came back", f"{incident.reopened} times" if incident.reopened else None),
        ("labels", ", ".join(f"{k}={v}" for k, v in incident.labels.items()) or None),
        ("seen by", ", ".join(incident.seen_by) or None),
        ("acknowledged", f"by {incident.acknowledged.by}" if incident.acknowledged else None),
        ("feedback", incident.feedback.verdict if incident.feedback else None),
        ("delivered", f"{len(delivered)} messages" if delivered else None),
        ("picture", incident.snapshot.best),
        ("video", incident.clip),
    ]
    return [(name, value) for name, value in facts if value]
