"""Finding and locking tasks and their history."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime

from sqlalchemy import ColumnElement, func, select, tuple_
from sqlalchemy.orm import aliased

from app.db import Session
from app.models import Callback, Event, ResolvedBy, Task, TaskStatus

RECENT = 5


async def find_task(session: Session, task_id: str) -> Task | None:
    """The task with this id, whoever owns it."""
    return await session.get(Task, task_id)


async def lock_task(session: Session, task_id: str) -> Task | None:
    """The same, held against other writers until the transaction ends."""
    return await session.get(Task, task_id, with_for_update=True, populate_existing=True)


async def list_tasks(
    session: Session, where: Sequence[ColumnElement[bool]], after: tuple[datetime, str] | None, limit: int
) -> Sequence[Task]:
    """Tasks that match, newest first, from behind the one that `after` names."""
    query = select(Task).where(*where).order_by(Task.created_at.desc(), Task.id.desc()).limit(limit)
    if after is not None:
        query = query.where(tuple_(Task.created_at, Task.id) < after)
    return (await session.scalars(query)).all()


async def queue_positions(session: Session, tasks: Sequence[Task]) -> Mapping[str, int]:
    """How many submits leave before and with each of these tasks, for those that still wait."""
    waiting = [task.id for task in tasks if task.status is TaskStatus.queued]
    if not waiting:
        return {}
    ahead = aliased(Task)
    position = (
        select(func.count())
        .where(ahead.status == TaskStatus.queued, tuple_(ahead.due_at, ahead.id) <= tuple_(Task.due_at, Task.id))
        .scalar_subquery()
    )
    rows = await session.execute(select(Task.id, position).where(Task.id.in_(waiting)))
    return dict(rows.all())


async def list_events(session: Session, task_id: str, after: int, limit: int) -> Sequence[Event]:
    """A task's events behind a version, oldest first."""
    query = select(Event).where(Event.task_id == task_id, Event.version > after).order_by(Event.version).limit(limit)
    return (await session.scalars(query)).all()


async def list_callbacks(session: Session, task_id: str, after: str, limit: int) -> Sequence[Callback]:
    """A task's callbacks behind an id, oldest first."""
    query = select(Callback).where(Callback.task_id == task_id, Callback.id > after).order_by(Callback.id).limit(limit)
    return (await session.scalars(query)).all()


async def callbacks_stay_away(session: Session) -> bool:
    """Whether every one of the latest tasks to end was found by a poll, though it had a callback URL."""
    latest = (
        select(Task.resolved_by)
        .where(Task.completed_at.isnot(None), Task.resolved_by.isnot(None))
        .order_by(Task.completed_at.desc())
        .limit(RECENT)
    )
    found = (await session.scalars(latest)).all()
    return len(found) == RECENT and all(by is ResolvedBy.poll for by in found)
