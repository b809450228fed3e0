"""Webhook endpoints, the secrets that sign, and the deliveries."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import Query, Request, Response

from app.auth.callers import WebhooksCaller
from app.errors import TooManyEndpoints
from app.models import DeliveryAttempt
from app.web.openapi import response_headers
from app.web.pagination import PAGE, Cursor, Limit, decode_cursor, decode_time_cursor, next_page
from app.web.problems import problem_responses
from app.web.provided import provided
from app.web.routing import Router
from app.webhooks.schemas import (
    AttemptPage,
    AttemptRead,
    DeliveryFilters,
    DeliveryId,
    DeliveryPage,
    DeliveryRead,
    EndpointCreate,
    EndpointId,
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
# Secrets are never cached.
UNCACHED: dict[int | str, dict[str, Any]] = {200: {"headers": response_headers("Cache-Control")}}
WebhooksDep = Annotated[WebhookService, provided(WebhookService)]


@router.post(
    "/webhook-endpoints",
    status_code=201,
    operation_id="createWebhookEndpoint",
    summary="Create a webhook endpoint",
    responses={201: {"headers": response_headers("Location")}, **problem_responses(TooManyEndpoints)},
)
async def create_endpoint(
    response: Response, webhooks: WebhooksDep, caller: WebhooksCaller, body: EndpointCreate
) -> EndpointRead:
    """Create a webhook endpoint that receives your tasks' events; at most 100 for each key."""
    endpoint = await webhooks.create_endpoint(caller, body)
    response.headers["Location"] = f"/v1/webhook-endpoints/{endpoint.id}"
    return read_endpoint(endpoint)


@router.get("/webhook-endpoints", operation_id="listWebhookEndpoints", summary="List webhook endpoints", responses=PAGE)
async def list_endpoints(
    request: Request,
    response: Response,
    webhooks: WebhooksDep,
    caller: WebhooksCaller,
    limit: Limit = 50,
    cursor: Cursor = None,
) -> EndpointPage:
    """List your webhook endpoints, oldest first."""
    endpoints = await webhooks.list_endpoints(caller, decode_time_cursor(request, cursor), limit + 1)
    page, following = next_page(
        request, response, endpoints, limit, lambda endpoint: (endpoint.created_at.isoformat(), endpoint.id)
    )
    return EndpointPage(items=[read_endpoint(endpoint) for endpoint in page], next_cursor=following)


@router.get("/webhook-endpoints/{endpoint_id}", operation_id="getWebhookEndpoint", summary="Get a webhook endpoint")
async def get_endpoint(webhooks: WebhooksDep, caller: WebhooksCaller, endpoint_id: EndpointId) -> EndpointRead:
    """Get one webhook endpoint, with its state and since when it fails."""
    return read_endpoint(await webhooks.get_endpoint(caller, endpoint_id))


@router.patch(
    "/webhook-endpoints/{endpoint_id}", operation_id="changeWebhookEndpoint", summary="Change a webhook endpoint"
)
async def update_endpoint(
    webhooks: WebhooksDep, caller: WebhooksCaller, endpoint_id: EndpointId, body: EndpointUpdate
) -> EndpointRead:
    """
    Change some fields of a webhook endpoint.

    Disabling gives up its pending deliveries, in the background if there are many. Enabling resets
    its record of failures; `recover` then resends what was missed. Undelivered deliveries go to a
    new `url` too.
    """
    return read_endpoint(await webhooks.update_endpoint(caller, endpoint_id, body))


@router.delete(
    "/webhook-endpoints/{endpoint_id}",
    status_code=204,
    operation_id="deleteWebhookEndpoint",
    summary="Delete a webhook endpoint",
    response_description="The endpoint is deleted.",
)
async def delete_endpoint(webhooks: WebhooksDep, caller: WebhooksCaller, endpoint_id: EndpointId) -> None:
    """Delete a webhook endpoint with its deliveries."""
    await webhooks.delete_endpoint(caller, endpoint_id)


@router.get(
    "/webhook-endpoints/{endpoint_id}/secret",
    operation_id="getWebhookEndpointSecret",
    summary="Get an endpoint's secret",
    responses=UNCACHED,
)
async def get_endpoint_secret(
    response: Response, webhooks: WebhooksDep, caller: WebhooksCaller, endpoint_id: EndpointId
) -> Secret:
    """Get the secret that signs webhooks to this endpoint."""
    return _uncached(response, await webhooks.secret(caller, endpoint_id))


