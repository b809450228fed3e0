"""What keys may use and have used, as they and admins see it."""

from __future__ import annotations

import asyncio
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Mapping, Sequence
from datetime import date, datetime
from typing import Any

from app.auth import audit
from app.auth.callers import Caller
from app.budgets import repository
from app.budgets.ledger import DEFAULT_WINDOW, read_budget, set_budget
from app.budgets.limits import THOUSANDTHS
from app.budgets.schemas import (
    ALL_KEYS,
    BudgetRead,
    BudgetWrite,
    KeyRead,
    LedgerFilters,
    Usage,
    UsageFilters,
    UsageOfDay,
    read_key,
)
from app.budgets.usage import sum_by_day, sum_usage
from app.database.base import to_utc
from app.database.engine import Database, Session
from app.enums import Charge, Scope
from app.errors import NotFound
from app.models import LedgerEntry

# The keys that one statement adds up for, so that none takes long.
KEYS_AT_ONCE = 4
_TOLD = Charge.charged, Charge.refunded, Charge.possible


class BudgetService:
    """Each method is one use case. All raise NotPermitted for another's key, but to admins."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def budget(self, caller: Caller) -> BudgetRead:
        """The budget of the caller's own key, in the current window."""
        async with self._database.reads() as session:
            accounts = await repository.accounts_of(session, [caller.api_key_id])
            return read_budget(accounts[caller.api_key_id], await self._database.now(session))

    async def list_entries(
        self, caller: Caller, wanted: LedgerFilters, before: tuple[datetime, int] | None, limit: int
    ) -> Sequence[LedgerEntry]:
        """Up to `limit` entries of one key's ledger before this position, newest first. Raises NotFound."""
        key_id = wanted.key or caller.api_key_id
        async with self._database.reads() as session:
            if key_id != caller.api_key_id:
                await _require_key(session, caller, key_id)
            where = [LedgerEntry.api_key_id == key_id]
            if wanted.since is not None:
                where.append(LedgerEntry.created_at >= to_utc(wanted.since))
            if wanted.until is not None:
                where.append(LedgerEntry.created_at < to_utc(wanted.until))
            return await repository.list_entries(session, where, before, limit)

    async def list_keys(self, caller: Caller, after: tuple[datetime, str] | None, limit: int) -> Sequence[KeyRead]:
        """Up to `limit` keys after this position, oldest first."""
        caller.require(Scope.admin)
        async with self._database.reads() as session:
            keys = await repository.list_keys(session, after, limit)
            accounts = await repository.accounts_of(session, [key.id for key in keys])
            now = await self._database.now(session)
            return [read_key(key, read_budget(accounts[key.id], now)) for key in keys]

    async def set_budget(self, caller: Caller, key_id: str, body: BudgetWrite) -> BudgetRead:
        """Give a key another budget; return it as it is from now on. Raises NotFound, NotPermitted."""
        caller.require(Scope.admin)
        window = None if body.limit is None else body.window or DEFAULT_WINDOW
        credit_limit = None if body.limit is None else round(body.limit * THOUSANDTHS)
        async with self._database.transaction() as (session, now):
            await _require_key(session, caller, key_id)
            await set_budget(session, key_id, credit_limit, window, now)
            audit.record(session, now, caller.actor, "key.budget_changed", key_id, limit=body.limit, window=window)
            accounts = await repository.accounts_of(session, [key_id])
            return read_budget(accounts[key_id], now)

    async def usage(self, caller: Caller, wanted: UsageFilters) -> Usage:
        """Sums over the tasks that were created from `since` on and before `until`. Raises NotFound."""
        total, total_posts = Counter[Charge](), 0
        async for key_ids in self._keys(caller, wanted.key):
            async with self._database.reads() as session:
                tasks, posts = await sum_usage(session, key_ids, wanted.since, wanted.until)
            total.update(tasks)
            total_posts += posts
        return Usage(tasks=total.total(), posts=total_posts, **_told(total))

    async def usage_by_day(
        self, caller: Caller, wanted: UsageFilters, after: tuple[str, date] | None = None
    ) -> AsyncIterator[Sequence[tuple[str, UsageOfDay]]]:
        """
        The days with tasks after this key and day, in their order, each with its key: at least one batch.

        Raises NotFound.
        """
        async for key_ids in self._keys(caller, wanted.key, after[0] if after else None):
            async with self._database.reads() as session:
                rows = await sum_by_day(session, key_ids, wanted.since, wanted.until)
            days = _days(rows, is_named=wanted.key is not None)
            yield [each for each in days if after is None or (each[0], each[1].day) > after]

    async def _keys(self, caller: Caller, key: str | None, first: str | None = None) -> AsyncIterator[Sequence[str]]:
        """The ids of the keys that are asked about, from this one on, in batches. Raises NotFound, NotPermitted."""
        if key is None or key == caller.api_key_id:
            yield [caller.api_key_id]
            return
        if key != ALL_KEYS:
            async with self._database.reads() as session:
                await _require_key(session, caller, key)
            yield [key]
            return
        caller.require(Scope.admin)
        if first is not None:
            yield [first]
        while True:
            async with self._database.reads() as session:
                batch = await repository.list_key_ids(session, first or "", KEYS_AT_ONCE)
            if not batch:
                return
            yield batch
            first = batch[-1]
            # SQLite's statements run on the event loop: others have their turn between them.
            await asyncio.sleep(0)


async def _require_key(session: Session, caller: Caller, key_id: str) -> None:
    """Raises NotPermitted unless the caller is an admin, and NotFound unless there is such a key."""
    caller.require(Scope.admin)
    if not await repository.has_key(session, key_id):
        raise NotFound


def _days(rows: Sequence[tuple[str, date, Charge, int, int]], *, is_named: bool) -> Sequence[tuple[str, UsageOfDay]]:
    """Sums by key, day and charge as one item for each key and day; `is_named`: it names its key."""
    tasks, posts = defaultdict[tuple[str, date], Counter[Charge]](Counter), Counter[tuple[str, date]]()
    for key_id, day, charge, count, made in rows:
        tasks[key_id, day][charge] += count
        posts[key_id, day] += made
    found = []
    for (key_id, day), by_charge in tasks.items():
        sums: dict[str, Any] = {"tasks": by_charge.total(), "posts": posts[key_id, day], **_told(by_charge)}
        if is_named:
            sums["key"] = key_id
        found.append((key_id, UsageOfDay(day=day, **sums)))
    return found


def _told(tasks: Mapping[Charge, int]) -> dict[str, int]:
    return {charge.value: tasks.get(charge, 0) for charge in _TOLD}
