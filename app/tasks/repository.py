"""Finding and locking tasks and their history."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from datetime import datetime, timedelta
from itertools import accumulate
from operator import eq, gt, lt
from types import SimpleNamespace
from typing import Any

from sqlalchemy import (
    JSON,
    ColumnElement,
    Select,
    bindparam,
    delete,
    exists,
    func,
    inspect,
    literal,
    select,
    true,
    tuple_,
)
from sqlalchemy.orm import aliased

from app.database.base import Base
from app.database.engine import Database, Session
from app.database.fetching import FixedQuery
from app.enums import ResolvedBy, TaskStatus
from app.models import ApiKey, Callback, Clip, Event, Task, TaskLabel
from app.tasks.event_schemas import History
from app.tasks.schemas import CLIP_COLUMNS, TASK_COLUMNS, TaskFilters

# A failed task is due only where we gave up on it: it may still turn out to have succeeded.
POLLABLE = Task.upstream_task_id.isnot(None)
# More than this many tasks with a label are not counted.
MANY_TASKS = 1_000
RECENT = 5
RECENT_LATENCIES = 20
RECENTLY_RESOLVED = 100
MAX_PAGE_BYTES = 2**20
# What callers see of a task and of its clips.
_SHOWN: Sequence[tuple[type[Base], Sequence[str]]] = (Task, TASK_COLUMNS), (Clip, CLIP_COLUMNS)
WHOLE_TASK = tuple(inspect(table).columns[name] for table, names in _SHOWN for name in names)
_TASK_AND_CLIPS = select(*WHOLE_TASK).select_from(Task.__table__).outerjoin(Clip.__table__, Clip.task_id == Task.id)
_FIND_TASK = FixedQuery(_TASK_AND_CLIPS.where(Task.id == bindparam("task_id")).order_by(Clip.index))


async def find_task(session: Session, task_id: str) -> Task | None:
    """The task with this id, of any caller."""
    return await session.get(Task, task_id)


async def fetch_task(database: Database, task_id: str) -> SimpleNamespace | None:
    """The same by one statement, without a transaction. Raises TRANSIENT."""
    rows = await database.fetch(_FIND_TASK, task_id=task_id)
    return to_task(rows) if rows else None


def to_task(rows: Sequence[Sequence[Any]]) -> SimpleNamespace:
    """A task with its clips, from its rows of WHOLE_TASK: one for each clip, or one."""
    until = len(TASK_COLUMNS)
    clips = [SimpleNamespace(**dict(zip(CLIP_COLUMNS, row[until:], strict=True))) for row in rows]
    task = dict(zip(TASK_COLUMNS, rows[0][:until], strict=True))
    return SimpleNamespace(**task, clips=[clip for clip in clips if clip.task_id is not None])


async def lock_task(session: Session, task_id: str) -> Task | None:
    """The same, locked until the transaction ends."""
    return await session.get(Task, task_id, with_for_update=True, populate_existing=True)


async def delete_tasks(session: Session, task_ids: Sequence[str]) -> None:
    """Delete tasks; their clips, events and callbacks go with them by their foreign keys."""
    await session.execute(delete(Task).where(Task.id.in_(task_ids)).execution_options(synchronize_session=False))


async def list_tasks(
    session: Session,
    api_key_id: str | None,
    filters: TaskFilters,
    labels: Mapping[str, str],
    after: tuple[datetime, str] | None,
    limit: int,
) -> Sequence[Task]:
    """
    Up to `limit` matching tasks of a caller or of all, newest first, after the position `after`: `created_at` and id.

    Their metadata contains all of `labels`.
    """
    query, created_at, id_ = select(Task), Task.created_at, Task.id
    if labels:
        rarest, *others = await _rarest_first(session, api_key_id, labels)
        query = query.join(TaskLabel, TaskLabel.task_id == Task.id).where(*_has_label(TaskLabel, api_key_id, rarest))
        query = query.where(*(_carries(label) for label in others))
        created_at, id_ = TaskLabel.created_at, TaskLabel.task_id
    elif api_key_id is not None:
        query = query.where(Task.api_key_id == api_key_id)
    comparisons: list[tuple[Callable[[Any, Any], Any], Any, object]] = [
        (eq, Task.status, filters.status),
        (eq, Task.model, filters.model),
        (gt, created_at, filters.created_after),
        (lt, created_at, filters.created_before),
    ]
    where = [compare(column, value) for compare, column, value in comparisons if value is not None]
    if after is not None:
        where.append(tuple_(created_at, id_) < after)
    order = created_at.desc(), id_.desc()
    if api_key_id is None and not labels and (filters.status or filters.model):
        query = query.where(Task.id.in_(_newest_of_all_keys(where, limit, session.get_bind().dialect.name)))
    else:
        query = query.where(*where)
    return (await session.scalars(query.order_by(*order).limit(limit))).all()


def _newest_of_all_keys(where: Sequence[ColumnElement[bool]], limit: int, dialect: str) -> Select[Any]:
    """The ids of the newest tasks that meet conditions, out of those of each key: no index has those of all keys."""
    newest = select(Task.id, Task.created_at).where(Task.api_key_id == ApiKey.id, *where).correlate(ApiKey)
    newest = newest.order_by(Task.created_at.desc(), Task.id.desc()).limit(limit)
    # SQLite has no LATERAL; without it PostgreSQL would read all tasks.
    if dialect == "sqlite":
        task: Any = aliased(Task)
        found = select(task.id).join_from(ApiKey, task, task.id.in_(newest.with_only_columns(Task.id)))
        return found.order_by(task.created_at.desc(), task.id.desc()).limit(limit)
    each = newest.lateral()
    joined = select(each.c.id).select_from(ApiKey).join(each, true())
    return joined.order_by(each.c.created_at.desc(), each.c.id.desc()).limit(limit)


async def _rarest_first(
    session: Session, api_key_id: str | None, labels: Mapping[str, str]
) -> Sequence[tuple[str, str]]:
    """
    These labels, the one that fewest tasks have first; those that many have in any order.

    A search walks along the tasks of one label, however common the others are.
    """
    pairs = list(labels.items())
    if len(pairs) == 1:
        return pairs
    some = [select(literal(1)).where(*_has_label(TaskLabel, api_key_id, pair)).limit(MANY_TASKS) for pair in pairs]
    counts = select(*(select(func.count()).select_from(one.subquery()).scalar_subquery() for one in some))
    found = (await session.execute(counts)).one()
    return [pair for _, pair in sorted(zip(found, pairs, strict=True))]


def _has_label(label: Any, api_key_id: str | None, pair: tuple[str, str]) -> tuple[ColumnElement[bool], ...]:
    # For all tasks each caller is looked up: without one the index could not be searched.
    callers = label.api_key_id.in_(select(ApiKey.id)) if api_key_id is None else label.api_key_id == api_key_id
    return callers, label.name == pair[0], label.value == pair[1]


def _carries(pair: tuple[str, str]) -> ColumnElement[bool]:
    label = aliased(TaskLabel)
    return exists().where(label.task_id == Task.id, label.name == pair[0], label.value == pair[1])


async def list_events(session: Session, task_id: str, after: int, limit: int) -> Sequence[Event]:
    """A task's events after a version, oldest first."""
    query = select(Event).where(Event.task_id == task_id, Event.version > after).order_by(Event.version).limit(limit)
    return (await session.scalars(query)).all()


