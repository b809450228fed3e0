"""Webhook endpoints, the secrets that sign, and the deliveries."""

from __future__ import annotations

from typing import Annotated

from fastapi import Query, Request, Response

from app.auth.api_keys import CallerDep
from app.web.pagination import Cursor, Limit, decode_cursor, next_page
from app.web.provided import provided
from app.web.routing import Router
from app.webhooks.schemas import (
    AttemptPage,
    AttemptRead,
    DeliveryFilters,
    DeliveryPage,
    DeliveryRead,
    EndpointCreate,
    EndpointPage,
    EndpointRead,
    EndpointUpdate,
    Recovered,
    Recovery,
    Secret,
    read_delivery,
    read_endpoint,
)
from app.webhooks.service import WebhookService

router = Router(prefix="/v1", tags=["webhooks"])
WebhooksDep = Annotated[WebhookService, provided(WebhookService)]


@router.post("/webhook-endpoints", status_code=201, operation_id="createWebhookEndpoint")
async def create_endpoint(
    response: Response, webhooks: WebhooksDep, caller: CallerDep, body: EndpointCreate
) -> EndpointRead:
    """Create a webhook endpoint that receives your tasks' events."""
    endpoint = await webhooks.create_endpoint(caller, body)
    response.headers["Location"] = f"/v1/webhook-endpoints/{endpoint.id}"
    return read_endpoint(endpoint)


@router.get("/webhook-endpoints", operation_id="listWebhookEndpoints")
async def list_endpoints(
    request: Request,
    response: Response,
    webhooks: WebhooksDep,
    caller: CallerDep,
    limit: Limit = 50,
    cursor: Cursor = None,
) -> EndpointPage:
    """List your webhook endpoints, oldest first."""
    position = decode_cursor(cursor, 1)
    endpoints = await webhooks.list_endpoints(caller, position[0] if position else "", limit + 1)
    page, following = next_page(request, response, endpoints, limit, lambda endpoint: (endpoint.id,))
    return EndpointPage(items=[read_endpoint(endpoint) for endpoint in page], next_cursor=following)


@router.get("/webhook-endpoints/{endpoint_id}", operation_id="getWebhookEndpoint")
async def get_endpoint(webhooks: WebhooksDep, caller: CallerDep, endpoint_id: str) -> EndpointRead:
    """Get one webhook endpoint."""
    return read_endpoint(await webhooks.get_endpoint(caller, endpoint_id))


@router.patch("/webhook-endpoints/{endpoint_id}", operation_id="changeWebhookEndpoint")
async def update_endpoint(
    webhooks: WebhooksDep, caller: CallerDep, endpoint_id: str, body: EndpointUpdate
) -> EndpointRead:
    """
    Change the given fields of a webhook endpoint; the others stay.

    Disabling gives up the pending deliveries; enabling starts afresh, and `recover`
    brings back what was missed. Pending deliveries go to a new `url` too.
    """
    return read_endpoint(await webhooks.update_endpoint(caller, endpoint_id, body))


@router.delete("/webhook-endpoints/{endpoint_id}", status_code=204, operation_id="deleteWebhookEndpoint")
async def delete_endpoint(webhooks: WebhooksDep, caller: CallerDep, endpoint_id: str) -> None:
    """Delete a webhook endpoint with its deliveries."""
    await webhooks.delete_endpoint(caller, endpoint_id)


@router.get("/webhook-endpoints/{endpoint_id}/secret", operation_id="getWebhookEndpointSecret")
async def get_endpoint_secret(response: Response, webhooks: WebhooksDep, caller: CallerDep, endpoint_id: str) -> Secret:
    """Get the secret that signs webhooks to this endpoint."""
    return _uncached(response, await webhooks.secret(caller, endpoint_id))


@router.post("/webhook-endpoints/{endpoint_id}/rotate-secret", operation_id="rotateWebhookEndpointSecret")
async def rotate_endpoint_secret(
    response: Response, webhooks: WebhooksDep, caller: CallerDep, endpoint_id: str
) -> Secret:
    """Sign with a new secret; for 24 hours the old one signs too."""
    return _uncached(response, await webhooks.rotate_secret(caller, endpoint_id))


@router.post("/webhook-endpoints/{endpoint_id}/test", status_code=202, operation_id="testWebhookEndpoint")
async def send_test(webhooks: WebhooksDep, caller: CallerDep, endpoint_id: str) -> DeliveryRead:
    """Send a `webhook.test` event to this endpoint, whatever its `event_types`."""
    return read_delivery(await webhooks.send_test(caller, endpoint_id))


@router.post("/webhook-endpoints/{endpoint_id}/recover", status_code=202, operation_id="recoverWebhookEndpoint")
async def recover_endpoint(webhooks: WebhooksDep, caller: CallerDep, endpoint_id: str, body: Recovery) -> Recovered:
    """Make every delivery of a time range that was not delivered due now."""
    return Recovered(deliveries=await webhooks.recover(caller, endpoint_id, body))


@router.get("/webhook-secret", operation_id="getWebhookSecret")
async def get_default_secret(response: Response, webhooks: WebhooksDep, caller: CallerDep) -> Secret:
    """Get the secret that signs webhooks to the `webhook_url` of your tasks."""
    return _uncached(response, await webhooks.default_secret(caller))


@router.post("/webhook-secret/rotate", operation_id="rotateWebhookSecret")
async def rotate_default_secret(response: Response, webhooks: WebhooksDep, caller: CallerDep) -> Secret:
    """Sign webhooks to the `webhook_url` of your tasks with a new secret; for 24 hours the old one signs too."""
    return _uncached(response, await webhooks.rotate_default_secret(caller))


@router.get("/deliveries", operation_id="listDeliveries")
async def list_deliveries(
    request: Request,
    response: Response,
    webhooks: WebhooksDep,
    caller: CallerDep,
    filters: Annotated[DeliveryFilters, Query()],
) -> DeliveryPage:
    """List your deliveries, newest first."""
    wanted = filters.model_dump(exclude={"limit", "cursor"}, exclude_none=True)
    position = decode_cursor(filters.cursor, 1)
    found = await webhooks.list_deliveries(caller, wanted, position[0] if position else None, filters.limit + 1)
    page, following = next_page(request, response, found, filters.limit, lambda delivery: (delivery.id,))
    return DeliveryPage(items=[read_delivery(delivery) for delivery in page], next_cursor=following)


@router.get("/deliveries/{delivery_id}/attempts", operation_id="listDeliveryAttempts")
async def list_attempts(
    request: Request,
    response: Response,
    webhooks: WebhooksDep,
    caller: CallerDep,
    delivery_id: str,
    limit: Limit = 50,
    cursor: Cursor = None,
) -> AttemptPage:
    """List the attempts of a delivery, oldest first."""
    position = decode_cursor(cursor, 1)
    found = await webhooks.list_attempts(caller, delivery_id, position[0] if position else "", limit + 1)
    page, following = next_page(request, response, found, limit, lambda attempt: (attempt.id,))
    return AttemptPage(items=[AttemptRead.model_validate(attempt) for attempt in page], next_cursor=following)


@router.post("/deliveries/{delivery_id}/resend", status_code=202, operation_id="resendDelivery")
async def resend_delivery(webhooks: WebhooksDep, caller: CallerDep, delivery_id: str) -> DeliveryRead:
    """Make a delivery due now, whatever its status: the same `webhook-id`, the same bytes."""
    return read_delivery(await webhooks.resend(caller, delivery_id))


def _uncached(response: Response, secret: str) -> Secret:
    response.headers["Cache-Control"] = "no-store"
    return Secret(secret=secret)
