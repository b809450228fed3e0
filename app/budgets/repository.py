"""Queries on keys, their accounts and their ledgers."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import fields
from datetime import datetime

from sqlalchemy import ColumnElement, func, select, tuple_

from app.budgets.ledger import IS_HELD, Account, new_account
from app.database.engine import Session
from app.models import ApiKey, Budget, LedgerEntry, Task

_ACCOUNT = select(*(getattr(Budget, field.name) for field in fields(Account)))


async def has_key(session: Session, key_id: str) -> bool:
    """Whether there is a key with this id, revoked or not."""
    return await session.scalar(select(ApiKey.id).where(ApiKey.id == key_id)) is not None


async def list_key_ids(session: Session, after: str, limit: int) -> Sequence[str]:
    """The ids of up to `limit` keys after this one."""
    return (await session.scalars(select(ApiKey.id).where(ApiKey.id > after).order_by(ApiKey.id).limit(limit))).all()


async def list_keys(session: Session, after: tuple[datetime, str] | None, limit: int) -> Sequence[ApiKey]:
    """Up to `limit` keys after this position, oldest first."""
    query = select(ApiKey).order_by(ApiKey.created_at, ApiKey.id).limit(limit)
    if after is not None:
        query = query.where(tuple_(ApiKey.created_at, ApiKey.id) > after)
    return (await session.scalars(query)).all()


async def accounts_of(session: Session, key_ids: Collection[str]) -> Mapping[str, Account]:
    """The accounts of these keys; one in which nothing was written yet is as good as new."""
    rows = await session.execute(_ACCOUNT.where(Budget.api_key_id.in_(key_ids)))
    return {key_id: new_account(key_id) for key_id in key_ids} | {row[0]: Account(*row) for row in rows}


async def count_exhausted(session: Session, cheapest: int, now: datetime) -> int:
    """How many keys have a budget without room for another task, of which none is cheaper than this."""
    is_full = Budget.spent + Budget.reserved + max(cheapest, 1) > Budget.credit_limit
    accounts = [Account(*row) for row in await session.execute(_ACCOUNT.where(is_full))]
    for account in accounts:
        account.begin_window(now)
    return sum(account.is_exhausted_now(cheapest) for account in accounts)


async def count_held(session: Session, limit: int) -> int:
    """How many tasks wait for room in their key's budget, counted up to `limit`."""
    held = select(Task.id).where(*IS_HELD).limit(limit).subquery()
    return await session.scalar(select(func.count()).select_from(held)) or 0


async def total_charged(session: Session) -> int:
    """What the upstream has charged and not given back, of all keys and ever, by their ledgers, in thousandths."""
    return int(await session.scalar(select(func.sum(Budget.charged))) or 0)


async def list_entries(
    session: Session, where: Sequence[ColumnElement[bool]], before: tuple[datetime, int] | None, limit: int
) -> Sequence[LedgerEntry]:
    """Up to `limit` matching entries before this position, newest first."""
    newest_first = LedgerEntry.created_at.desc(), LedgerEntry.number.desc()
    query = select(LedgerEntry).where(*where).order_by(*newest_first).limit(limit)
    if before is not None:
        query = query.where(tuple_(LedgerEntry.created_at, LedgerEntry.number) < before)
    return (await session.scalars(query)).all()
