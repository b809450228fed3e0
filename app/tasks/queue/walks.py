"""The queries of the fair queue: walks along `ix_tasks_queue`, which has each key's queued tasks in their order."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from sqlalchemy import (
    CTE,
    JSON,
    ColumnElement,
    Select,
    String,
    TableValuedAlias,
    bindparam,
    case,
    func,
    literal_column,
    select,
    true,
    tuple_,
    type_coerce,
    union_all,
)
from sqlalchemy.orm import aliased

from app.database.base import ID_LENGTH, UtcDateTime
from app.database.fetching import FixedQuery
from app.models import ApiKey, QueueTag, Task

# The row of QueueTag that is no key's: it holds the virtual time.
VIRTUAL_TIME = ""
_NO_KEY: Any = literal_column("''")
# No parameter: a plan for any number of rows might read and sort all of them.
_ONE: Any = literal_column("1")
# The parameters of FIND_SHARES for all keys, those too whose tasks are due later, after a refused submit.
ALL_SHARES = {"due_before": datetime(9999, 1, 1, tzinfo=UTC), "limit": 1_000_000}
DUE_BEFORE = bindparam("due_before", type_=UtcDateTime())


def is_queued(task: Any) -> tuple[ColumnElement[bool], ...]:
    """Whether a task waits, in the words of the index; a parameter would not match them."""
    return task.status == literal_column("'queued'"), task.due_at.isnot(None)


def along_queue(task: Any, *columns: Any) -> Select[Any]:
    """Columns of queued tasks, by the index of the queue: SQLite would choose one with more columns that are equal."""
    found: Select[Any] = select(*columns).where(*is_queued(task))
    return found.with_hint(task, "INDEXED BY ix_tasks_queue", "sqlite")


def own_order(task: Any) -> tuple[Any, ...]:
    """The order of one key's tasks."""
    return task.priority, task.due_at, task.id


def _first(task: Any, after: Any, *columns: Any) -> Select[Any]:
    """The first task that is due, of the first key after this one that has any."""
    due = along_queue(task, *columns).where(task.api_key_id > after, task.due_at <= DUE_BEFORE)
    return due.order_by(task.api_key_id, *own_order(task)).limit(_ONE)


def _walk_postgresql() -> CTE:
    """Each key with a due task, and since when its next one is due, by one step along the index for each."""
    task = aliased(Task)
    walk = _first(Task, _NO_KEY, Task.api_key_id, Task.due_at).cte("walk", recursive=True)
    step = _first(task, walk.c.api_key_id, task.api_key_id, task.due_at).lateral("step")
    return walk.union_all(select(step.c.api_key_id, step.c.due_at).select_from(walk.join(step, true())))


def _walk_sqlite() -> CTE:
    """The same without LATERAL: each step finds both columns as one text, which costs less than to look a row up."""
    task = aliased(Task)
    found = _first(Task, _NO_KEY, _packed(Task)).scalar_subquery()
    packed = select(found.label("packed")).cte("packed", recursive=True)
    key = func.substr(packed.c.packed, 1, ID_LENGTH)
    following = _first(task, key, _packed(task)).correlate(packed).scalar_subquery()
    packed = packed.union_all(select(following).where(packed.c.packed.isnot(None)))
    due_at = type_coerce(func.substr(packed.c.packed, ID_LENGTH + 1), UtcDateTime())
    columns = func.substr(packed.c.packed, 1, ID_LENGTH).label("api_key_id"), due_at.label("due_at")
    return select(*columns).where(packed.c.packed.isnot(None)).cte("walk")


def _packed(task: Any) -> ColumnElement[str]:
    """Whose task it is, and when it is due, as SQLite stores it."""
    return type_coerce(task.api_key_id, String()).concat(type_coerce(task.due_at, String()))


