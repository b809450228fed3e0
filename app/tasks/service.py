"""The use cases on tasks: REST, the drop-in API and the command line call the same functions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime

from app.auth.audit import OPERATOR, record
from app.auth.callers import Caller
from app.database.engine import Database, Session
from app.database.wakeups import ERASURES, notify_on_commit
from app.enums import ResolvedBy, TaskStatus
from app.errors import NotFound, TaskNotFinal
from app.models import Callback, Event, SpentCharge, Task
from app.signed_urls import SignedUrls
from app.storage import references
from app.tasks import repository
from app.tasks.clips import fitting, storage_keys_of, words_of
from app.tasks.lifecycle import TaskLifecycle
from app.tasks.locking import lock_queued
from app.tasks.queue.positions import QueuePositions
from app.tasks.schemas import TaskFilters, TaskRead, read_task
from app.tasks.transitions import FINAL, GIVEN_UP, check_resolution

DISTRUSTED_AT_ONCE = 500


class TaskService:
    """Each method is one use case in one transaction, which it commits. All raise NotFound for another key's task."""

    def __init__(
        self, database: Database, lifecycle: TaskLifecycle, signed_urls: SignedUrls, positions: QueuePositions
    ) -> None:
        self._database, self._lifecycle, self._signed_urls = database, lifecycle, signed_urls
        self._positions = positions

    async def get(self, caller: Caller, task_id: str) -> TaskRead:
        """One task as it stands."""
        async with self._database.reads() as session:
            return await self._read(session, await self._find(session, caller, task_id))

    async def get_row(self, caller: Caller, task_id: str) -> Task:
        """One task as its row with its clips, for the drop-in API and for clips."""
        async with self._database.reads() as session:
            return await self._find(session, caller, task_id)

    async def list(
        self,
        caller: Caller,
        filters: TaskFilters,
        labels: Mapping[str, str],
        after: tuple[datetime, str] | None,
        limit: int,
    ) -> tuple[list[TaskRead], bool]:
        """
        Up to `limit` tasks that the caller may read, newest first, after this position, and whether more follow.

        All but the first have at most MAX_PAGE_WORDS of lyrics together.
        """
        async with self._database.reads() as session:
            key_id = None if caller.is_admin else caller.api_key_id
            found = await repository.list_tasks(session, key_id, filters, labels, after, limit + 1)
            page = found[: min(limit, fitting(words_of(task.clips) for task in found))]
            positions = await self._positions.read(session, page)
            return [read_task(task, positions, self._signed_urls) for task in page], len(found) > len(page)

    async def cancel(self, caller: Caller, task_id: str) -> TaskRead:
        """Stop a task. Raises TaskAlreadyFinal."""
        async with self._database.exclusive(task_id), self._database.writes.begin() as session:
            task = await self._lock(session, caller, task_id)
            now = await self._database.now(session)
            self._lifecycle.cancel(session, task, now)
            if caller.actor != caller.api_key_id:
                record(session, now, caller.actor, "task.canceled", task_id, key=caller.api_key_id)
        return read_task(task, {}, self._signed_urls)

    async def erase(self, caller: Caller, task_id: str) -> None:
        """Delete a task with everything that belongs to it. Raises TaskNotFinal."""
        async with self._database.exclusive(task_id), self._database.writes.begin() as session:
            task = await self._lock(session, caller, task_id)
            if task.status not in FINAL:
                raise TaskNotFinal
            now = await self._database.now(session)
            await erase_tasks(session, [task], now)
            record(session, now, caller.actor, "task.deleted", task_id, key=caller.api_key_id)

    async def resolve(self, actor: str, task_id: str, status: TaskStatus, upstream_task_id: str | None) -> None:
        """Set a task to the status that somebody has found out. Raises NotFound, CannotResolve."""
        async with self._database.exclusive(task_id), self._database.writes.begin() as session:
            task = await repository.lock_task(session, task_id)
            if task is None:
                raise NotFound
            now = await self._database.now(session)
            await resolve(self._lifecycle, session, task, status, upstream_task_id, now)
            record(session, now, actor, "task.resolved", task_id, status=status, upstream_task_id=upstream_task_id)

    async def list_callbacks(
        self, caller: Caller, task_id: str, after: tuple[datetime, str] | None, limit: int
    ) -> tuple[Sequence[Callback], bool]:
        """Up to `limit` callbacks of a task after this position, oldest first, and whether more follow."""
        async with self._database.reads() as session:
            task = await self._find(session, caller, task_id)
            return await repository.list_callbacks(session, task.id, after, limit)

    async def list_events(self, caller: Caller, task_id: str, after: int, limit: int) -> Sequence[Event]:
        """Up to `limit` events of a task after this version, oldest first."""
        async with self._database.reads() as session:
            task = await self._find(session, caller, task_id)
            return await repository.list_events(session, task.id, after, limit)

    async def version_of_event(self, caller: Caller, task_id: str, event_id: str | None) -> int:
        """The version that an event gave its task; 0 for an event that the task does not have."""
        async with self._database.reads() as session:
            task = await self._find(session, caller, task_id)
            event = await repository.find_event(session, task.id, event_id) if event_id else None
            return event.version if event else 0

    async def _find(self, session: Session, caller: Caller, task_id: str) -> Task:
        return caller.require_readable(await repository.find_task(session, task_id))

    async def _lock(self, session: Session, caller: Caller, task_id: str) -> Task:
        return caller.require_owned(await repository.lock_task(session, task_id))

    async def _read(self, session: Session, task: Task) -> TaskRead:
        return read_task(task, await self._positions.read(session, [task]), self._signed_urls)


