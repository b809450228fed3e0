"""Due rows: claimed by lease, settled by fence, whatever kind of row they are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, TypeVar
from uuid import uuid4

from sqlalchemy import ColumnElement, func, inspect, select, update

from app.database.base import Base, Due
from app.database.engine import Session

Row = TypeVar("Row", bound=Base)


@dataclass(frozen=True, slots=True)
class Claim:
    """How many due rows to take, when it is, and how long they are ours."""

    now: datetime
    lease: timedelta
    limit: int


async def claim_due(
    session: Session, kind: type[Row], claim: Claim, *where: ColumnElement[bool], **values: Any
) -> Sequence[Row]:
    """
    Take rows that are due, oldest first, and set `values` on them; one statement.

    A worker that dies needs no clean-up: its rows fall due again when the lease
    ends. On PostgreSQL the claimers pass by each other's rows; on SQLite the
    writer's transaction already keeps them apart.
    """
    assert issubclass(kind, Due)  # noqa: S101 - tells the type checker what every caller passes
    key = inspect(kind).primary_key[0]
    due = (
        select(key.label("key"))
        .where(kind.due_at <= claim.now, *where)
        .order_by(kind.due_at)
        .limit(claim.limit)
        .with_for_update(skip_locked=True)
        .cte("due")
        # Without it the planner may run the sub-select again for each row, and lock more than the limit.
        .prefix_with("MATERIALIZED", dialect="postgresql")
    )
    claimed = (
        update(kind)
        .where(key.in_(select(due.c.key)))
        .values(due_at=claim.now + claim.lease, attempts=kind.attempts + 1, fence=uuid4().hex, **values)
        .returning(kind)
        .execution_options(synchronize_session=False, populate_existing=True)
    )
    return (await session.scalars(claimed)).all()


async def lock_claimed(session: Session, kind: type[Row], key: str, fence: str | None) -> Row | None:
    """Lock a claimed row again to settle it, or return None: someone took over, and the result must be dropped."""
    assert issubclass(kind, Due)  # noqa: S101 - as above
    mine = select(kind).where(inspect(kind).primary_key[0] == key, kind.fence == fence).with_for_update()
    row: Row | None = await session.scalar(mine)
    return row


async def extend_lease(session: Session, kind: type[Row], key: str, fence: str | None, until: datetime) -> None:
    """Keep a claimed row for longer, if it is still ours."""
    assert issubclass(kind, Due)  # noqa: S101 - as above
    mine = update(kind).where(inspect(kind).primary_key[0] == key, kind.fence == fence)
    await session.execute(mine.values(due_at=until).execution_options(synchronize_session=False))


async def count_overdue(session: Session, kind: type[Row], late: datetime, *where: ColumnElement[bool]) -> int:
    """How many rows of this kind were due before `late` and are not claimed yet."""
    assert issubclass(kind, Due)  # noqa: S101 - as above
    return await session.scalar(select(func.count()).select_from(kind).where(kind.due_at < late, *where)) or 0
