"""Keys with budgets, and what their accounts and ledgers say."""

from collections.abc import Sequence
from datetime import datetime

from sqlalchemy import select

from app.budgets.ledger import set_budget
from app.database.engine import Database
from app.enums import EntryKind, Window
from app.models import ApiKey, Budget, LedgerEntry
from tests.support.clock import MORNING
from tests.support.service import Service


async def key_of(service: Service, name: str = "tests") -> str:
    """The id of the key with this name."""
    async with service.database.reads() as session:
        return (await session.scalars(select(ApiKey.id).where(ApiKey.name == name))).one()


async def give(
    database: Database, key_id: str, credits_: float | None, window: Window | None = Window.day, now: datetime = MORNING
) -> None:
    """Give a key this budget, in credits."""
    async with database.writes.begin() as session:
        limit = None if credits_ is None else int(credits_ * 1000)
        await set_budget(session, key_id, limit, window, now)


async def account_of(database: Database, key_id: str) -> Budget:
    """A key's account as it is stored."""
    async with database.reads() as session:
        return (await session.scalars(select(Budget).where(Budget.api_key_id == key_id))).one()


async def entries_of(database: Database, key_id: str, task_id: str | None = None) -> Sequence[LedgerEntry]:
    """The lines of a key's ledger, or of one task, in their order."""
    of_key = select(LedgerEntry).where(LedgerEntry.api_key_id == key_id).order_by(LedgerEntry.number)
    async with database.reads() as session:
        return (
            await session.scalars(of_key if task_id is None else of_key.where(LedgerEntry.task_id == task_id))
        ).all()


async def kinds_of(database: Database, key_id: str, task_id: str | None = None) -> list[EntryKind]:
    """What those lines say."""
    return [entry.kind for entry in await entries_of(database, key_id, task_id)]


async def check_ledger(database: Database, key_id: str) -> Budget:
    """The account, once it agrees with the ledger: the sum of all entries, numbered without a gap, is its balance."""
    account, entries = await account_of(database, key_id), await entries_of(database, key_id)
    balance = 0
    for number, entry in enumerate(entries, 1):
        balance += entry.credits
        assert (entry.number, entry.balance) == (number, balance)
    assert (account.entries, account.balance) == (len(entries), balance)
    assert [entry.created_at for entry in entries] == sorted(entry.created_at for entry in entries)
    return account
