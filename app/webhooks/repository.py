"""Queries on webhook endpoints and deliveries."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Select,
    case,
    delete,
    exists,
    func,
    or_,
    orm,
    select,
    tuple_,
    union_all,
    update,
)
from sqlalchemy.orm import InstrumentedAttribute
from sqlalchemy.orm.attributes import set_committed_value

from app.database.base import id_floor
from app.database.engine import Session
from app.enums import DeliveryStatus, DisabledBy, Sweep
from app.models import ApiKey, Delivery, DeliveryAttempt, WebhookEndpoint

# The most deliveries that one statement changes, so that none holds its locks for long.
MAX_BATCH = 1000
# The same where they are erased with their attempts.
MAX_ERASED = 200
# Up to this number, deliveries to be recovered are counted.
MAX_COUNT = 10_000
# The same for those that were given up.
MAX_GIVEN_UP = 100
IS_KEPT = WebhookEndpoint.deleted_at.is_(None)
# Deliveries of a deleted endpoint are erased in batches, and are gone for callers at once.
_IS_SHOWN = Delivery.endpoint_id.is_(None) | Delivery.endpoint_id.not_in(select(WebhookEndpoint.id).where(~IS_KEPT))


def has_endpoints(api_key_id: ColumnElement[str] | InstrumentedAttribute[str]) -> ColumnElement[bool]:
    """Whether this caller has an enabled endpoint, as a part of a query."""
    return exists().where(WebhookEndpoint.api_key_id == api_key_id, WebhookEndpoint.disabled_at.is_(None), IS_KEPT)


def enabled_endpoints(session: orm.Session, api_key_ids: Collection[str]) -> Sequence[WebhookEndpoint]:
    """The enabled endpoints of these callers, locked against deletion until the transaction ends."""
    enabled = WebhookEndpoint.api_key_id.in_(api_key_ids), WebhookEndpoint.disabled_at.is_(None), IS_KEPT
    # Without the lock, an endpoint deleted in between would fail the insert of its delivery, and with it the
    # transition of the task.
    return session.scalars(select(WebhookEndpoint).where(*enabled).with_for_update(read=True, key_share=True)).all()


async def find_endpoint(session: Session, endpoint_id: str) -> WebhookEndpoint | None:
    """The endpoint with this id, unless it is deleted."""
    return await session.scalar(select(WebhookEndpoint).where(WebhookEndpoint.id == endpoint_id, IS_KEPT))


async def lock_endpoint(session: Session, endpoint_id: str) -> WebhookEndpoint | None:
    """The same, locked against other writers; deliveries can still be inserted for it."""
    return await _lock(session, endpoint_id, IS_KEPT)


async def lock_swept(session: Session, endpoint_id: str) -> WebhookEndpoint | None:
    """The endpoint with this id, locked, if its sweep is not complete; it may be deleted."""
    return await _lock(session, endpoint_id, WebhookEndpoint.sweep.isnot(None))


async def _lock(session: Session, endpoint_id: str, *conditions: ColumnElement[bool]) -> WebhookEndpoint | None:
    found = select(WebhookEndpoint).where(WebhookEndpoint.id == endpoint_id, *conditions)
    locked = found.with_for_update(key_share=True).execution_options(populate_existing=True)
    endpoint: WebhookEndpoint | None = await session.scalar(locked)
    return endpoint


async def list_endpoints(
    session: Session, where: Sequence[ColumnElement[bool]], after: tuple[datetime, str] | None, limit: int
) -> Sequence[WebhookEndpoint]:
    """Up to `limit` matching endpoints after this position, oldest first by the clock that all replicas share."""
    query = select(WebhookEndpoint).where(*where, IS_KEPT)
    if after is not None:
        query = query.where(tuple_(WebhookEndpoint.created_at, WebhookEndpoint.id) > after)
    return (await session.scalars(query.order_by(WebhookEndpoint.created_at, WebhookEndpoint.id).limit(limit))).all()


async def count_endpoints(session: Session, api_key_id: str) -> int:
    """How many endpoints a caller has. Locks the caller's key, so that two requests do not count at once."""
    await session.get_one(ApiKey, api_key_id, with_for_update={"key_share": True})
    mine = select(func.count()).where(WebhookEndpoint.api_key_id == api_key_id, IS_KEPT)
    return await session.scalar(mine) or 0


