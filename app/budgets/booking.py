"""The ledger: every change of what a key has used, written in the transaction of what causes it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime

from sqlalchemy import event, insert, orm, update

from app.budgets.ledger import Entry, lock_accounts, make_room, of_transaction, write_accounts
from app.database.base import Base
from app.database.engine import Session, on_commit
from app.enums import Charge, EntryKind, TaskStatus
from app.models import LedgerEntry, SpentCharge, Task
from app.observability.metrics import Metrics

K = EntryKind
# What is written for a task, by its last entry and the one that its state asks for. Nobody is charged for what was
# not reserved, and nothing is given back that was not charged.
PATHS: Mapping[EntryKind, Mapping[EntryKind | None, Sequence[EntryKind]]] = {
    K.reserve: {None: (K.reserve,), K.reserve: (), K.release: (K.reserve,), K.refund: (K.reserve,)},
    K.settle: {
        None: (K.reserve, K.settle),
        K.reserve: (K.settle,),
        K.settle: (),
        K.release: (K.reserve, K.settle),
        K.refund: (K.reserve, K.settle),
    },
    K.release: {None: (), K.reserve: (K.release,), K.release: (), K.refund: ()},
    K.refund: {
        None: (K.reserve, K.settle, K.refund),
        K.reserve: (K.settle, K.refund),
        K.settle: (K.refund,),
        K.release: (K.reserve, K.settle, K.refund),
        K.refund: (),
    },
}
_ENTRIES = "ledger_entries"
_INSERT = insert(Base.metadata.tables[LedgerEntry.__tablename__])


def entry_for(task: Task, *, is_final: bool) -> EntryKind | None:
    """What the ledger has to say last of a task as it is now; None is nothing new."""
    match task.charge:
        case Charge.charged:
            return K.settle
        case Charge.refunded:
            return K.refund
        case Charge.possible:
            return K.reserve
    if is_final:
        return K.release
    is_held = task.status is TaskStatus.queued and task.due_at is None
    return None if is_held else K.reserve


def book(session: Session, task: Task, now: datetime, *, is_final: bool) -> tuple[EntryKind | None, datetime | None]:
    """
    Write what the ledger lacks of a task when this transaction commits; return what is its last entry then.

    And since when it is reserved. Raises KeyError for a task that would be charged no more.
    """
    kind = entry_for(task, is_final=is_final)
    path = PATHS[kind][task.booked] if kind is not None else ()
    reserved_at = now if K.reserve in path else task.reserved_at or now
    for step in path:
        post_on_commit(session, Entry(task.api_key_id, task.id, step, task.price, reserved_at, now))
    return (path[-1], reserved_at) if path else (task.booked, task.reserved_at)


async def settle_erased(session: Session, task: Task, metrics: Metrics, now: datetime, *, was_taken: bool) -> None:
    """Write what a task has cost that was canceled and erased while its submit was on its way, and may have cost."""
    charge = Charge.charged if was_taken else Charge.none
    unknown = update(SpentCharge).where(SpentCharge.task_id == task.id, SpentCharge.charge == Charge.possible)
    if not was_taken:
        # It may have been submitted again since.
        unknown = unknown.where(SpentCharge.posts == task.posts)
    settled = unknown.values(charge=charge).execution_options(synchronize_session=False)
    if await session.scalar(settled.returning(SpentCharge.task_id)) is None:
        return
    step = K.settle if was_taken else K.release
    post_on_commit(session, Entry(task.api_key_id, task.id, step, task.price, task.reserved_at or now, now))
    if was_taken:
        on_commit(session, metrics.charges[Charge.charged].inc)


def post_on_commit(session: Session, entry: Entry) -> None:
    """Write an entry when this transaction commits: behind the locks of tasks, and before those of endpoints."""
    if not event.contains(session.sync_session, "before_commit", _post):
        event.listen(session.sync_session, "before_commit", _post, insert=True)
    of_transaction(session.sync_session, _ENTRIES, list[Entry]).append(entry)


def _post(session: orm.Session) -> None:
    """Write all entries of a transaction, by one statement for each table."""
    entries = of_transaction(session, _ENTRIES, list[Entry])
    if not entries:
        return
    key_ids = {entry.api_key_id for entry in entries}
    accounts = lock_accounts(session, key_ids)
    rows = [accounts[entry.api_key_id].book(entry) for entry in entries]
    write_accounts(session, [accounts[key_id] for key_id in key_ids])
    session.connection().execute(_INSERT, rows)
    freed = {entry.api_key_id for entry in entries if entry.kind in (K.release, K.refund)}
    make_room(session, {key_id for key_id in freed if accounts[key_id].credit_limit is not None}, entries[-1].at)
