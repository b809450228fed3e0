"""Due deliveries: which are next, and what became of them."""

from __future__ import annotations

import random
from collections.abc import Collection, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from functools import cache
from typing import Any, NamedTuple, TypeVar, cast
from uuid import uuid4

from sqlalchemy import (
    ColumnElement,
    Executable,
    ScalarSelect,
    Select,
    Table,
    bindparam,
    exists,
    func,
    insert,
    inspect,
    literal,
    select,
    tuple_,
    union_all,
    update,
)
from sqlalchemy.orm import InstrumentedAttribute, aliased

from app.database.claims import DatabaseNow, is_due
from app.database.engine import Session
from app.models import Delivery, DeliveryAttempt, Task, WebhookEndpoint
from app.webhooks import repository
from app.webhooks.repository import IS_KEPT
from app.webhooks.retry import Lane

# The most keys, hosts or lanes that a claim looks at; above the endpoints of a key and all that may be under way.
MAX_WALK = 200
_DELIVERIES = cast("Table", inspect(Delivery).local_table)
_ATTEMPTS = cast("Table", inspect(DeliveryAttempt).local_table)
_SETTLE = update(_DELIVERIES).where(_DELIVERIES.c.id == bindparam("settled_id")).values(fence=None)
_NEVER = datetime(9999, 12, 31, tzinfo=UTC)
Found = TypeVar("Found")


class Ready(NamedTuple):
    """A lane with ready deliveries: whether it gets none for now, and whether its endpoint has a rate."""

    lane: Lane
    is_blocked: bool
    is_rated: bool


def _walk_of_lanes(now: ColumnElement[datetime]) -> Select[int, str, str, str, bool, bool]:
    here, there = aliased(Delivery), aliased(Delivery)
    columns = there.api_key_id, there.host, there.lane

    def first(*where: ColumnElement[bool]) -> ScalarSelect[str]:
        ready = select(there.id).where(there.is_ready, *where).order_by(*columns).limit(1)
        return ready.correlate(here).scalar_subquery()

    # The condition lets SQLite search the index, whose first entry it would else find by a scan.
    walk = select(first(there.api_key_id > "").label("id"), literal(1).label("number")).cte("walk", recursive=True)
    # SQLite searches an index only for values that are no columns, and from the first equal entry on: without the due
    # time it would read each lane's backlog.
    behind = (
        *(column.concat("") for column in (here.api_key_id, here.host, here.lane)),
        literal(_NEVER, Delivery.due_at.type),
    )
    is_further = tuple_(*columns, there.due_at) > tuple_(*behind)
    following = select(first(is_further), walk.c.number + 1).join(here, here.id == walk.c.id)
    walk = walk.union_all(following.where(walk.c.number < MAX_WALK))
    is_blocked = here.lane.in_(repository.blocked(now)).label("is_blocked")
    is_rated = exists().where(WebhookEndpoint.id == here.lane, WebhookEndpoint.rate.isnot(None))
    found = select(walk.c.number, here.api_key_id, here.host, here.lane, is_blocked, is_rated)
    return found.join(walk, here.id == walk.c.id)


_LANES = _walk_of_lanes(bindparam("now", type_=Delivery.due_at.type))
_FREE = _walk_of_lanes(DatabaseNow()).subquery()
# Whether deliveries are due to receivers that get any for now: those behind a pause or a used-up rate wake nobody. Of
# more lanes than the walk reaches, one may be free.
IS_DUE = exists().where(~_FREE.c.is_blocked | (_FREE.c.number == MAX_WALK)) | is_due(Delivery, ~Delivery.is_ready)


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


async def ready_lanes(session: Session, now: datetime) -> Sequence[Ready] | None:
    """
    The lanes with ready deliveries; None if there are MAX_WALK of them or more.

    A recursive query jumps along the index from lane to lane (a loose index scan): each costs the same with one
    delivery or a hundred thousand.
    """
    found = (await session.execute(_LANES, {"now": now})).all()
    if len(found) >= MAX_WALK:
        return None
    return [Ready(Lane(*lane), is_blocked, is_rated) for _, *lane, is_blocked, is_rated in found]


async def ready_values(
    session: Session, column: InstrumentedAttribute[str], rng: random.Random, *where: ColumnElement[bool]
) -> Sequence[str]:
    """
    Up to MAX_WALK values of a column among the ready deliveries that match; at random if there are more.

    `column` and the columns of `where` are a prefix of the index, along which a recursive query jumps from
    value to value.
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


async def claim_lanes(
    session: Session, shares: Mapping[Lane, int], now: datetime, lease: timedelta
) -> Sequence[tuple[Delivery, str | None, Mapping[str, str] | None]]:
    """
    Claim up to so many deliveries of each lane, those due longest, until `now + lease`: by one statement.

    Each comes with the upstream's id and the trace context of its task, if it has them.
    """
    # Rounded up, so that few statements are compiled and prepared, whatever the number of lanes.
    size = 1 << max(0, len(shares) - 1).bit_length()
    values: dict[str, Any] = {"now": now, "until": now + lease, "new_fence": uuid4().hex}
    nothing = Lane("", "", "")
    for number, (lane, share) in enumerate([*shares.items(), *[(nothing, 0)] * (size - len(shares))]):
        values |= {f"key_{number}": lane.api_key_id, f"host_{number}": lane.host}
        values |= {f"lane_{number}": lane.name, f"share_{number}": share}
    return [tuple(row) for row in await session.execute(_claim_of(size), values)]


@cache
def _claim_of(lanes: int) -> Executable:
    """The statement that claims deliveries of so many lanes. What another claim has locked is left to it."""
    shares = [_share_of(str(number)) for number in range(lanes)]
    # Otherwise the planner may run these again for each row, and lock more than their limits.
    due = union_all(*shares).cte("due").prefix_with("MATERIALIZED", dialect="postgresql")
    return (
        update(Delivery)
        .where(Delivery.id.in_(select(due.c.id)))
        .values(due_at=bindparam("until"), attempts=Delivery.attempts + 1, fence=bindparam("new_fence"), is_ready=False)
        .returning(Delivery, _of_task(Task.upstream_task_id), _of_task(Task.trace_context))
        .execution_options(synchronize_session=False, populate_existing=True)
    )


def _of_task(column: InstrumentedAttribute[Found]) -> ScalarSelect[Found]:
    return select(column).where(Task.id == Delivery.task_id).correlate(Delivery).scalar_subquery()


def _share_of(number: str) -> Select[str]:
    lane = (
        Delivery.api_key_id == bindparam(f"key_{number}"),
        Delivery.host == bindparam(f"host_{number}"),
        Delivery.lane == bindparam(f"lane_{number}"),
        Delivery.is_ready,
        Delivery.due_at <= bindparam("now"),
    )
    first = select(Delivery.id).where(*lane).order_by(Delivery.due_at).limit(bindparam(f"share_{number}"))
    return select(first.with_for_update(skip_locked=True).subquery().c.id)


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
