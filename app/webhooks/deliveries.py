"""What became of telling callers, and telling them again."""

from __future__ import annotations

from typing import Annotated

from fastapi import Query, Request, Response
from pydantic import BaseModel

from app.auth.api_keys import CallerDep
from app.enums import DeliveryStatus
from app.models import Delivery
from app.web import Text
from app.web.pagination import Cursor, Limit, decode_cursor, next_page
from app.web.provided import DatabaseDep, ReaderDep
from app.web.routing import Router
from app.webhooks import repository
from app.webhooks.routes import WebhooksDep
from app.webhooks.schemas import AttemptPage, AttemptRead, DeliveryPage, DeliveryRead, read_delivery

router = Router(prefix="/v1/deliveries", tags=["webhooks"])


class DeliveryFilters(BaseModel):
    """Which deliveries to list, and where to go on."""

    status: DeliveryStatus | None = None
    endpoint_id: Text | None = None
    task_id: Text | None = None
    limit: Limit = 50
    cursor: Cursor = None


@router.get("", operation_id="listDeliveries")
async def list_deliveries(
    request: Request,
    response: Response,
    session: ReaderDep,
    caller: CallerDep,
    filters: Annotated[DeliveryFilters, Query()],
) -> DeliveryPage:
    """Your deliveries, newest first."""
    asked = filters.model_dump(exclude={"limit", "cursor"}, exclude_none=True)
    if not caller.is_admin:
        asked["api_key_id"] = caller.api_key_id
    where = [getattr(Delivery, name) == value for name, value in asked.items()]
    position = decode_cursor(filters.cursor, 1)
    found = await repository.list_deliveries(session, where, position[0] if position else None, filters.limit + 1)
    page, following = next_page(request, response, found, filters.limit, lambda delivery: (delivery.id,))
    return DeliveryPage(items=[read_delivery(delivery) for delivery in page], next_cursor=following)


@router.get("/{delivery_id}/attempts", operation_id="listDeliveryAttempts")
async def list_attempts(
    request: Request,
    response: Response,
    session: ReaderDep,
    caller: CallerDep,
    delivery_id: str,
    limit: Limit = 50,
    cursor: Cursor = None,
) -> AttemptPage:
    """Every try at a delivery, oldest first."""
    delivery = caller.require_readable(await session.get(Delivery, delivery_id))
    position = decode_cursor(cursor, 1)
    found = await repository.list_attempts(session, delivery.id, position[0] if position else "", limit + 1)
    page, following = next_page(request, response, found, limit, lambda attempt: (attempt.id,))
    return AttemptPage(items=[AttemptRead.model_validate(attempt) for attempt in page], next_cursor=following)


@router.post("/{delivery_id}/resend", status_code=202, operation_id="resendDelivery")
async def resend(database: DatabaseDep, webhooks: WebhooksDep, caller: CallerDep, delivery_id: str) -> DeliveryRead:
    """Make a delivery due now, whatever became of it: the same `webhook-id`, the same bytes."""
    async with database.transaction() as (session, now):
        delivery = caller.require_owned(await session.get(Delivery, delivery_id))
        await webhooks.resend(session, delivery, now)
    return read_delivery(delivery)
