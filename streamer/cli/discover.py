"""`streamer discover`: find the cameras of the network."""

import os
from typing import TYPE_CHECKING, Annotated

import typer

from streamer.cli.context import Json, open_client, open_settings

if TYPE_CHECKING:
    from rich.text import Text

    from streamer.settings import Settings
    from streamer.sources.discovery import Discovery, FoundCamera

PASSWORD_VARIABLE = "NVILA_CAMERA_PASSWORD"
"""Environment variable with the password of the cameras."""


def discover(
    address: Annotated[
        str | None,
        typer.Option(
            metavar="HOST|NETWORK",
            help="Search at this host, or in this private network: 192.168.1.0/24. Default: ask "
            "the networks of this machine by multicast.",
        ),
    ] = None,
    user: Annotated[
        str | None,
        typer.Option(
            help="Log in to the cameras as this user: most list their streams only after a login. "
            f"The password is asked for, or taken from {PASSWORD_VARIABLE}."
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Find cameras that speak ONVIF in the local network.

    The service does not have to run. With STREAMER_API_URL, its API searches where it runs.
    """
    from streamer.terminal import console, json_lines

    settings = open_settings()
    password = None
    if user is not None:
        password = os.environ.get(PASSWORD_VARIABLE)
        if password is None:
            password = typer.prompt("Password of the cameras", hide_input=True, err=True)
    with console(stderr=True).status("Searching for cameras ..."):
        found = _search(settings, address, user, password)
    if as_json:
        json_lines(found.cameras)
    else:
        _show(found)


def _search(
    settings: "Settings", address: str | None, user: str | None, password: str | None
) -> "Discovery":
    """Search from here, or where the service runs if it is elsewhere."""
    from streamer.errors import ErrorCode, StreamerError
    from streamer.sources.discovery import find_cameras

    try:
        with open_client() as client:
            return client.discover(address, user=user, password=password)
    except StreamerError as error:
        if error.code is not ErrorCode.REDIS_UNAVAILABLE or settings.api_url is not None:
            raise
    return find_cameras(settings, [], address, user, password)


def _show(found: "Discovery") -> None:
    from streamer.terminal import console, print_hanging

    out = console()
    for camera in found.cameras:
        for head, body in _lines(camera):
            print_hanging(out, head, body)
    if not found.cameras:
        out.print("No camera has answered: search at its address with --address, or attach its URL")
        out.print("(the manual of the camera has it) with `streamer attach`.")


def _lines(camera: "FoundCamera") -> "list[tuple[Text, Text]]":
    from rich.text import Text

    title = " ".join(part for part in (camera.manufacturer, camera.model) if part)
    known = " · ".join(part for part in (camera.name, title, camera.location) if part)
    rows = [(Text(f"{camera.address}  ", "bold cyan"), Text(known or "camera"))]
    if camera.endpoint_reference:
        rows.append((Text("  called      ", "dim"), Text(camera.endpoint_reference)))
    for stream in camera.streams:
        size = f"{stream.width}x{stream.height}" if stream.width and stream.height else ""
        facts = " ".join(part for part in (stream.codec or "", size, stream.name) if part)
        rows.append(
            (Text("  stream      ", "dim"), Text.assemble(stream.url, (f"  {facts}", "dim")))
        )
    for name in camera.attached:
        moved = ", at another address: attach it again" if name in camera.moved else ""
        rows.append((Text("  attached    ", "dim"), Text(f"as {name}{moved}")))
    if camera.error is not None:
        rows.append((Text("  Note: ", "yellow"), Text(camera.error.message)))
    return rows
