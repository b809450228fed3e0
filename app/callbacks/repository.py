"""Queries on stored callbacks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from datetime import datetime

from sqlalchemy import BindParameter, bindparam, func, select

from app.database.engine import Session
from app.database.records import RecordSession, columns, is_new
from app.models import Callback, Clip, Task

_IDS: BindParameter[list[str]] = bindparam("ids", expanding=True)
_KEPT = select(func.count()).where(Callback.task_id == Task.id).scalar_subquery().label("kept")
_LOCK_FREE = select(*columns(Task), _KEPT).where(Task.id.in_(_IDS)).order_by(Task.id).with_for_update(skip_locked=True)
_EXISTING = select(Task.id).where(Task.id.in_(_IDS))
_CLIPS = select(*columns(Clip)).where(Clip.task_id.in_(_IDS)).order_by(Clip.index)


async def lock_free_tasks(
    session: RecordSession, task_ids: Collection[str]
) -> tuple[Mapping[str, Task | None], Counter[str]]:
    """
    Lock these tasks, and count the callbacks of each that are stored, by id.

    The tasks are records, with their clips. None is one that another transaction has locked; one that does not exist
    is left out.
    """
    connection = await session.connection()
    rows = (await connection.execute(_LOCK_FREE, {"ids": list(task_ids)})).all()
    kept = Counter({row.id: row.kept for row in rows})
    locked = {task.id: task for task in session.load(Task, rows)}
    for task in locked.values():
        task.clips = []
    if locked:
        # Read behind the locks, so that what their last holders have inserted is seen.
        clips = (await connection.execute(_CLIPS, {"ids": list(locked)})).all()
        for clip in session.load(Clip, clips):
            locked[clip.task_id].clips.append(clip)
    tasks: dict[str, Task | None] = {**locked}
    if missing := set(task_ids) - set(locked):
        found = await connection.execute(_EXISTING, {"ids": list(missing)})
        tasks.update(dict.fromkeys(found.scalars()))
    return tasks, kept


async def write_tasks(session: RecordSession, tasks: Iterable[Task | None]) -> None:
    """Write what has changed of these tasks and their clips, with whatever was added to the session."""
    for task in tasks:
        for clip in task.clips if task is not None else ():
            if is_new(clip):
                session.add(clip)
    await session.write()


async def find_callbacks(session: Session, task_id: str | None, since: datetime | None) -> list[str]:
    """The ids of the stored callbacks, in the order of arrival; None leaves a condition out."""
    wanted = select(Callback.id).order_by(Callback.received_at, Callback.id)
    if task_id is not None:
        wanted = wanted.where(Callback.task_id == task_id)
    if since is not None:
        wanted = wanted.where(Callback.received_at >= since)
    return list(await session.scalars(wanted))
