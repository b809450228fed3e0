"""Where tasks stand in the queue."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from itertools import accumulate, groupby
from math import ceil
from operator import attrgetter
from types import SimpleNamespace
from typing import Any

from sqlalchemy import bindparam, func, literal, select, tuple_

from app.config import Settings
from app.config.database_url import is_sqlite
from app.database.engine import Session
from app.database.fetching import FixedQuery
from app.enums import Priority, TaskStatus
from app.models import Task
from app.tasks.queue.shares import Share
from app.tasks.queue.walks import ALL_SHARES, COUNT_PLACES, FIND_SHARES
from app.tasks.schemas import MAX_QUEUE_POSITION

Fetch = Callable[..., Awaitable[Sequence[Sequence[Any]]]]
Waiting = Task | SimpleNamespace

# How much further the tasks of other keys are counted where the last count did not suffice.
FURTHER = 4
_PRIORITIES = list(Priority)
_QUEUE_PLACE = tuple_(Task.due_at, Task.id)
_ASKED_PLACE = tuple_(bindparam("due_at", type_=Task.due_at.type), bindparam("task_id", type_=Task.id.type))
_IS_QUEUED = Task.status == TaskStatus.queued, Task.due_at.isnot(None)
_HEAD = select(literal(1)).where(*_IS_QUEUED, _QUEUE_PLACE < _ASKED_PLACE).limit(MAX_QUEUE_POSITION - 1)
_COUNT_BEFORE = FixedQuery(select(func.count()).select_from(_HEAD.subquery()))
_REST = select(Task.id).where(*_IS_QUEUED, _QUEUE_PLACE >= _ASKED_PLACE).order_by(Task.due_at, Task.id)
_LIST_FROM = FixedQuery(_REST.limit(bindparam("limit")))


class QueuePositions:
    """
    The positions from 1 of queued tasks, by the order that SOUNDPOST_QUEUE names.

    Counted along an index up to MAX_QUEUE_POSITION, which stands for every later position too,
    however long the queue and the table are. A task that waits for its budget has none.
    """

    def __init__(self, settings: Settings) -> None:
        dialect = "sqlite" if is_sqlite(settings.database_url) else "postgresql"
        self._find_shares, self._count_places = FIND_SHARES[dialect], COUNT_PLACES[dialect]
        self._is_fair = settings.queue == "fair"

    async def read(self, session: Session, tasks: Sequence[Waiting]) -> Mapping[str, int]:
        """The positions that `find` finds, by a session."""

        async def fetch(query: FixedQuery, **parameters: object) -> Sequence[Sequence[Any]]:
            return (await session.execute(query.select, parameters)).all()

        return await self.find(fetch, tasks)

    async def find(self, fetch: Fetch, tasks: Sequence[Waiting]) -> Mapping[str, int]:
        """The position of each of these tasks that is queued, by id; `fetch` is as `Database.fetch_shared`."""
        waiting = [task for task in tasks if task.status is TaskStatus.queued and task.due_at]
        if not waiting:
            return {}
        return await (self._find_fair if self._is_fair else _find_oldest_first)(fetch, waiting)

    async def _find_fair(self, fetch: Fetch, waiting: Sequence[Waiting]) -> Mapping[str, int]:
        """Where each would be if the queue were served as it is now: the tasks before it, of its key and of others."""
        shares = {row[0]: Share(*row[:-1]) for row in await fetch(self._find_shares, **ALL_SHARES)}
        asked = {task.api_key_id for task in waiting}
        others = [key for key in shares if asked != {key}]
        most = ceil(MAX_QUEUE_POSITION / max(1, len(others)))
        ids = tuple(task.id for task in waiting)
        rows = await fetch(self._count_places, ids=ids, keys=tuple(others), most=most, most_own=MAX_QUEUE_POSITION)
        own = _places({row[1]: row[2] for row in rows if row[0]}, waiting)
        counts = {row[1]: row[2] for row in rows if not row[0]}
        while True:
            queue = _Queue(shares, counts, most)
            found = {task.id: queue.position(task.api_key_id, own.get(task.id)) for task in waiting}
            if not queue.unknown:
                return found
            most = min(most * FURTHER, MAX_QUEUE_POSITION)
            further = {"ids": (), "keys": tuple(queue.unknown), "most": most, "most_own": 0}
            counts |= {row[1]: row[2] for row in await fetch(self._count_places, **further)}


class _Queue:
    """The queued tasks of each key by their number, which is counted up to `most`; `unknown` are keys with too few."""

    def __init__(self, shares: Mapping[str, Share], counts: Mapping[str, int], most: int) -> None:
        self._shares, self._counts, self._most = shares, counts, most
        self.unknown: set[str] = set()

    def position(self, key: str, place: int | None) -> int:
        """The position of a key's task at this place from 0; of one that has left the queue: it was next."""
        share = self._shares.get(key)
        if share is None or place is None:
            return 1
        start, before, unknown = share.start_of(place), place, set()
        for other, count in self._counts.items():
            if other == key or other not in self._shares:
                continue
            wanted = self._shares[other].before(start, share)
            before += min(wanted, count)
            if wanted > count == self._most < MAX_QUEUE_POSITION:
                unknown.add(other)
            if before >= MAX_QUEUE_POSITION:
                return MAX_QUEUE_POSITION
        self.unknown |= unknown
        return min(before + 1, MAX_QUEUE_POSITION)


def _places(gaps: Mapping[str, int], waiting: Sequence[Waiting]) -> Mapping[str, int]:
    """The place from 0 of each queued task among its key's, of which `gaps` counts those since the one before."""
    in_order = sorted(
        waiting, key=lambda task: (task.api_key_id, _PRIORITIES.index(task.priority), task.due_at, task.id)
    )
    places: dict[str, int] = {}
    for _, own in groupby(in_order, key=attrgetter("api_key_id")):
        ids = [task.id for task in own if task.id in gaps]
        places |= zip(ids, accumulate(gaps[id_] for id_ in ids), strict=True)
    return places


async def _find_oldest_first(fetch: Fetch, tasks: Sequence[Waiting]) -> Mapping[str, int]:
    waiting = sorted((task.due_at, task.id) for task in tasks)
    asked = {"due_at": waiting[0][0], "task_id": waiting[0][1]}
    first = 1 + (await fetch(_COUNT_BEFORE, **asked))[0][0]
    found = {waiting[0][1]: first}
    if len(waiting) > 1 and first < MAX_QUEUE_POSITION:
        rows = await fetch(_LIST_FROM, **asked, limit=MAX_QUEUE_POSITION - first)
        found |= {row[0]: position for position, row in enumerate(rows, first)}
    # What is not found is behind those that are counted. Or it has left the queue since it was read: it was next.
    is_counted_up = first - 1 + len(found) >= MAX_QUEUE_POSITION - 1
    return {id_: found.get(id_, MAX_QUEUE_POSITION if is_counted_up else 1) for _, id_ in waiting}
