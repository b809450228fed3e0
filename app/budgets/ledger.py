"""The account of each key: what is used in the current window, and the balance of all that was ever used."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from datetime import datetime, timedelta
from typing import Any, NamedTuple, TypeVar, cast

from sqlalchemy import ColumnElement, Table, bindparam, case, func, inspect, orm, select, update
from sqlalchemy.dialects import postgresql, sqlite

from app.budgets.limits import THOUSANDTHS
from app.budgets.schemas import BudgetRead
from app.database.base import Base, new_id, to_utc
from app.database.engine import Session
from app.database.wakeups import PERIODIC_JOBS, notify_on_commit
from app.enums import EntryKind, TaskStatus, Window
from app.models import Budget, LedgerEntry, PeriodicJob, Task

Kept = TypeVar("Kept")
# What an account counts by that has no budget.
DEFAULT_WINDOW = Window.day
# `budget.low` is said from this fraction of the limit on.
LOW = 0.8
# The periodic job that lets held tasks in.
LET_IN = "let_in_held"
# Written out, as in the condition of the index of held tasks: no parameter would be seen to be the same.
_QUEUED = bindparam(None, TaskStatus.queued, type_=Task.status.type, literal_execute=True)
IS_HELD: Sequence[ColumnElement[bool]] = (Task.status == _QUEUED, Task.due_at.is_(None))
# The first of them, by which SQLite finds that index: for their mere existence it walks along all that are queued.
_FIRST_HELD = select(func.min(Task.priority)).where(Task.api_key_id == Budget.api_key_id, *IS_HELD)
HAS_HELD = _FIRST_HELD.correlate(Budget).scalar_subquery().is_not(None)
_TABLE, _JOBS = (Base.metadata.tables[kind.__tablename__] for kind in (Budget, PeriodicJob))


def window_start(window: Window, now: datetime) -> datetime:
    """When the window began that a moment is in: at midnight in UTC, of the day or of the first of the month."""
    midnight = to_utc(now).replace(hour=0, minute=0, second=0, microsecond=0)
    return midnight if window is Window.day else midnight.replace(day=1)


def resets_at(window: Window, start: datetime) -> datetime:
    """When the window ends that began then, and the next one begins."""
    # 31 days after its first every month is over, and none is the next one.
    return start + timedelta(days=1) if window is Window.day else window_start(window, start + timedelta(days=31))


class Entry(NamedTuple):
    """A line to be written to a key's ledger. `price` and `reserved_at` are of its task."""

    api_key_id: str
    task_id: str
    kind: EntryKind
    price: int
    reserved_at: datetime
    at: datetime


