"""Route of `/v1/discovery`: the cameras of a network."""

from fastapi import APIRouter

from streamer.api.dependencies import ClientDependency
from streamer.api.schemas import DiscoveryBody
from streamer.sources.discovery import Discovery

router = APIRouter(prefix="/v1/discovery", tags=["streams"])


@router.post("")
def discover_cameras(body: DiscoveryBody, client: ClientDependency) -> Discovery:
    """Search for cameras by ONVIF, in private networks only. Takes up to half a minute.

    Needs `nvila-streamer[discover]` on the server. Attach what is found with its
    `endpoint_reference`.
    """
    return client.discover(body.address, body.user, body.password)
