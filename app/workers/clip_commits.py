"""Stores what the archive loop has found: clips that wait while one commit is under way share the next one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from sqlalchemy import select, update

from app.database.claims import ClaimLost
from app.database.engine import Database, Session
from app.database.group_commit import GroupCommit, RowLocked
from app.database.records import record_sessions
from app.models import Clip, Task
from app.observability.metrics import Metrics
from app.storage import references
from app.tasks.locking import keep_free_tasks, lock_free_tasks, write_tasks

# Clips that one commit changes at most.
MAX_IN_A_COMMIT = 50
FileColumn = Literal["storage_key", "image_key"]
COLUMNS: Sequence[FileColumn] = "storage_key", "image_key"


@dataclass(frozen=True, slots=True)
class LockedClip:
    """A claimed clip and its task, locked in a transaction."""

    session: Session
    task: Task
    clip: Clip
    now: datetime


# What is written of a clip; where a commit fails it is called again, with rows that are read anew.
Change = Callable[[LockedClip], None]


@dataclass(frozen=True, slots=True, eq=False)
class _Reservation:
    clip: Clip
    column: FileColumn
    key: str


class ClipCommits:
    """Writes claimed clips. Methods raise ClaimLost, TRANSIENT, and DatabaseUnavailable where the task is locked."""

    def __init__(self, database: Database, metrics: Metrics) -> None:
        self._database, self._sessions = database, record_sessions(database.writes)
        observe = metrics.batches["clips"].observe
        self._changes = GroupCommit(self._change, MAX_IN_A_COMMIT, is_idempotent=True, observe=observe)
        self._reservations = GroupCommit(self._reserve, MAX_IN_A_COMMIT, is_idempotent=True, observe=observe)

    async def change(self, clip: Clip, change: Change) -> None:
        """Change a claimed clip; committed when this returns."""
        await self._changes.add_patiently((clip, change), self._database.limits.lock_timeout)

    async def reserve(self, clip: Clip, column: FileColumn, key: str) -> bool:
        """
        Let a claimed clip refer to a storage key, before the file is written: nobody removes the file from then on.

        False while an equal file is being removed.
        """
        reservation = _Reservation(clip, column, key)
        return await self._reservations.add_patiently(reservation, self._database.limits.lock_timeout)

    async def _change(self, take: Callable[[], Sequence[tuple[Clip, Change]]]) -> Sequence[Exception | None]:
        async with self._sessions.begin() as session:
            now = await self._database.begin_briefly(session)
            batch = take()
            # Lock order: task, then clip.
            tasks, _ = await lock_free_tasks(session, {clip.task_id for clip, _ in batch})
            fences = await _lock_fences(session, [clip for clip, _ in batch if tasks.get(clip.task_id)])
            outcomes: list[Exception | None] = []
            for claimed, change in batch:
                task = tasks.get(claimed.task_id)
                if task is None:
                    outcomes.append(RowLocked() if claimed.task_id in tasks else ClaimLost())
                elif fences.get(claimed.id) != claimed.fence:
                    outcomes.append(ClaimLost())
                else:
                    [clip] = (clip for clip in task.clips if clip.id == claimed.id)
                    change(LockedClip(session, task, clip, now))
                    outcomes.append(None)
            await write_tasks(session, tasks.values())
        return outcomes

    async def _reserve(self, take: Callable[[], Sequence[_Reservation]]) -> Sequence[bool | Exception]:
        async with self._database.writes.begin() as session:
            now = await self._database.begin_briefly(session)
            batch = take()
            # Lock order: task, stored object, clip, as where tasks are erased: that would miss a key that comes late.
            tasks = await keep_free_tasks(session, {each.clip.task_id for each in batch})
            kept = [each for each in batch if tasks.get(each.clip.task_id)]
            free = await references.reserve(session, {each.key for each in kept})
            fences = await _lock_fences(session, [each.clip for each in kept])
            held = [each for each in kept if fences.get(each.clip.id) == each.clip.fence]
            done = [each for each in held if each.key in free]
            for column in COLUMNS:
                rows = [{"id": each.clip.id, column: each.key} for each in done if each.column == column]
                if rows:
                    await session.execute(update(Clip), rows)
            # Keys that were replaced, and new ones of claims that are lost: the clip refers to neither.
            unused = {getattr(each.clip, each.column) for each in done} | {
                each.key for each in kept if each not in held
            }
            unused -= {None, *(each.key for each in done)}
            await references.release(session, sorted(unused), now + references.IN_FLIGHT)
        lost = (RowLocked() if tasks.get(each.clip.task_id) is False else ClaimLost() for each in batch)
        return [each.key in free if each in held else reason for each, reason in zip(batch, lost, strict=True)]


async def _lock_fences(session: Session, clips: Sequence[Clip]) -> dict[str, str | None]:
    """Lock these clips; return the fences that they have now, by id."""
    if not clips:
        return {}
    found = select(Clip.id, Clip.fence).where(Clip.id.in_([clip.id for clip in clips])).order_by(Clip.id)
    return dict((await session.execute(found.with_for_update())).all())