@dataclass(slots=True)
class Account:
    """A row of Budget, in thousandths of credits. It is locked where it may be changed."""

    api_key_id: str
    credit_limit: int | None
    window: Window | None
    starts_at: datetime | None
    spent: int
    reserved: int
    charged: int
    balance: int
    entries: int
    booked_at: datetime | None
    is_low: bool
    is_exhausted: bool

    @property
    def used(self) -> int:
        """What is spent or reserved in its window."""
        return self.spent + self.reserved

    @property
    def resets_at(self) -> datetime:
        """When its next window begins, once this one has begun."""
        assert self.starts_at is not None  # noqa: S101 - narrows the type
        return resets_at(self.window or DEFAULT_WINDOW, self.starts_at)

    def has_room_for(self, price: int) -> bool:
        """Whether its budget allows another task of this price."""
        return self.credit_limit is None or self.used + price <= self.credit_limit

    def moment(self, now: datetime) -> datetime:
        """
        The time by its ledger, which never goes back.

        Whoever waited for its lock, over midnight perhaps, comes behind those who had it before.
        """
        return max(moment for moment in (now, self.booked_at, self.starts_at) if moment is not None)

    def begin_window(self, now: datetime) -> datetime:
        """Begin the window of this time, unless it has begun; return the time by its ledger."""
        moment = self.moment(now)
        start = window_start(self.window or DEFAULT_WINDOW, moment)
        if self.starts_at != start:
            self.starts_at, self.spent, self.reserved = start, 0, 0
            self.is_low = self.is_exhausted = False
        return moment

    def book(self, entry: Entry) -> dict[str, Any]:
        """Take in an entry; return it as a row of the ledger."""
        at = self.begin_window(entry.at)
        # What was reserved in an earlier window is no part of this one's numbers.
        in_window = entry.price if self.starts_at is not None and entry.reserved_at >= self.starts_at else 0
        change = 0
        match entry.kind:
            case EntryKind.reserve:
                change = -entry.price
                self.reserved += in_window
            case EntryKind.settle:
                self.reserved -= in_window
                self.spent += in_window
                self.charged += entry.price
            case EntryKind.release:
                change = entry.price
                self.reserved -= in_window
            case EntryKind.refund:
                change = entry.price
                self.spent -= in_window
                self.charged -= entry.price
        self.balance, self.entries, self.booked_at = self.balance + change, self.entries + 1, at
        ids = {"id": new_id(), "api_key_id": self.api_key_id, "number": self.entries, "task_id": entry.task_id}
        return {**ids, "kind": entry.kind, "credits": change, "balance": self.balance, "created_at": at}

    def is_low_now(self) -> bool:
        """Whether most of its budget is used."""
        return self.credit_limit is not None and self.used >= self.credit_limit * LOW

    def is_exhausted_now(self, cheapest: int) -> bool:
        """Whether its budget has no room for another task, of which none is cheaper than this."""
        return not self.has_room_for(max(cheapest, 1))


def read_budget(account: Account, now: datetime) -> BudgetRead:
    """A key's budget in the window of this time, as callers see it."""
    account = replace(account)
    account.begin_window(now)
    limit = account.credit_limit
    return BudgetRead(
        limit=None if limit is None else limit / THOUSANDTHS,
        window=None if limit is None else account.window,
        spent=account.spent / THOUSANDTHS,
        reserved=account.reserved / THOUSANDTHS,
        left=None if limit is None else max(0, limit - account.used) / THOUSANDTHS,
        resets_at=None if limit is None else account.resets_at,
    )


def of_transaction(session: orm.Session, name: str, make: Callable[[], Kept]) -> Kept:
    """What this transaction keeps under a name, made at first; nothing of it is left for the next one."""
    transaction, kept = session.info.get(name, (None, None))
    if kept is None or transaction is not session.get_transaction():
        kept = make()
        session.info[name] = session.get_transaction(), kept
    return cast("Kept", kept)


def lock_accounts(session: orm.Session, key_ids: Collection[str]) -> Mapping[str, Account]:
    """Lock the accounts of these keys, in one order for all, until the transaction ends; make missing ones."""
    locked: dict[str, Account] = of_transaction(session, "accounts", dict)
    wanted = sorted(set(key_ids) - set(locked))
    if wanted:
        # Keys that are new in this transaction.
        session.flush()
        locked |= _lock(session, wanted)
    if missing := [key_id for key_id in wanted if key_id not in locked]:
        new = _insert(session, _TABLE).on_conflict_do_nothing()
        session.connection().execute(new, [asdict(new_account(key_id)) for key_id in missing])
        locked |= _lock(session, missing)
    return locked


def write_accounts(session: orm.Session, accounts: Iterable[Account]) -> None:
    """Write locked accounts as they are now, by one statement."""
    rows = [asdict(account) for account in accounts]
    if rows:
        session.connection().execute(_UPDATE, [{"of_key": row.pop("api_key_id"), **row} for row in rows])


async def set_budget(
    session: Session, api_key_id: str, credit_limit: int | None, window: Window | None, now: datetime
) -> None:
    """
    Give a key this limit, in thousandths of credits, in each of these windows; None is no limit.

    What it has used in the current window counts, in one of another kind as the ledger has it. Held tasks for which
    there is room now are let in.
    """
    await session.run_sync(_set_budget, api_key_id, credit_limit, window or DEFAULT_WINDOW, now)


