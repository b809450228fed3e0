"""Compares the ledgers of keys with their accounts, their tasks, and what the sandbox charged and gave back."""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import func, select

from app.budgets.booking import PATHS, entry_for
from app.database.engine import Database
from app.enums import EntryKind
from app.models import Budget, LedgerEntry, Task
from app.sandbox.account import PRICE
from app.sandbox.timeline import failure_for
from app.tasks.transitions import FINAL

Record = dict[str, Any]
REFUNDED = 531


@dataclass(frozen=True)
class Books:
    """The accounts of all keys, and their entries by the id of their task, in order."""

    accounts: Sequence[Budget]
    entries: Mapping[str | None, Sequence[LedgerEntry]]

    @property
    def used(self) -> float:
        """The credits that all keys have used, or may have."""
        return -sum(account.balance for account in self.accounts) / 1000


async def read_books(database: Database) -> Books:
    """What is stored now."""
    entries = defaultdict[str | None, list[LedgerEntry]](list)
    async with database.reads() as session:
        accounts = (await session.scalars(select(Budget))).all()
        for entry in await session.scalars(select(LedgerEntry).order_by(LedgerEntry.api_key_id, LedgerEntry.number)):
            entries[entry.task_id].append(entry)
    return Books(accounts, entries)


async def unbalanced(database_url: str) -> list[str]:
    """The accounts whose ledger has another sum, or another number of entries, at one moment."""
    database = Database(database_url)
    of_key = LedgerEntry.api_key_id == Budget.api_key_id
    entries = select(func.coalesce(func.sum(LedgerEntry.credits), 0)).where(of_key).scalar_subquery()
    count = select(func.count()).select_from(LedgerEntry).where(of_key).scalar_subquery()
    try:
        async with database.reads() as session:
            rows = await session.execute(
                select(Budget.api_key_id, Budget.balance, entries, Budget.entries, count, Budget.spent, Budget.reserved)
            )
            return [
                f"the account of {key_id} has a balance of {balance} by {noted} entries, its ledger {total} by {found}"
                f", and {spent} spent, {reserved} reserved"
                for key_id, balance, total, noted, found, spent, reserved in rows
                if (balance, noted) != (total, found) or min(spent, reserved) < 0
            ]
    finally:
        await database.close()


def charged_by(made: Sequence[Record]) -> float:
    """The credits that the sandbox has charged for tasks and not given back."""
    return sum(PRICE * (not _gives_back(record)) for record in made)


def disagreements(books: Books, tasks: Mapping[str, Task], made: Sequence[Record]) -> Iterator[str]:
    """What the ledger says otherwise than the tasks, or than the sandbox."""
    for task in tasks.values():
        kind = entry_for(task, is_final=task.status in FINAL)
        lines = [entry.kind for entry in books.entries.get(task.id, ())]
        last = lines[-1] if lines else None
        if last is not task.booked or (kind is not None and PATHS[kind][task.booked]):
            yield f"{task.id} is {task.status} and {task.charge}, and the ledger says {lines}"
        if lines.count(EntryKind.refund) > max(1, lines.count(EntryKind.settle)):
            yield f"{task.id} was refunded {lines.count(EntryKind.refund)} times: {lines}"
    ours = {record["caller_task_id"] for record in made}
    # Nobody has heard whether the upstream has them, and it has not.
    unknown = [task for task in tasks.values() if task.booked is EntryKind.reserve and task.id not in ours]
    unheard = [record for record in made if _gives_back(record) and not _is_refunded(tasks, record)]
    yield from (
        f"{each['caller_task_id']} was refunded and told so" for each in unheard if "error" in each["delivered"]
    )
    used, charged = books.used, charged_by(made)
    if used != charged + PRICE * (len(unknown) + len(unheard)):
        yield f"{used} credits are used, and {charged} charged, {len(unknown)} unknown, {len(unheard)} not heard of"


def _gives_back(record: Record) -> bool:
    """Whether the sandbox gives back what a task cost: of several failures that befall it, one is told."""
    failure = failure_for(dict.fromkeys(record["faults"]))
    return failure is not None and failure.code == REFUNDED


def _is_refunded(tasks: Mapping[str, Task], record: Record) -> bool:
    task = tasks.get(record["caller_task_id"])
    return task is not None and task.booked is EntryKind.refund