async def list_deliveries(
    session: Session, where: Sequence[ColumnElement[bool]], before: str | None, limit: int
) -> Sequence[Delivery]:
    """Up to `limit` matching deliveries before this id, newest first."""
    query = select(Delivery).where(*where, _IS_SHOWN).order_by(Delivery.id.desc()).limit(limit)
    return (await session.scalars(query if before is None else query.where(Delivery.id < before))).all()


async def find_delivery(session: Session, delivery_id: str) -> Delivery | None:
    """The delivery with this id, unless its endpoint is deleted."""
    return await session.scalar(select(Delivery).where(Delivery.id == delivery_id, _IS_SHOWN))


async def list_attempts(
    session: Session, delivery_id: str, after: tuple[datetime, str] | None, limit: int
) -> Sequence[DeliveryAttempt]:
    """Up to `limit` attempts of a delivery after this position, oldest first by the clock that all replicas share."""
    query = select(DeliveryAttempt).where(DeliveryAttempt.delivery_id == delivery_id)
    if after is not None:
        query = query.where(tuple_(DeliveryAttempt.attempted_at, DeliveryAttempt.id) > after)
    return (await session.scalars(query.order_by(DeliveryAttempt.attempted_at, DeliveryAttempt.id).limit(limit))).all()


async def latest_attempts(
    session: Session, delivery_ids: Sequence[str], each: int
) -> Mapping[str, Sequence[DeliveryAttempt]]:
    """The latest attempts of these deliveries, up to `each` of each, oldest first, by the delivery's id."""
    latest = (
        select(DeliveryAttempt.id)
        .where(DeliveryAttempt.delivery_id == delivery_id)
        .order_by(DeliveryAttempt.attempted_at.desc(), DeliveryAttempt.id.desc())
        .limit(each)
        .subquery()
        for delivery_id in delivery_ids
    )
    found: dict[str, list[DeliveryAttempt]] = {delivery_id: [] for delivery_id in delivery_ids}
    if found:
        ids = (await session.scalars(union_all(*(select(one.c.id) for one in latest)))).all()
        query = select(DeliveryAttempt).where(DeliveryAttempt.id.in_(ids))
        for attempt in await session.scalars(query.order_by(DeliveryAttempt.attempted_at, DeliveryAttempt.id)):
            found[attempt.delivery_id].append(attempt)
    return found


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


async def blocked_endpoints(session: Session, now: datetime) -> set[str]:
    """The ids of the endpoints that asked for a pause, whose rate is used up, or whose deliveries are swept away."""
    return set(await session.scalars(blocked(now)))


def blocked(now: datetime | ColumnElement[datetime]) -> Select[str]:
    """Those ids, as a query."""
    is_ending = WebhookEndpoint.sweep.in_([Sweep.give_up, Sweep.erase])
    waits = (WebhookEndpoint.paused_until > now) | (WebhookEndpoint.full_until > now)
    return select(WebhookEndpoint.id).where(waits | is_ending)


async def rated_endpoints(session: Session) -> set[str]:
    """The ids of the endpoints that have a rate."""
    return set(await session.scalars(select(WebhookEndpoint.id).where(WebhookEndpoint.rate.isnot(None))))


async def count_overdue_deliveries(session: Session, now: datetime, late: datetime, lease: timedelta) -> int:
    """
    How many deliveries were due before `late`, up to MAX_BATCH.

    Without those that claims leave alone, and those that wait because attempts at their host are under way.
    """
    is_under_way = ~Delivery.is_ready, Delivery.due_at.between(now, now + lease), Delivery.fence.isnot(None)
    at_work = (await session.execute(select(Delivery.api_key_id, Delivery.host).where(*is_under_way).distinct())).all()
    waits = tuple_(Delivery.api_key_id, Delivery.host).in_([tuple(row) for row in at_work])
    count = 0
    for is_ready in (Delivery.is_ready, ~Delivery.is_ready):
        overdue = select(Delivery.id).where(
            is_ready, Delivery.due_at < late, Delivery.lane.not_in(blocked(late)), ~waits
        )
        bounded = overdue.limit(MAX_BATCH - count).subquery()
        count += await session.scalar(select(func.count()).select_from(bounded)) or 0
    return count


