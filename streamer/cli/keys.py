"""`streamer keys`: add, list and revoke the keys with which programs call the HTTP API."""

import json
from typing import Annotated

import typer

from streamer.cli.context import Json, open_local_client

NameArgument = Annotated[
    str, typer.Argument(metavar="NAME", help="Name of the key, such as who uses it.")
]


def keys_add(
    name: NameArgument,
    scope: Annotated[
        list[str] | None,
        typer.Option(
            metavar="read|operate",
            help="What the key may do: `read` what is there and ask, or also `operate`, which "
            "changes streams and watches. Default: both.",
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Add a key and show it, once."""
    from streamer.api_keys import ApiKeys
    from streamer.domain.scope import Scope
    from streamer.terminal import console

    unknown = [word for word in scope or () if word not in list(Scope)]
    if unknown:
        raise typer.BadParameter(f"'{unknown[0]}' is not a scope: give read or operate.")
    scopes = [Scope(word) for word in scope] if scope else list(Scope)
    with open_local_client("keys add") as client:
        keys = ApiKeys(client.connections.main, client.settings)
        key, secret = keys.add(name, scopes)
    if as_json:
        typer.echo(json.dumps({"name": key.name, "scopes": key.scopes, "key": secret}))
        return
    console(stderr=True).print(
        f"Added the key '{key.name}' ({', '.join(key.scopes)}). It is shown only now:"
    )
    typer.echo(secret)


def keys_list(as_json: Json = False) -> None:
    """List the keys: the first characters of each, what it may do, and when it was last used."""
    from streamer.api_keys import ApiKeys
    from streamer.terminal import console, table, time_of_day

    with open_local_client("keys list") as client:
        found = ApiKeys(client.connections.main, client.settings).list()
    if as_json:
        for key in found:
            typer.echo(key.model_dump_json(exclude={"digest"}))
        return
    shown = table("name", "key", "scopes", "added", "last used")
    for key in found:
        used = time_of_day(key.last_used_at) if key.last_used_at is not None else "never"
        added = time_of_day(key.created_at)
        shown.add_row(key.name, f"{key.prefix}...", ", ".join(key.scopes), added, used)
    console().print(shown)


def keys_revoke(name: NameArgument) -> None:
    """Revoke a key: programs and browsers that use it are refused within a second."""
    from streamer.api_keys import ApiKeys

    with open_local_client("keys revoke") as client:
        ApiKeys(client.connections.main, client.settings).revoke(name)
    typer.echo(f"Revoked the key '{name}'.")