async def find_event(session: Session, task_id: str, event_id: str) -> Event | None:
    """One of a task's events."""
    return await session.scalar(select(Event).where(Event.task_id == task_id, Event.id == event_id))


async def read_history(session: Session, task_id: str, after: int) -> History | None:
    """The state of a task and its events after a version, from one statement; None for a deleted task."""
    is_later = (Event.task_id == Task.id) & (Event.version > after)
    query = select(Task.status, Task.version, Event).outerjoin(Event, is_later).where(Task.id == task_id)
    rows = (await session.execute(query.order_by(Event.version))).all()
    if not rows:
        return None
    status, version, _ = rows[0]
    return History(status, version, [event for _, _, event in rows if event is not None])


async def read_versions(session: Session, task_ids: Collection[str]) -> Mapping[str, int]:
    """The versions of these tasks by id, for those that exist; one parameter for any number of ids."""
    each = func.json_each if session.get_bind().dialect.name == "sqlite" else func.json_array_elements_text
    ids = each(literal(list(task_ids), JSON)).table_valued("value")
    rows = await session.execute(select(Task.id, Task.version).where(Task.id.in_(select(ids.c.value))))
    return dict(rows.all())


async def list_callbacks(
    session: Session, task_id: str, after: tuple[datetime, str] | None, limit: int
) -> tuple[Sequence[Callback], bool]:
    """
    A task's callbacks from behind a position, oldest first, and whether more follow.

    The bodies of all but the first have at most MAX_PAGE_BYTES together.
    """
    position = tuple_(Callback.received_at, Callback.id)
    sizes = select(Callback.id, func.length(Callback.body)).where(Callback.task_id == task_id)
    if after is not None:
        sizes = sizes.where(position > after)
    found = (await session.execute(sizes.order_by(Callback.received_at, Callback.id).limit(limit + 1))).all()
    totals = accumulate(size for _, size in found)
    fitting = max(1, sum(total <= MAX_PAGE_BYTES for total in totals))
    ids = [callback_id for callback_id, _ in found[: min(limit, fitting)]]
    query = select(Callback).where(Callback.id.in_(ids)).order_by(Callback.received_at, Callback.id)
    return (await session.scalars(query)).all(), len(found) > len(ids)


async def recent_latencies(session: Session) -> Sequence[timedelta]:
    """The time from submit to end of up to RECENT_LATENCIES tasks that succeeded, among the latest to be resolved."""
    resolved = (
        select(Task.status, Task.submitted_at, Task.completed_at)
        .where(Task.completed_at.isnot(None), Task.resolved_by.isnot(None))
        .order_by(Task.completed_at.desc())
        .limit(RECENTLY_RESOLVED)
    )
    latest = (await session.execute(resolved)).all()
    spans = [end - start for status, start, end in latest if status is TaskStatus.succeeded and start and end]
    return spans[:RECENT_LATENCIES]


async def are_callbacks_missing(session: Session) -> bool:
    """
    Whether the last RECENT tasks to end were all resolved by polls, although each had a callback URL.

    Read once in a transaction, however many tasks it changes.
    """
    if "callbacks_missing" not in session.info:
        latest = (
            select(Task.resolved_by)
            .where(Task.completed_at.isnot(None), Task.resolved_by.isnot(None))
            .order_by(Task.completed_at.desc())
            .limit(RECENT)
        )
        with session.no_autoflush:
            found = (await session.scalars(latest)).all()
        session.info["callbacks_missing"] = len(found) == RECENT and all(by is ResolvedBy.poll for by in found)
    return bool(session.info["callbacks_missing"])
