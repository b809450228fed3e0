"""Due deliveries: which are next, and what became of them."""

from __future__ import annotations

import random
from collections.abc import Collection, Mapping, Sequence
from datetime import datetime
from typing import Any, TypeVar, cast

from sqlalchemy import ColumnElement, Select, Table, bindparam, func, insert, inspect, literal, select, update
from sqlalchemy.orm import InstrumentedAttribute

from app.database.engine import Session
from app.models import Delivery, DeliveryAttempt, WebhookEndpoint
from app.webhooks import repository
from app.webhooks.repository import IS_KEPT

# The most keys, hosts or lanes that a claim looks at; above the endpoints of a key and all that may be under way.
MAX_WALK = 200
_DELIVERIES = cast("Table", inspect(Delivery).local_table)
_ATTEMPTS = cast("Table", inspect(DeliveryAttempt).local_table)
_SETTLE = update(_DELIVERIES).where(_DELIVERIES.c.id == bindparam("settled_id")).values(fence=None)
Found = TypeVar("Found")


async def line_up(session: Session, now: datetime) -> int:
    """
    Put up to MAX_BATCH deliveries whose time has come into their lanes; return how many they were.

    New deliveries are put there at once. So claims look neither at lanes without due deliveries nor
    at a receiver's backlog, however long it is.
    """
    due = select(Delivery.id).where(Delivery.due_at <= now, ~Delivery.is_ready).order_by(Delivery.due_at)
    locked = due.limit(repository.MAX_BATCH).with_for_update(skip_locked=True)
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


async def lock_free_endpoints(session: Session, endpoint_ids: Collection[str]) -> Mapping[str, WebhookEndpoint | None]:
    """Lock these endpoints. None is one that another transaction has locked; one that is deleted is left out."""
    found = select(WebhookEndpoint).where(WebhookEndpoint.id.in_(endpoint_ids), IS_KEPT).order_by(WebhookEndpoint.id)
    locked = found.with_for_update(key_share=True, skip_locked=True).execution_options(populate_existing=True)
    endpoints = {endpoint.id: endpoint for endpoint in await session.scalars(locked)}
    return await _with_locked(session, WebhookEndpoint, endpoints, endpoint_ids, IS_KEPT)


async def lock_free_claims(session: Session, delivery_ids: Collection[str]) -> Mapping[str, Any]:
    """The `id`, `fence`, `attempts` and `attempts_made` of these deliveries, locked like those endpoints."""
    columns = Delivery.id, Delivery.fence, Delivery.attempts, Delivery.attempts_made
    found = select(*columns).where(Delivery.id.in_(delivery_ids)).order_by(Delivery.id)
    rows: Sequence[Any] = (await session.execute(found.with_for_update(skip_locked=True))).all()
    claims = {row.id: row for row in rows}
    return await _with_locked(session, Delivery, claims, delivery_ids)


async def _with_locked(
    session: Session,
    kind: type[Delivery | WebhookEndpoint],
    found: Mapping[str, Found],
    ids: Collection[str],
    *where: ColumnElement[bool],
) -> Mapping[str, Found | None]:
    missing = set(ids) - set(found)
    if not missing:
        return {**found}
    return {**found, **dict.fromkeys(await session.scalars(select(kind.id).where(kind.id.in_(missing), *where)))}


async def store_results(
    session: Session, attempts: Sequence[Mapping[str, Any]], changes: Sequence[Mapping[str, Any]]
) -> None:
    """Insert attempts, and end the claims of locked deliveries: each change has their `settled_id` and new values."""
    if attempts:
        await session.execute(insert(_ATTEMPTS), attempts)
        await session.execute(_SETTLE, changes)
