"""Where tasks stand in the queue."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from types import SimpleNamespace
from typing import Any

from sqlalchemy import bindparam, func, literal, select, tuple_

from app.database.engine import Session
from app.database.fetching import FixedQuery
from app.enums import TaskStatus
from app.models import Task
from app.tasks.schemas import MAX_QUEUE_POSITION

_QUEUE_PLACE = tuple_(Task.due_at, Task.id)
_ASKED_PLACE = tuple_(bindparam("due_at", type_=Task.due_at.type), bindparam("task_id", type_=Task.id.type))
_IS_QUEUED = Task.status == TaskStatus.queued, Task.due_at.isnot(None)
_HEAD = select(literal(1)).where(*_IS_QUEUED, _QUEUE_PLACE < _ASKED_PLACE).limit(MAX_QUEUE_POSITION - 1)
_COUNT_BEFORE = FixedQuery(select(func.count()).select_from(_HEAD.subquery()))
_REST = select(Task.id).where(*_IS_QUEUED, _QUEUE_PLACE >= _ASKED_PLACE).order_by(Task.due_at, Task.id)
_LIST_FROM = FixedQuery(_REST.limit(bindparam("limit")))


async def queue_positions(session: Session, tasks: Sequence[Task | SimpleNamespace]) -> Mapping[str, int]:
    """The positions in the queue that `find_positions` finds, by a session."""

    async def fetch(query: FixedQuery, **parameters: object) -> Sequence[Sequence[Any]]:
        return (await session.execute(query.select, parameters)).all()

    return await find_positions(fetch, tasks)


async def find_positions(
    fetch: Callable[..., Awaitable[Sequence[Sequence[Any]]]], tasks: Sequence[Task | SimpleNamespace]
) -> Mapping[str, int]:
    """
    The position from 1 in the queue of each of these tasks that is queued, by id.

    Counted up to MAX_QUEUE_POSITION, which stands for every later position too. `fetch` is
    as `Database.fetch`.
    """
    waiting = sorted((task.due_at, task.id) for task in tasks if task.status is TaskStatus.queued and task.due_at)
    if not waiting:
        return {}
    # Along the index and no further than is counted, however long the queue and the table are.
    asked = {"due_at": waiting[0][0], "task_id": waiting[0][1]}
    first = 1 + (await fetch(_COUNT_BEFORE, **asked))[0][0]
    found = {waiting[0][1]: first}
    if len(waiting) > 1 and first < MAX_QUEUE_POSITION:
        rows = await fetch(_LIST_FROM, **asked, limit=MAX_QUEUE_POSITION - first)
        found |= {row[0]: position for position, row in enumerate(rows, first)}
    # What is not found is behind those that are counted. Or it has left the queue since it was read: it was next.
    is_counted_up = first - 1 + len(found) >= MAX_QUEUE_POSITION - 1
    return {id_: found.get(id_, MAX_QUEUE_POSITION if is_counted_up else 1) for _, id_ in waiting}