async def distrust_queue(database: Database, lifecycle: TaskLifecycle) -> int:
    """
    Make every queued task unconfirmed, because it may have been sent since the copy that was restored; return how many.

    Nothing may run on the database meanwhile.
    """
    count, tasks = 0, None
    while tasks is None or tasks:
        async with database.transaction() as (session, now):
            tasks = await lock_queued(session, DISTRUSTED_AT_ONCE)
            for task in tasks:
                lifecycle.mark_unconfirmed(session, task, now)
            if tasks:
                record(session, now, OPERATOR, "queue.distrusted", tasks=len(tasks))
        count += len(tasks)
    return count


async def erase_tasks(session: Session, tasks: Sequence[Task], now: datetime) -> None:
    """
    Delete tasks with their events, callbacks and deliveries.

    What they cost moves to `spent_charges`; their files are removed when no other clip refers to them.
    """
    for task in tasks:
        kept = ("api_key_id", "created_at", "charge", "posts", "counted_charge", "counted_posts")
        session.add(SpentCharge(task_id=task.id, **{name: getattr(task, name) for name in kept}))
        notify_on_commit(session, task.id)
    settled, unsettled = storage_keys_of([clip for task in tasks for clip in task.clips])
    await references.release(session, settled, now)
    await references.release(session, unsettled, now + references.IN_FLIGHT)
    await repository.delete_tasks(session, [task.id for task in tasks])
    notify_on_commit(session, ERASURES)


async def resolve(
    lifecycle: TaskLifecycle,
    session: Session,
    task: Task,
    status: TaskStatus,
    upstream_task_id: str | None,
    now: datetime,
) -> None:
    """
    Set a locked task to the state that an operator found out. Raises CannotResolve.

    `generating` attaches it to an upstream task, which is then polled. A task that an
    operator fails is still revived by a late success.
    """
    check_resolution(task, status, upstream_task_id)
    if status is TaskStatus.generating and upstream_task_id is not None:
        await lifecycle.attach(session, task, upstream_task_id, now)
    elif status is TaskStatus.failed:
        lifecycle.fail(session, task, GIVEN_UP, now, ResolvedBy.operator)
    else:
        lifecycle.finish(session, task, status, now, ResolvedBy.operator)
