"""Dependencies of the route functions."""

from typing import Annotated, cast

from fastapi import Depends, Request

from streamer.client import Client


def _client(request: Request) -> Client:
    return cast(Client, request.app.state.client)


ClientDependency = Annotated[Client, Depends(_client)]
