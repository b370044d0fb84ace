"""Routes of `/v1/models`: the models that answer, and the cameras that can be asked like one."""

from fastapi import APIRouter

from streamer.api.chat_schemas import CAMERA_PREFIX, ModelCard, ModelCards
from streamer.api.dependencies import ClientDependency
from streamer.api.errors import InvalidIs400
from streamer.clock import shared
from streamer.errors import ErrorCode, StreamerError
from streamer.service import Service

router = APIRouter(prefix="/v1/models", tags=["openai"], route_class=InvalidIs400)

_OWNER = "nvila-streamer"

_STARTED = int(shared().time())
"""When this program was started, as the date of the models."""


def served_models(client: Service) -> dict[str, int | None]:
    """Return the models of the running workers with the length of their contexts; without a worker
    the one that the settings name, of unknown length."""
    served: dict[str, int | None] = dict(client.jobs.models())
    return served or {client.settings.model.rstrip("/").rpartition("/")[2]: None}


def _cards(client: Service) -> list[ModelCard]:
    served = served_models(client)
    known = [length for length in served.values() if length is not None]
    models = [
        ModelCard(id=name, created=_STARTED, owned_by=_OWNER, max_model_len=length)
        for name, length in served.items()
    ]
    cameras = [
        ModelCard(
            id=CAMERA_PREFIX + stream.name,
            created=int(stream.created_at.timestamp()),
            owned_by=_OWNER,
            max_model_len=min(known, default=None),  # any of them may answer
        )
        for stream in client.streams()
    ]
    return models + cameras


@router.get("")
def list_models(client: ClientDependency) -> ModelCards:
    """List the models that answer, and each camera as `stream/NAME`."""
    return ModelCards(data=_cards(client))


@router.get("/{model:path}")
def get_model(model: str, client: ClientDependency) -> ModelCard:
    """Return a model or a camera."""
    for card in _cards(client):
        if card.id == model:
            return card
    raise StreamerError(
        ErrorCode.NOT_FOUND,
        f"There is no model '{model[:80]}': see /v1/models for those that there are.",
        param="model",
    )
