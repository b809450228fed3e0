"""Locking tasks without waiting: many at once, as records that are written together, or one that cannot be polled."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import datetime
from functools import cache
from typing import Any

from sqlalchemy import BindParameter, ColumnElement, Row, Select, bindparam, orm, select

from app.budgets.ledger import IS_HELD
from app.database.engine import Session
from app.database.records import RecordSession, columns, is_new
from app.enums import TaskStatus
from app.models import Clip, Task
from app.webhooks.outbox import note_callers
from app.webhooks.repository import has_endpoints

# All three in one list, by which the index of due tasks can be searched; for alternatives SQLite walks all of it.
UNPOLLABLE = Task.status.in_([TaskStatus.submitting, TaskStatus.unconfirmed, TaskStatus.generating]) & (
    (Task.status != TaskStatus.generating) | Task.upstream_task_id.is_(None)
)
_IDS: BindParameter[list[str]] = bindparam("ids", expanding=True)
_IS_HEARD = has_endpoints(Task.api_key_id).label("is_heard")
_EXISTING = select(Task.id).where(Task.id.in_(_IDS))
_CLIPS = select(*columns(Clip)).where(Clip.task_id.in_(_IDS)).order_by(Clip.index)


async def lock_free_tasks(
    session: RecordSession, task_ids: Collection[str], *beside: ColumnElement[Any]
) -> tuple[Mapping[str, Task | None], Sequence[Row[Any]]]:
    """
    Lock these tasks; return them as records with their clips, by id, and the rows, with the columns `beside`.

    None is one that another transaction has locked; one that does not exist is left out.
    """
    rows, clips, missing = await session.run_sync(_lock_free, task_ids, beside)
    note_callers(session, {row.api_key_id for row in rows if row.is_heard})
    locked = {task.id: task for task in session.load(Task, rows)}
    for task in locked.values():
        task.clips = []
    for clip in session.load(Clip, clips):
        locked[clip.task_id].clips.append(clip)
    return {**locked, **dict.fromkeys(missing)}, rows


async def keep_free_tasks(session: Session, task_ids: Collection[str]) -> Mapping[str, bool]:
    """
    Keep these tasks from being erased until the transaction ends.

    False is one that another transaction has locked; one that does not exist is left out.
    """
    found = select(Task.id).where(Task.id.in_(task_ids)).order_by(Task.id)
    kept = set(await session.scalars(found.with_for_update(read=True, key_share=True, skip_locked=True)))
    missing = set(task_ids) - kept
    locked = (await session.scalars(_EXISTING, {"ids": list(missing)})).all() if missing else ()
    return {**dict.fromkeys(locked, False), **dict.fromkeys(kept, True)}


async def lock_queued(session: Session, limit: int) -> Sequence[Task]:
    """Lock up to `limit` queued tasks, due or held."""
    # Each kind by the index that holds it.
    due, found = (Task.status == TaskStatus.queued, Task.due_at.isnot(None)), list[Task]()
    for kind in (select(Task).where(*due), select(Task).where(*IS_HELD)):
        locked = await session.scalars(kind.order_by(Task.due_at, Task.id).limit(limit - len(found)).with_for_update())
        found += locked.all()
    return found


async def list_unpollable(session: Session, now: datetime, limit: int) -> Sequence[str]:
    """The ids of due tasks that cannot be polled, the longest due first."""
    due = select(Task.id).where(Task.due_at <= now, UNPOLLABLE).order_by(Task.due_at).limit(limit)
    return (await session.scalars(due)).all()


async def lock_unpollable(session: Session, task_id: str, now: datetime) -> Task | None:
    """The task with this id, locked, if it is still due and no other transaction has locked it."""
    due = select(Task).where(Task.id == task_id, Task.due_at <= now, UNPOLLABLE)
    task: Task | None = await session.scalar(due.with_for_update(skip_locked=True))
    return task


async def write_tasks(session: RecordSession, tasks: Iterable[Task | None]) -> None:
    """Write what has changed of these tasks and their clips, with whatever was added to the session."""
    for task in tasks:
        for clip in task.clips if task is not None else ():
            if is_new(clip):
                session.add(clip)
    await session.write()


def _lock_free(
    session: orm.Session, task_ids: Collection[str], beside: tuple[ColumnElement[Any], ...]
) -> tuple[Sequence[Row[Any]], Sequence[Row[Any]], Sequence[str]]:
    """The rows of the tasks that could be locked, of their clips, and the ids of the others that exist."""
    connection = session.connection()
    rows = connection.execute(_locking(beside), _parameters(task_ids)).all()
    locked = {row.id for row in rows}
    # Read behind the locks, so that what their last holders have inserted is seen.
    clips = connection.execute(_CLIPS, _parameters(locked)).all() if locked else []
    missing = set(task_ids) - locked
    found = connection.execute(_EXISTING, _parameters(missing)).scalars().all() if missing else []
    return rows, clips, found


@cache
def _locking(beside: tuple[ColumnElement[Any], ...]) -> Select[Any]:
    found = select(*columns(Task), _IS_HEARD, *beside).where(Task.id.in_(_IDS)).order_by(Task.id)
    return found.with_for_update(skip_locked=True)


def _parameters(ids: Collection[str]) -> dict[str, list[str]]:
    """These ids, some of them twice, so that there is not a statement to prepare for each number of ids."""
    some = list(ids)
    return {"ids": some + some[:1] * ((1 << (len(some) - 1).bit_length()) - len(some))}
