"""Claims of due rows of any table: a lease limits each claim in time, a fence keeps late workers from writing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from types import MappingProxyType
from typing import Any, Generic, TypeVar
from uuid import uuid4

from sqlalchemy import (
    BindParameter,
    ColumnElement,
    Select,
    SelectBase,
    bindparam,
    exists,
    func,
    inspect,
    literal,
    select,
    update,
)
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.orm import raiseload
from sqlalchemy.sql.functions import FunctionElement
from sqlalchemy.sql.selectable import TypedReturnsRows

from app.database.base import Base, Due, UtcDateTime
from app.database.engine import Session

Row = TypeVar("Row", bound=Base)

CLAIMED_AT: BindParameter[datetime] = bindparam("claimed_at", type_=UtcDateTime())
# Up to this number, overdue rows are counted; and rows of one kind that wait are looked at to count them.
MAX_OVERDUE, MAX_COUNTED = 1000, 10_000


@dataclass(frozen=True, slots=True)
class Claim:
    """A request for at most `limit` rows that are due at `now`, claimed until `now + lease`."""

    now: datetime
    lease: timedelta
    limit: int


class ClaimLost(Exception):
    """Another worker has claimed the row since, or it was erased: the result must be dropped."""


class DatabaseNow(FunctionElement[datetime]):
    """The time of the database, as an expression; one value for the whole statement, so that an index serves it."""

    type = UtcDateTime()
    inherit_cache = True


@compiles(DatabaseNow, "postgresql")
def _postgresql_now(*_: Any, **__: Any) -> str:
    return "statement_timestamp()"


@compiles(DatabaseNow, "sqlite")
def _sqlite_now(*_: Any, **__: Any) -> str:
    # As times are stored here, which are compared as text.
    return "strftime('%Y-%m-%d %H:%M:%f', 'now')"


def is_due(kind: type[Due], *where: ColumnElement[bool]) -> ColumnElement[bool]:
    """Whether there is a row of this kind whose time has come."""
    return exists().where(kind.due_at <= DatabaseNow(), *where)


class Claims(Generic[Row]):
    """
    Claims due rows of one kind that meet conditions, and sets `values` on them; made once, as a constant of its module.

    Those come first that are first by `order`, and of them those that are due longest. In
    conditions and values CLAIMED_AT is the time of the claim, and a `bindparam` is a
    parameter of `claim`. `beside` is what `claim_beside` returns with each row. `due` selects the keys of the
    rows to claim, locked, where no order of all rows says which.
    """

    def __init__(
        self,
        kind: type[Row],
        *where: ColumnElement[bool],
        order: Sequence[Any] = (),
        values: Mapping[str, Any] = MappingProxyType({}),
        beside: Sequence[ColumnElement[Any]] = (),
        due: SelectBase | None = None,
    ) -> None:
        assert issubclass(kind, Due)  # noqa: S101 - narrows the type; there is no annotation for both bases
        key = inspect(kind).primary_key[0]
        if due is None:
            found = select(key.label("key")).where(kind.due_at <= CLAIMED_AT, *where).order_by(*order, kind.due_at)
            due = found.limit(bindparam("claim_limit")).with_for_update(skip_locked=True)
        # Otherwise the planner may run the sub-select again for each row, and lock more rows than the limit.
        locked = due.cte("due").prefix_with("MATERIALIZED", dialect="postgresql")
        lease = {"due_at": bindparam("leased_until", type_=UtcDateTime()), "fence": bindparam("claim_fence")}
        self._statement: TypedReturnsRows[Any] = (
            update(kind)
            .where(key.in_(select(*locked.c)))
            .values(attempts=kind.attempts + 1, **lease, **values)
            .returning(kind, *beside)
            # The rows alone: what belongs to them is read where it is needed, under their lock.
            .options(raiseload("*"))
            .execution_options(synchronize_session=False, populate_existing=True)
        )

    async def claim(self, session: Session, claim: Claim, **parameters: object) -> Sequence[Row]:
        """
        Claim rows in one statement.

        A worker that dies needs no clean-up: its rows are due again when the lease ends.
        On PostgreSQL concurrent claimers skip each other's locked rows; on SQLite there is
        one write transaction at a time.
        """
        return [row for row, *_ in await self.claim_beside(session, claim, **parameters)]

    async def claim_beside(
        self, session: Session, claim: Claim, **parameters: object
    ) -> Sequence[tuple[Row, *tuple[Any, ...]]]:
        """Claim rows as `claim` does; return each with what is read beside it."""
        given = {"claimed_at": claim.now, "leased_until": claim.now + claim.lease, "claim_limit": claim.limit}
        rows = await session.execute(self._statement, {**given, "claim_fence": uuid4().hex, **parameters})
        return [tuple(row) for row in rows]


async def lock_claimed(session: Session, kind: type[Row], key: str, fence: str | None) -> Row | None:
    """Lock a claimed row to settle it. None when another worker has claimed it since: the result must be dropped."""
    assert issubclass(kind, Due)  # noqa: S101 - as above
    mine = select(kind).where(inspect(kind).primary_key[0] == key, kind.fence == fence).with_for_update()
    row: Row | None = await session.scalar(mine)
    return row


async def extend_lease(session: Session, kind: type[Row], key: str, fence: str | None, until: datetime) -> None:
    """Extend the lease of a claimed row, unless another worker has claimed it since."""
    assert issubclass(kind, Due)  # noqa: S101 - as above
    mine = update(kind).where(inspect(kind).primary_key[0] == key, kind.fence == fence)
    await session.execute(mine.values(due_at=until).execution_options(synchronize_session=False))


async def count_overdue(session: Session, kind: type[Row], late: datetime, *where: ColumnElement[bool]) -> int:
    """How many rows of this kind were due before `late` and are not claimed yet, up to MAX_OVERDUE."""
    assert issubclass(kind, Due)  # noqa: S101 - as above
    overdue = select(inspect(kind).primary_key[0]).where(kind.due_at < late, *where).limit(MAX_OVERDUE)
    return await session.scalar(select(func.count()).select_from(overdue.subquery())) or 0


def backlog(name: str, kind: type[Due], order: Sequence[Any], *where: ColumnElement[bool]) -> Select[*tuple[Any, ...]]:
    """
    A query of one row: this name, how many rows wait, how many of them are due at `now`, and since when one is.

    It looks at the first MAX_COUNTED alone of an index that holds no others, whose columns are `order`.
    """
    waiting = select(kind.due_at).where(*(where or [kind.due_at.isnot(None)])).order_by(*order).limit(MAX_COUNTED)
    due_at = waiting.subquery().c.due_at
    is_due = due_at <= bindparam("now", type_=UtcDateTime())
    return select(literal(name), func.count(), func.count(due_at).filter(is_due), func.min(due_at).filter(is_due))