def look_at_held(session: orm.Session, moment: datetime) -> None:
    """Have all held tasks looked at, whether there is room for them now, at this time at the latest."""
    new = _insert(session, _JOBS).values(name=LET_IN, due_at=moment, attempts=0, detail={})
    due_at = case((_JOBS.c.due_at < moment, _JOBS.c.due_at), else_=new.excluded.due_at)
    # A worker that is looking now finds its fence gone, and leaves it due.
    session.execute(new.on_conflict_do_update(index_elements=["name"], set_={"due_at": due_at, "fence": None}))
    notify_on_commit(session, PERIODIC_JOBS)


def make_room(session: orm.Session, key_ids: Collection[str], now: datetime) -> None:
    """There is more room in the budgets of these keys: let in what they have held, if there is anything."""
    held = select(Budget.api_key_id).where(Budget.api_key_id.in_(key_ids), HAS_HELD).limit(1)
    if key_ids and session.scalar(held) is not None:
        look_at_held(session, now)


def _set_budget(session: orm.Session, api_key_id: str, credit_limit: int | None, window: Window, now: datetime) -> None:
    account = lock_accounts(session, [api_key_id])[api_key_id]
    if window is not (account.window or DEFAULT_WINDOW):
        account.starts_at = window_start(window, account.moment(now))
        account.spent, account.reserved = _used_since(session, api_key_id, account.starts_at)
    account.credit_limit, account.window = credit_limit, window
    account.begin_window(now)
    # What is true no more is said again when it comes true.
    account.is_low = account.is_low and account.is_low_now()
    account.is_exhausted = account.is_exhausted and account.is_low
    write_accounts(session, [account])
    make_room(session, [api_key_id], now)


def _used_since(session: orm.Session, api_key_id: str, start: datetime) -> tuple[int, int]:
    """What of what was reserved since then is spent, and what is reserved still, by the ledger."""
    number, kind = LedgerEntry.number, LedgerEntry.kind
    reserved = func.max(number).filter(kind == EntryKind.reserve)
    settled, given_back = (
        func.coalesce(func.max(number).filter(kind.in_(kinds)), 0)
        for kinds in ([EntryKind.settle], [EntryKind.release, EntryKind.refund])
    )
    # All that a task reserves is its price.
    of_task = select((-func.min(LedgerEntry.credits)).label("price"), (settled > reserved).label("is_settled")).where(
        LedgerEntry.api_key_id == api_key_id, LedgerEntry.created_at >= start
    )
    used = of_task.group_by(LedgerEntry.task_id).having(reserved > given_back).subquery().c
    spent = func.sum(used.price).filter(used.is_settled)
    found = session.execute(select(spent, func.sum(used.price).filter(~used.is_settled))).one()
    return int(found[0] or 0), int(found[1] or 0)


def new_account(api_key_id: str) -> Account:
    """The account of a key for which nothing was written yet."""
    return Account(api_key_id, None, DEFAULT_WINDOW, None, 0, 0, 0, 0, 0, None, False, False)


def _insert(session: orm.Session, table: Table) -> Any:
    """An insert of the dialect, which knows what to do about a row that is there."""
    return (sqlite if session.get_bind().dialect.name == "sqlite" else postgresql).insert(table)


def _lock(session: orm.Session, key_ids: Collection[str]) -> dict[str, Account]:
    rows = session.connection().execute(_LOCK, {"key_ids": list(key_ids)})
    return {row[0]: Account(*row) for row in rows}


_NAMES = [field.name for field in fields(Account)]
_LOCK = (
    select(*(inspect(Budget).columns[name] for name in _NAMES))
    .where(Budget.api_key_id.in_(bindparam("key_ids", expanding=True)))
    .order_by(Budget.api_key_id)
    .with_for_update(key_share=True)
)
_UPDATE = (
    update(_TABLE)
    .where(_TABLE.c.api_key_id == bindparam("of_key"))
    .values({name: bindparam(name) for name in _NAMES if name != "api_key_id"})
)
