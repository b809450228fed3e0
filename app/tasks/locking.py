"""Locking many tasks at once, as records, and writing what has changed of them."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from functools import cache
from typing import Any

from sqlalchemy import BindParameter, ColumnElement, Row, Select, bindparam, select

from app.database.records import RecordSession, columns, is_new
from app.models import Clip, Task
from app.webhooks.outbox import note_callers
from app.webhooks.repository import has_endpoints

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
    connection = await session.connection()
    rows = (await connection.execute(_lock_free(*beside), {"ids": list(task_ids)})).all()
    note_callers(session, {row.api_key_id for row in rows if row.is_heard})
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
    return tasks, rows


async def write_tasks(session: RecordSession, tasks: Iterable[Task | None]) -> None:
    """Write what has changed of these tasks and their clips, with whatever was added to the session."""
    for task in tasks:
        for clip in task.clips if task is not None else ():
            if is_new(clip):
                session.add(clip)
    await session.write()


@cache
def _lock_free(*beside: ColumnElement[Any]) -> Select[Any]:
    found = select(*columns(Task), _IS_HEARD, *beside).where(Task.id.in_(_IDS)).order_by(Task.id)
    return found.with_for_update(skip_locked=True)
