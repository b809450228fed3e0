"""Where callers want to be told, and what signs it."""

from __future__ import annotations

from typing import Annotated

from fastapi import Request, Response

from app.auth.api_keys import Caller, CallerDep
from app.database.engine import Session
from app.keyring import Keyring
from app.models import ApiKey, WebhookEndpoint
from app.web.pagination import Cursor, Limit, decode_cursor, next_page
from app.web.provided import DatabaseDep, ReaderDep, provided
from app.web.routing import Router
from app.webhooks import repository
from app.webhooks.schemas import (
    DeliveryRead,
    EndpointChange,
    EndpointCreate,
    EndpointPage,
    EndpointRead,
    Recovered,
    Recovery,
    Secret,
    read_delivery,
    read_endpoint,
)
from app.webhooks.service import Webhooks
from app.webhooks.signing import secret_of

router = Router(prefix="/v1", tags=["webhooks"])


WebhooksDep = Annotated[Webhooks, provided(Webhooks)]
KeyringDep = Annotated[Keyring, provided(Keyring)]


@router.post("/webhook-endpoints", status_code=201, operation_id="createWebhookEndpoint")
async def create_endpoint(
    response: Response, database: DatabaseDep, webhooks: WebhooksDep, caller: CallerDep, order: EndpointCreate
) -> EndpointRead:
    """Be told of your tasks' events at this address from now on."""
    async with database.transaction() as (session, now):
        endpoint = webhooks.register(session, caller.api_key_id, order, now)
    response.headers["Location"] = f"/v1/webhook-endpoints/{endpoint.id}"
    return read_endpoint(endpoint)


@router.get("/webhook-endpoints", operation_id="listWebhookEndpoints")
async def list_endpoints(
    request: Request,
    response: Response,
    session: ReaderDep,
    caller: CallerDep,
    limit: Limit = 50,
    cursor: Cursor = None,
) -> EndpointPage:
    """Your endpoints, oldest first."""
    position = decode_cursor(cursor, 1)
    where = [] if caller.is_admin else [WebhookEndpoint.api_key_id == caller.api_key_id]
    endpoints = await repository.list_endpoints(session, where, position[0] if position else "", limit + 1)
    page, following = next_page(request, response, endpoints, limit, lambda endpoint: (endpoint.id,))
    return EndpointPage(items=[read_endpoint(endpoint) for endpoint in page], next_cursor=following)


@router.get("/webhook-endpoints/{endpoint_id}", operation_id="getWebhookEndpoint")
async def get_endpoint(session: ReaderDep, caller: CallerDep, endpoint_id: str) -> EndpointRead:
    """One endpoint as it stands."""
    return read_endpoint(caller.require_readable(await session.get(WebhookEndpoint, endpoint_id)))


@router.patch("/webhook-endpoints/{endpoint_id}", operation_id="changeWebhookEndpoint")
async def change_endpoint(
    database: DatabaseDep, webhooks: WebhooksDep, caller: CallerDep, endpoint_id: str, wish: EndpointChange
) -> EndpointRead:
    """
    Change what you give and nothing else.

    Disabling gives up what still waits; enabling starts afresh, and `recover` brings
    back what was missed. Deliveries that still wait go to a new address too.
    """
    async with database.transaction() as (session, now):
        endpoint = await _lock_own(session, caller, endpoint_id)
        await webhooks.change(session, endpoint, wish, now)
    return read_endpoint(endpoint)


@router.delete("/webhook-endpoints/{endpoint_id}", status_code=204, operation_id="deleteWebhookEndpoint")
async def delete_endpoint(database: DatabaseDep, caller: CallerDep, endpoint_id: str) -> None:
    """Forget an endpoint and its deliveries."""
    async with database.writes.begin() as session:
        await session.delete(await _lock_own(session, caller, endpoint_id))


@router.get("/webhook-endpoints/{endpoint_id}/secret", operation_id="getWebhookEndpointSecret")
async def get_endpoint_secret(
    keyring: KeyringDep, response: Response, session: ReaderDep, caller: CallerDep, endpoint_id: str
) -> Secret:
    """What webhooks to this endpoint are signed with."""
    return _show_secret(keyring, response, caller.require_owned(await session.get(WebhookEndpoint, endpoint_id)))


@router.post("/webhook-endpoints/{endpoint_id}/rotate-secret", operation_id="rotateWebhookEndpointSecret")
async def rotate_endpoint_secret(
    keyring: KeyringDep,
    response: Response,
    database: DatabaseDep,
    webhooks: WebhooksDep,
    caller: CallerDep,
    endpoint_id: str,
) -> Secret:
    """Sign with a new secret; for 24 hours the one before signs too."""
    async with database.transaction() as (session, now):
        endpoint = await _lock_own(session, caller, endpoint_id)
        webhooks.rotate(endpoint, now)
    return _show_secret(keyring, response, endpoint)


@router.post("/webhook-endpoints/{endpoint_id}/test", status_code=202, operation_id="testWebhookEndpoint")
async def send_test(database: DatabaseDep, webhooks: WebhooksDep, caller: CallerDep, endpoint_id: str) -> DeliveryRead:
    """Send a `webhook.test`, whatever the endpoint chose to hear of."""
    async with database.transaction() as (session, now):
        endpoint = await _lock_own(session, caller, endpoint_id)
        delivery = webhooks.test(session, endpoint, now)
    return read_delivery(delivery)


@router.post("/webhook-endpoints/{endpoint_id}/recover", status_code=202, operation_id="recoverWebhookEndpoint")
async def recover_endpoint(
    database: DatabaseDep, webhooks: WebhooksDep, caller: CallerDep, endpoint_id: str, wish: Recovery
) -> Recovered:
    """Make every delivery of a time that did not arrive due now."""
    async with database.transaction() as (session, now):
        endpoint = await _lock_own(session, caller, endpoint_id)
        count = await webhooks.recover(session, endpoint, wish, now)
    return Recovered(deliveries=count)


@router.get("/webhook-secret", operation_id="getWebhookSecret")
async def get_default_secret(keyring: KeyringDep, response: Response, session: ReaderDep, caller: CallerDep) -> Secret:
    """What webhooks to the `webhook_url` of your tasks are signed with."""
    return _show_secret(keyring, response, await session.get_one(ApiKey, caller.api_key_id))


@router.post("/webhook-secret/rotate", operation_id="rotateWebhookSecret")
async def rotate_default_secret(
    keyring: KeyringDep, response: Response, database: DatabaseDep, webhooks: WebhooksDep, caller: CallerDep
) -> Secret:
    """Sign them with a new secret; for 24 hours the one before signs too."""
    async with database.transaction() as (session, now):
        key = await session.get_one(ApiKey, caller.api_key_id, with_for_update={"key_share": True})
        webhooks.rotate(key, now)
    return _show_secret(keyring, response, key)


async def _lock_own(session: Session, caller: Caller, endpoint_id: str) -> WebhookEndpoint:
    return caller.require_owned(await repository.lock_endpoint(session, endpoint_id))


def _show_secret(keyring: Keyring, response: Response, owner: WebhookEndpoint | ApiKey) -> Secret:
    response.headers["Cache-Control"] = "no-store"
    return Secret(secret=secret_of(owner).text(keyring))