def _find_shares(walk: CTE) -> FixedQuery:
    key, tag = walk.c.api_key_id, func.coalesce(QueueTag.tag, 0.0)
    now = aliased(QueueTag)
    virtual_time = (
        select(func.coalesce(func.max(now.tag), 0.0).label("tag")).where(now.api_key_id == _NO_KEY).cte("now")
    )
    start = case((tag > virtual_time.c.tag, tag), else_=virtual_time.c.tag)
    columns = key.label("key"), walk.c.due_at.label("oldest_at"), start.label("start"), virtual_time.c.tag.label("now")
    tagged = walk.outerjoin(QueueTag, QueueTag.api_key_id == key).join(virtual_time, true())
    ranked = select(*columns).select_from(tagged).order_by("start", "oldest_at", "key")
    found = ranked.limit(bindparam("limit")).subquery()
    weight = select(ApiKey.weight).where(ApiKey.id == found.c.key).scalar_subquery()
    return FixedQuery(select(found.c.key, found.c.oldest_at, found.c.start, weight, found.c.now))


def _count_places(each: str) -> FixedQuery:
    """`each` is the database's function that makes rows of a JSON array."""
    ids, keys = (getattr(func, each)(bindparam(name, type_=JSON)).table_valued("value") for name in ("ids", "keys"))
    asked = _asked(ids, has_lateral=each != "json_each").cte("asked")
    task = aliased(Task)
    place = tuple_(*own_order(task))
    # Only those behind the last one that is asked for, so that a page of one key's tasks walks along them once.
    first = (
        func.coalesce(asked.c.last_priority, literal_column("-1")),
        func.coalesce(asked.c.last_due_at, asked.c.due_at),
    )
    is_between = (
        place >= tuple_(*first, func.coalesce(asked.c.last_id, literal_column("''"))),
        place < tuple_(asked.c.priority, asked.c.due_at, asked.c.id),
    )
    # In the order of the index: while the table is small PostgreSQL would take another, and goes on with that plan.
    walk = along_queue(task, literal_column("1")).order_by(*own_order(task))
    own = walk.where(task.api_key_id == asked.c.api_key_id, *is_between)
    others = walk.where(task.api_key_id == keys.c.value)
    counts = (
        select(
            literal_column("1").label("is_own"), asked.c.id, _count(own.limit(bindparam("most_own")).correlate(asked))
        ),
        select(
            literal_column("0").label("is_own"), keys.c.value, _count(others.limit(bindparam("most")).correlate(keys))
        ),
    )
    counted = union_all(*counts).subquery()
    return FixedQuery(select(*counted.c))


def _asked(ids: TableValuedAlias, *, has_lateral: bool) -> Select[Any]:
    """Queued tasks with their places in their keys' order, and with the place of the last one before that is asked."""
    found: Any = select(Task.api_key_id, Task.status, *own_order(Task))
    # With LATERAL and a limit PostgreSQL looks each up by its id, where it would read a short queue whole. By the id
    # alone: the index of the queue would do too, and has to be read whole for that.
    if has_lateral:
        found = found.where(Task.id == ids.c.value).limit(_ONE).lateral("found")
    else:
        # By the primary key, or SQLite reads all of the queue.
        found = found.with_hint(Task, "INDEXED BY sqlite_autoindex_tasks_1", "sqlite")
        found = found.where(Task.id.in_(select(ids.c.value))).subquery("found")
    place = found.c.priority, found.c.due_at, found.c.id
    before = [
        func.lag(column).over(partition_by=found.c.api_key_id, order_by=place).label(f"last_{column.key}")
        for column in place
    ]
    columns = select(found.c.api_key_id, *place, *before).where(*is_queued(found.c))
    return columns.select_from(ids.join(found, true())) if has_lateral else columns


def _count(rows: Select[Any]) -> Any:
    return select(func.count()).select_from(rows.subquery()).scalar_subquery()


# By dialect: the first `limit` keys of those with a task that is due `due_before`, the next to be served first. Each
# with the columns of a Share, and with the virtual time. Only keys with such tasks cost anything.
FIND_SHARES = {"postgresql": _find_shares(_walk_postgresql()), "sqlite": _find_shares(_walk_sqlite())}
# By dialect: a row (1, task id, count) for each of `ids` that is queued, and (0, key, count) for each of `keys`. The
# first counts a key's tasks since the one that stands before in `ids`, up to `most_own`, the other its first `most`.
COUNT_PLACES = {
    "postgresql": _count_places("json_array_elements_text"),
    "sqlite": _count_places("json_each"),
}
