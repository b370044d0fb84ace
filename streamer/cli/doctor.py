"""`streamer doctor`: check whether this machine can run the service."""

import typer

from streamer.cli.context import Json, open_settings, require_local

_STYLES = {"ok": "green", "warn": "yellow", "fail": "bold red"}


def doctor(as_json: Json = False) -> None:
    """Check Redis, model, codecs, hardware decoding, disk and clocks, within 10 seconds.

    The exit code is 1 if a check fails. Warnings are not failures.
    """
    from rich.text import Text

    from streamer.doctor.examination import examine
    from streamer.terminal import console, json_lines, plain, print_hanging

    settings = open_settings()
    require_local(settings, "doctor")
    with console(stderr=True).status("Checking this machine ..."):
        found = examine(settings)
    if as_json:
        json_lines(found)
    else:
        out = console()
        width = max(len(check.name) for check in found) + 2
        for check in found:
            mark = (f"{check.state:<6}", _STYLES[check.state])
            head = Text.assemble(mark, f"{check.name:<{width}}")
            print_hanging(out, head, Text(plain(check.message)))
    if any(check.state == "fail" for check in found):
        raise typer.Exit(1)
