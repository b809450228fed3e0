"""Queries on webhook endpoints and deliveries."""

from __future__ import annotations

import random
from collections.abc import Collection, Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, Select, case, func, literal, or_, orm, select, update
from sqlalchemy.orm import InstrumentedAttribute

from app.database.engine import Session
from app.enums import DeliveryStatus, DisabledBy
from app.models import ApiKey, Delivery, DeliveryAttempt, WebhookEndpoint

# The most deliveries that one statement changes, so that none holds its locks for long.
MAX_BATCH = 1000
# The most keys, hosts or lanes that a claim looks at; above the endpoints of a key and all that may be under way.
MAX_WALK = 200


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


async def line_up(session: Session, now: datetime) -> int:
    """
    Put up to MAX_BATCH deliveries whose time has come into their lanes; return how many they were.

    New deliveries are put there at once. So claims look neither at lanes without due deliveries nor
    at a receiver's backlog, however long it is.
    """
    due = select(Delivery.id).where(Delivery.due_at <= now, ~Delivery.is_ready).order_by(Delivery.due_at)
    locked = due.limit(MAX_BATCH).with_for_update(skip_locked=True)
    ready = update(Delivery).where(Delivery.id.in_(locked)).values(is_ready=True).returning(Delivery.id)
    return len((await session.scalars(ready.execution_options(synchronize_session=False))).all())


async def ready_values(
    session: Session, column: InstrumentedAttribute[str], rng: random.Random, *where: ColumnElement[bool]
) -> Sequence[str]:
    """
    Up to MAX_WALK values of a column among the ready deliveries that match; at random if there are more.

    `column` and the columns of `where` are a prefix of the index. A recursive query jumps along it from
    value to value (a loose index scan): each costs the same with one delivery or a hundred thousand.
    """
    found = await _walk(session, column, "", *where)
    if len(found) < MAX_WALK:
        return found
    found = await _walk(session, column, f"{rng.getrandbits(128):032x}", *where)
    return found if len(found) == MAX_WALK else [*found, *await _walk(session, column, "", *where)][:MAX_WALK]


async def _walk(
    session: Session, column: InstrumentedAttribute[str], after: str, *where: ColumnElement[bool]
) -> list[str]:
    def least(after: Any) -> Select[str]:
        return select(func.min(column)).where(Delivery.is_ready, *where, column > after)

    first = select(least(after).scalar_subquery().label("value"), literal(1).label("number"))
    walk = first.cte("walk", recursive=True)
    is_last = walk.c.value.is_(None) | (walk.c.number == MAX_WALK)
    following = select(least(walk.c.value).correlate(walk).scalar_subquery(), walk.c.number + 1).where(~is_last)
    walk = walk.union_all(following)
    return list(await session.scalars(select(walk.c.value).where(walk.c.value.isnot(None))))


async def paused_endpoints(session: Session, now: datetime) -> set[str]:
    """The ids of the endpoints that asked for a pause."""
    return set(await session.scalars(select(WebhookEndpoint.id).where(WebhookEndpoint.paused_until > now)))


async def count_overdue_deliveries(session: Session, late: datetime) -> int:
    """How many deliveries were due before `late`, up to MAX_BATCH, without those whose receiver asked for a pause."""
    paused = select(WebhookEndpoint.id).where(WebhookEndpoint.paused_until > late)
    count = 0
    for is_ready in (Delivery.is_ready, ~Delivery.is_ready):
        overdue = select(Delivery.id).where(is_ready, Delivery.due_at < late, Delivery.lane.not_in(paused))
        bounded = overdue.limit(MAX_BATCH - count).subquery()
        count += await session.scalar(select(func.count()).select_from(bounded)) or 0
    return count


async def redirect_undelivered(session: Session, endpoint_id: str, url: str) -> None:
    """Change the URL of an endpoint's undelivered deliveries."""
    undelivered = Delivery.endpoint_id == endpoint_id, Delivery.status != DeliveryStatus.delivered
    await session.execute(update(Delivery).where(*undelivered).values(url=url))


async def give_up_pending(session: Session, endpoint_id: str) -> None:
    """Give up the pending deliveries of an endpoint, except those with an attempt in flight."""
    pending = Delivery.endpoint_id == endpoint_id, Delivery.due_at.isnot(None), Delivery.fence.is_(None)
    given_up = {"status": DeliveryStatus.given_up, "due_at": None, "is_ready": False}
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
        "is_ready": case((is_in_flight, False), else_=True),
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