@router.post(
    "/webhook-endpoints/{endpoint_id}/rotate-secret",
    operation_id="rotateWebhookEndpointSecret",
    summary="Rotate an endpoint's secret",
    responses=UNCACHED,
)
async def rotate_endpoint_secret(
    response: Response, webhooks: WebhooksDep, caller: WebhooksCaller, endpoint_id: EndpointId
) -> Secret:
    """Replace the secret that signs webhooks to this endpoint; for 24 hours the old one signs too."""
    return _uncached(response, await webhooks.rotate_secret(caller, endpoint_id))


@router.post(
    "/webhook-endpoints/{endpoint_id}/test",
    status_code=202,
    operation_id="testWebhookEndpoint",
    summary="Send a test webhook",
)
async def send_test(webhooks: WebhooksDep, caller: WebhooksCaller, endpoint_id: EndpointId) -> DeliveryRead:
    """Send a `webhook.test` event to this endpoint, even if its `event_types` leave it out."""
    return read_delivery(await webhooks.send_test(caller, endpoint_id))


@router.post(
    "/webhook-endpoints/{endpoint_id}/recover",
    status_code=202,
    operation_id="recoverWebhookEndpoint",
    summary="Recover missed deliveries",
)
async def recover_endpoint(
    webhooks: WebhooksDep, caller: WebhooksCaller, endpoint_id: EndpointId, body: Recovery
) -> Recovered:
    """
    Attempt every undelivered delivery to this endpoint from a time range again, starting now.

    If there are many, they become due in the background.
    """
    return Recovered(deliveries=await webhooks.recover(caller, endpoint_id, body))


@router.get("/webhook-secret", operation_id="getWebhookSecret", summary="Get the default secret", responses=UNCACHED)
async def get_default_secret(response: Response, webhooks: WebhooksDep, caller: WebhooksCaller) -> Secret:
    """Get the secret that signs webhooks to the `webhook_url` of your tasks."""
    return _uncached(response, await webhooks.default_secret(caller))


@router.post(
    "/webhook-secret/rotate",
    operation_id="rotateWebhookSecret",
    summary="Rotate the default secret",
    responses=UNCACHED,
)
async def rotate_default_secret(response: Response, webhooks: WebhooksDep, caller: WebhooksCaller) -> Secret:
    """Replace the secret that signs webhooks to the `webhook_url` of your tasks; for 24 hours the old one signs too."""
    return _uncached(response, await webhooks.rotate_default_secret(caller))


@router.get("/deliveries", operation_id="listDeliveries", summary="List deliveries", responses=PAGE)
async def list_deliveries(
    request: Request,
    response: Response,
    webhooks: WebhooksDep,
    caller: WebhooksCaller,
    filters: Annotated[DeliveryFilters, Query()],
) -> DeliveryPage:
    """List your deliveries, newest first."""
    wanted = filters.model_dump(exclude={"limit", "cursor"}, exclude_none=True)
    position = decode_cursor(request, filters.cursor, 1)
    found = await webhooks.list_deliveries(caller, wanted, position[0] if position else None, filters.limit + 1)
    page, following = next_page(request, response, found, filters.limit, lambda delivery: (delivery.id,))
    return DeliveryPage(items=[read_delivery(delivery) for delivery in page], next_cursor=following)


@router.get(
    "/deliveries/{delivery_id}/attempts",
    operation_id="listDeliveryAttempts",
    summary="List a delivery's attempts",
    responses=PAGE,
)
async def list_attempts(
    request: Request,
    response: Response,
    webhooks: WebhooksDep,
    caller: WebhooksCaller,
    delivery_id: DeliveryId,
    limit: Limit = 50,
    cursor: Cursor = None,
) -> AttemptPage:
    """List the attempts of a delivery with their results, oldest first."""
    after = decode_time_cursor(request, cursor)
    found = await webhooks.list_attempts(caller, delivery_id, after, limit + 1)
    page, following = next_page(request, response, found, limit, _place)
    return AttemptPage(items=[AttemptRead.model_validate(attempt) for attempt in page], next_cursor=following)


@router.post(
    "/deliveries/{delivery_id}/resend", status_code=202, operation_id="resendDelivery", summary="Resend a delivery"
)
async def resend_delivery(webhooks: WebhooksDep, caller: WebhooksCaller, delivery_id: DeliveryId) -> DeliveryRead:
    """Attempt a delivery again now, whatever its status, with the same `webhook-id` and the same bytes."""
    return read_delivery(await webhooks.resend(caller, delivery_id))


def _uncached(response: Response, secret: str) -> Secret:
    response.headers["Cache-Control"] = "no-store"
    return Secret(secret=secret)


def _place(attempt: DeliveryAttempt) -> tuple[str, str]:
    return attempt.attempted_at.isoformat(), attempt.id