async def show_current_urls(session: Session, deliveries: Sequence[Delivery]) -> None:
    """Set the URL of each undelivered delivery, without storing it, to where its endpoint is now."""
    undelivered = [delivery for delivery in deliveries if delivery.endpoint_id and delivery.delivered_at is None]
    current = await owners(session, undelivered)
    for delivery in undelivered:
        endpoint = current.get(str(delivery.endpoint_id))
        if isinstance(endpoint, WebhookEndpoint):
            set_committed_value(delivery, "url", endpoint.url)


async def list_undelivered(
    session: Session, endpoint_id: str, since: tuple[datetime, str], until: datetime
) -> Sequence[tuple[datetime, str]]:
    """The creation times and ids of the next MAX_BATCH undelivered deliveries of an endpoint, oldest first."""
    position = tuple_(Delivery.created_at, Delivery.id)
    query = select(Delivery.created_at, Delivery.id).where(
        Delivery.endpoint_id == endpoint_id,
        Delivery.delivered_at.is_(None),
        position > since,
        Delivery.created_at <= until,
    )
    rows = await session.execute(query.order_by(Delivery.created_at, Delivery.id).limit(MAX_BATCH))
    return [(created_at, delivery_id) for created_at, delivery_id in rows]


async def count_undelivered(session: Session, endpoint_id: str, since: datetime, until: datetime) -> int:
    """How many deliveries of an endpoint, created in this time, are not delivered; counts up to MAX_COUNT."""
    undelivered = select(Delivery.id).where(
        Delivery.endpoint_id == endpoint_id,
        Delivery.delivered_at.is_(None),
        Delivery.created_at.between(since, until),
    )
    return await session.scalar(select(func.count()).select_from(undelivered.limit(MAX_COUNT).subquery())) or 0


async def give_up(session: Session, ids: Sequence[str]) -> None:
    """Give up those of these deliveries that are pending, except those with an attempt in flight."""
    pending = Delivery.id.in_(ids), Delivery.due_at.isnot(None), Delivery.fence.is_(None)
    given_up = {"status": DeliveryStatus.given_up, "due_at": None, "is_ready": False}
    await session.execute(
        update(Delivery).where(*pending).values(given_up).execution_options(synchronize_session=False)
    )


async def erase_deliveries(session: Session, endpoint_id: str) -> bool:
    """Delete up to MAX_ERASED deliveries of an endpoint, with their attempts; return whether there may be more."""
    some = select(Delivery.id).where(Delivery.endpoint_id == endpoint_id).order_by(Delivery.id).limit(MAX_ERASED)
    erase = delete(Delivery).where(Delivery.id.in_(some)).returning(Delivery.id)
    erased = await session.scalars(erase.execution_options(synchronize_session=False))
    return len(erased.all()) == MAX_ERASED


async def list_swept(session: Session) -> Sequence[str]:
    """The ids of some endpoints whose sweep is not complete."""
    return (await session.scalars(select(WebhookEndpoint.id).where(WebhookEndpoint.sweep.isnot(None)).limit(100))).all()


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
    query = select(WebhookEndpoint.id).where(failed, IS_KEPT).order_by(WebhookEndpoint.disabled_at.desc()).limit(limit)
    return (await session.scalars(query)).all()


async def failing_endpoints(session: Session, limit: int) -> Sequence[str]:
    """The ids of up to `limit` enabled endpoints whose last attempt failed, those first that fail longest."""
    failing = WebhookEndpoint.failing_since.isnot(None), WebhookEndpoint.disabled_at.is_(None), IS_KEPT
    query = select(WebhookEndpoint.id).where(*failing).order_by(WebhookEndpoint.failing_since).limit(limit)
    return (await session.scalars(query)).all()


async def count_given_up(session: Session, since: datetime) -> int:
    """How many deliveries that were created since then are given up; counts up to MAX_GIVEN_UP."""
    # Ids begin with the time, and the index by which they are found with the caller.
    first = id_floor(since, timedelta())
    given_up = select(Delivery.id).where(
        Delivery.api_key_id.in_(select(ApiKey.id)), Delivery.status == DeliveryStatus.given_up, Delivery.id >= first
    )
    return await session.scalar(select(func.count()).select_from(given_up.limit(MAX_GIVEN_UP).subquery())) or 0
