"""Retention: counts what is too old, deletes it in batches, and removes files to which no clip refers."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta

from sqlalchemy import ColumnElement, delete, func, select, tuple_

from app.auth import audit
from app.budgets.usage import forget_spent
from app.database.base import Base
from app.database.claims import Claim
from app.database.engine import Database, Session
from app.models import Callback, Clip, Delivery, Event, IdempotencyKey, StoredObject, Task
from app.storage import references
from app.storage.store import Storage, waveform_key
from app.tasks.orders import idempotency
from app.tasks.service import erase_tasks

BATCH = 100
# Of the tasks of a batch.
MAX_DELIVERIES = 1000
REMOVAL_LEASE = timedelta(minutes=1)


class Retention:
    """
    Deletes final tasks, with all that belongs to them, `days` after their end; never if `days` is 0.

    `audit_days` is the same for the audit log.
    """

    def __init__(self, days: float, audit_days: float) -> None:
        self._days, self._audit_days = days, audit_days

    async def count(self, session: Session, now: datetime) -> Mapping[str, int]:
        """The number of rows of each kind that are too old. The rows of a task are deleted with it."""
        expired = select(Task.id).where(self._is_expired(now))
        kinds: Mapping[str, tuple[type[Base], ColumnElement[bool]]] = {
            "tasks": (Task, self._is_expired(now)),
            "events": (Event, Event.task_id.in_(expired)),
            "callbacks": (Callback, Callback.task_id.in_(expired)),
            "deliveries": (Delivery, Delivery.task_id.in_(expired) | self._is_old_delivery(now)),
            "audio": (Clip, Clip.task_id.in_(expired) & Clip.archived_at.isnot(None)),
            "idempotency keys": (IdempotencyKey, _is_old_key(now)),
        }
        counts = {}
        for name, (kind, condition) in kinds.items():
            counts[name] = await session.scalar(select(func.count()).select_from(kind).where(condition)) or 0
        return {**counts, "audit entries": await audit.count_before(session, _ago(self._audit_days, now))}

    async def erase_batch(self, session: Session, now: datetime) -> bool:
        """
        Delete one batch of each kind; return whether there may be more.

        Files become due for removal. What the tasks have cost stays in the sums of usage.
        """
        oldest = select(Task).where(self._is_expired(now)).order_by(Task.completed_at).limit(BATCH)
        tasks = (await session.scalars(oldest.with_for_update(skip_locked=True))).all()
        if tasks:
            of_tasks = Delivery.task_id.in_([task.id for task in tasks])
            if await _delete_deliveries(session, of_tasks, MAX_DELIVERIES) == MAX_DELIVERIES:
                # A key may have a hundred endpoints that each got every event: these tasks go with a later batch.
                return True
            await erase_tasks(session, tasks, now)
        others = [
            await _delete_deliveries(session, self._is_old_delivery(now), BATCH),
            await _delete_keys(session, now),
            await forget_spent(session, self._before(now), BATCH),
            await audit.forget_before(session, _ago(self._audit_days, now), BATCH),
        ]
        return BATCH in (len(tasks), *others)

    def _is_expired(self, now: datetime) -> ColumnElement[bool]:
        return Task.completed_at < self._before(now)

    def _is_old_delivery(self, now: datetime) -> ColumnElement[bool]:
        """Deliveries of webhooks about endpoints, not tasks, that are not pending any more."""
        return Delivery.task_id.is_(None) & Delivery.due_at.is_(None) & (Delivery.created_at < self._before(now))

    def _before(self, now: datetime) -> datetime:
        return _ago(self._days, now)


async def remove_file(database: Database, storage: Storage, row: StoredObject) -> None:
    """Remove a claimed file, then its row: after a crash in between the row is due again. Raises StorageUnavailable."""
    await storage.remove(row.key)
    await storage.remove(waveform_key(row.key))
    async with database.writes.begin() as session:
        await references.forget(session, row)


async def remove_due_files(database: Database, storage: Storage) -> int:
    """Remove all due files to which no clip refers; return their number. Raises StorageUnavailable."""
    removed = 0
    while True:
        async with database.transaction() as (session, now):
            claim = Claim(now, REMOVAL_LEASE, BATCH)
            rows = await references.claim_abandoned(session, claim)
        for row in rows:
            await remove_file(database, storage, row)
        removed += len(rows)
        if not rows:
            return removed


def _ago(days: float, now: datetime) -> datetime:
    # Nothing is older than the epoch: it stands for "never".
    return now - timedelta(days=days) if days else datetime.fromtimestamp(0, now.tzinfo)


def _is_old_key(now: datetime) -> ColumnElement[bool]:
    return IdempotencyKey.created_at < now - idempotency.TTL


async def _delete_deliveries(session: Session, is_old: ColumnElement[bool], limit: int) -> int:
    """Delete up to `limit` deliveries with their attempts; return how many there were."""
    old = select(Delivery.id).where(is_old).order_by(Delivery.created_at).limit(limit)
    erased = await session.execute(delete(Delivery).where(Delivery.id.in_(old)).returning(Delivery.id))
    return len(erased.all())


async def _delete_keys(session: Session, now: datetime) -> int:
    primary_key = tuple_(IdempotencyKey.api_key_id, IdempotencyKey.key)
    old = select(IdempotencyKey.api_key_id, IdempotencyKey.key).where(_is_old_key(now))
    oldest = old.order_by(IdempotencyKey.created_at).limit(BATCH)
    erased = await session.execute(delete(IdempotencyKey).where(primary_key.in_(oldest)).returning(IdempotencyKey.key))
    return len(erased.all())
