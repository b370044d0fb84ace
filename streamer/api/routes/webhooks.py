"""Routes of `/v1/webhooks`: programs that are sent events."""

from fastapi import APIRouter

from streamer.api.dependencies import (
    MAX_PAGE,
    ClientDependency,
    Cursor,
    DatabaseDependency,
    Limit,
)
from streamer.api.schemas import (
    DeliveryPage,
    NewWebhook,
    WebhookBody,
    WebhookList,
    WebhookPatch,
)
from streamer.cursors import page_of, time_order
from streamer.webhooks.records import Delivery, Webhook

router = APIRouter(prefix="/v1/webhooks", tags=["webhooks"])


@router.post("", status_code=201)
async def add_webhook(
    body: WebhookBody, client: ClientDependency, database: DatabaseDependency
) -> NewWebhook:
    """Add a webhook. Its secret, with which messages are signed, is shown this once."""

    def add() -> NewWebhook:
        webhook, secret = client.webhooks.create(
            body.url,
            types=body.types,
            streams=body.streams,
            description=body.description,
            enabled=body.enabled,
        )
        return NewWebhook(**webhook.model_dump(), secret=secret)

    return await database.run(add)


@router.get("")
async def list_webhooks(
    client: ClientDependency,
    database: DatabaseDependency,
    limit: Limit = MAX_PAGE,
    cursor: Cursor = None,
) -> WebhookList:
    """List the webhooks, oldest first."""
    found = await database.run(lambda: client.webhooks.all())
    page, following = page_of(found, _place, limit, cursor)
    return WebhookList(webhooks=page, next_cursor=following)


def _place(webhook: Webhook) -> tuple[int, str]:
    return time_order(webhook.created_at), webhook.id


@router.get("/{webhook_id}")
async def get_webhook(
    webhook_id: str, client: ClientDependency, database: DatabaseDependency
) -> Webhook:
    """Return a webhook."""
    return await database.run(lambda: client.webhooks.get(webhook_id))


@router.patch("/{webhook_id}")
async def edit_webhook(
    webhook_id: str,
    body: WebhookPatch,
    client: ClientDependency,
    database: DatabaseDependency,
) -> Webhook:
    """Change a webhook. One that is enabled again is sent what happens from then on."""
    changes = body.model_dump(exclude_unset=True)
    for name in ("url", "enabled"):
        if changes.get(name, ...) is None:
            del changes[name]
    return await database.run(lambda: client.webhooks.edit(webhook_id, changes))


@router.delete("/{webhook_id}")
async def remove_webhook(
    webhook_id: str, client: ClientDependency, database: DatabaseDependency
) -> Webhook:
    """Remove a webhook and its deliveries, and return it."""
    return await database.run(lambda: client.webhooks.remove(webhook_id))


@router.get("/{webhook_id}/deliveries")
async def list_deliveries(
    webhook_id: str,
    client: ClientDependency,
    database: DatabaseDependency,
    limit: Limit = 100,
    cursor: Cursor = None,
) -> DeliveryPage:
    """List the deliveries of a webhook, newest first."""
    found, following = await database.run(
        lambda: client.webhooks.deliveries(webhook_id, limit, cursor)
    )
    return DeliveryPage(deliveries=found, next_cursor=following)


@router.post("/{webhook_id}/deliveries/{delivery_id}/retry", status_code=202)
async def retry_delivery(
    webhook_id: str, delivery_id: str, client: ClientDependency, database: DatabaseDependency
) -> Delivery:
    """Send a message again now, with the id that it had."""
    return await database.run(lambda: client.webhooks.retry(webhook_id, delivery_id))


@router.post("/{webhook_id}/test", status_code=202)
async def try_webhook(
    webhook_id: str, client: ClientDependency, database: DatabaseDependency
) -> Delivery:
    """Send a message of type `webhook.test`."""
    return await database.run(lambda: client.webhooks.test(webhook_id))
