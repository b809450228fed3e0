"""Queries on webhook endpoints and deliveries."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, case, exists, func, or_, orm, select, update
from sqlalchemy.orm import aliased

from app.database.claims import count_overdue
from app.database.engine import Session
from app.enums import DeliveryStatus, DisabledBy
from app.models import ApiKey, Delivery, DeliveryAttempt, WebhookEndpoint


def enabled_endpoints(session: orm.Session, api_key_ids: Collection[str]) -> Sequence[WebhookEndpoint]:
    """The enabled endpoints of these callers, locked against deletion until the transaction ends."""
    enabled = WebhookEndpoint.api_key_id.in_(api_key_ids), WebhookEndpoint.disabled_at.is_(None)
    # Without the lock, an endpoint deleted in between would fail the insert of its delivery, and with it the
    # transition of the task.
    return session.scalars(select(WebhookEndpoint).where(*enabled).with_for_update(read=True, key_share=True)).all()


async def lock_endpoint(session: Session, endpoint_id: str) -> WebhookEndpoint | None:
    """The endpoint with this id, locked against other writers; deliveries can still be inserted for it."""
    found = select(WebhookEndpoint).where(WebhookEndpoint.id == endpoint_id)
    locked = found.with_for_update(key_share=True).execution_options(populate_existing=True)
    endpoint: WebhookEndpoint | None = await session.scalar(locked)
    return endpoint


async def list_endpoints(
    session: Session, where: Sequence[ColumnElement[bool]], after: str, limit: int
) -> Sequence[WebhookEndpoint]:
    """Up to `limit` matching endpoints after this id, oldest first."""
    query = select(WebhookEndpoint).where(*where, WebhookEndpoint.id > after).order_by(WebhookEndpoint.id)
    return (await session.scalars(query.limit(limit))).all()


async def list_deliveries(
    session: Session, where: Sequence[ColumnElement[bool]], before: str | None, limit: int
) -> Sequence[Delivery]:
    """Up to `limit` matching deliveries before this id, newest first."""
    query = select(Delivery).where(*where).order_by(Delivery.id.desc()).limit(limit)
    return (await session.scalars(query if before is None else query.where(Delivery.id < before))).all()


async def list_attempts(session: Session, delivery_id: str, after: str, limit: int) -> Sequence[DeliveryAttempt]:
    """Up to `limit` attempts of a delivery after this id, oldest first."""
    query = select(DeliveryAttempt).where(DeliveryAttempt.delivery_id == delivery_id, DeliveryAttempt.id > after)
    return (await session.scalars(query.order_by(DeliveryAttempt.id).limit(limit))).all()


async def owners(session: Session, deliveries: Sequence[Delivery]) -> dict[str, WebhookEndpoint | ApiKey]:
    """The rows whose secrets sign these deliveries, by endpoint id, or by API key id for those without endpoint."""
    endpoint_ids = {delivery.endpoint_id for delivery in deliveries if delivery.endpoint_id}
    key_ids = {delivery.api_key_id for delivery in deliveries if not delivery.endpoint_id}
    found: dict[str, WebhookEndpoint | ApiKey] = {}
    if endpoint_ids:
        endpoints = select(WebhookEndpoint).where(WebhookEndpoint.id.in_(endpoint_ids))
        found |= {endpoint.id: endpoint for endpoint in await session.scalars(endpoints)}
    if key_ids:
        found |= {key.id: key for key in await session.scalars(select(ApiKey).where(ApiKey.id.in_(key_ids)))}
    return found


async def due_lanes(session: Session, now: datetime) -> Sequence[str]:
    """
    The lanes that have a due delivery, without those whose receiver asked for a pause.

    A recursive query that jumps from lane to lane along the index (a loose index scan):
    a lane costs the same with one pending delivery or a hundred thousand.
    """
    waiting = aliased(Delivery)
    lanes = (
        select(func.min(Delivery.lane).label("lane")).where(Delivery.due_at.isnot(None)).cte("lanes", recursive=True)
    )
    following = select(func.min(waiting.lane)).where(waiting.due_at.isnot(None), waiting.lane > lanes.c.lane)
    lanes = lanes.union_all(select(following.scalar_subquery()).where(lanes.c.lane.isnot(None)))
    paused = select(WebhookEndpoint.id).where(WebhookEndpoint.paused_until > now)
    is_due = exists().where(Delivery.lane == lanes.c.lane, Delivery.due_at <= now)
    return (await session.scalars(select(lanes.c.lane).where(is_due, lanes.c.lane.not_in(paused)))).all()


async def count_overdue_deliveries(session: Session, late: datetime) -> int:
    """How many deliveries were due before `late`, without those whose receiver asked for a pause."""
    paused = select(WebhookEndpoint.id).where(WebhookEndpoint.paused_until > late)
    return await count_overdue(session, Delivery, late, Delivery.lane.not_in(paused))


async def redirect_undelivered(session: Session, endpoint_id: str, url: str) -> None:
    """Change the URL of an endpoint's undelivered deliveries."""
    undelivered = Delivery.endpoint_id == endpoint_id, Delivery.status != DeliveryStatus.delivered
    await session.execute(update(Delivery).where(*undelivered).values(url=url))


async def give_up_pending(session: Session, endpoint_id: str) -> None:
    """Give up the pending deliveries of an endpoint, except those with an attempt in flight."""
    pending = Delivery.endpoint_id == endpoint_id, Delivery.due_at.isnot(None), Delivery.fence.is_(None)
    given_up = {"status": DeliveryStatus.given_up, "due_at": None}
    await session.execute(update(Delivery).where(*pending).values(given_up))


async def make_due(session: Session, now: datetime, *where: ColumnElement[bool]) -> int:
    """
    Restart the schedule of these deliveries now; return how many there are.

    A delivery with an attempt in flight keeps its claim: otherwise two attempts would run at once.
    """
    is_in_flight = Delivery.fence.isnot(None) & (Delivery.due_at > now)
    restarted: dict[str, Any] = {
        "status": DeliveryStatus.pending,
        "due_at": case((is_in_flight, Delivery.due_at), else_=now),
        "attempts": 0,
        "delivered_at": None,
    }
    restart = update(Delivery).where(*where).values(restarted).execution_options(synchronize_session=False)
    return len((await session.scalars(restart.returning(Delivery.id))).all())


async def disabled_after_failures(session: Session, limit: int) -> Sequence[str]:
    """The ids of up to `limit` endpoints that were disabled because they failed, the latest first."""
    failed = or_(*(WebhookEndpoint.disabled_by == by for by in (DisabledBy.gone, DisabledBy.failing)))
    query = select(WebhookEndpoint.id).where(failed).order_by(WebhookEndpoint.disabled_at.desc()).limit(limit)
    return (await session.scalars(query)).all()
