"""What the archive loop stores of clips, while others write and erase their tasks."""

from __future__ import annotations

import asyncio

import pytest
from sqlalchemy import select, update

from app.database.claims import ClaimLost
from app.database.engine import Database
from app.enums import TaskStatus
from app.models import Clip, StoredObject, Task
from app.observability.metrics import Metrics
from app.tasks.repository import delete_tasks, lock_task
from app.workers.clip_commits import ClipCommits
from tests.support.clock import MORNING
from tests.support.rows import add_key, add_task


async def test_no_key_is_reserved_for_a_task_that_is_being_erased(database: Database) -> None:
    task, clip = await _add_claimed(database)

    async with database.writes.begin() as session:
        # With its clips: a key that one of them gets from here on would not be released.
        await lock_task(session, task.id)
        reserving = asyncio.create_task(ClipCommits(database, Metrics()).reserve(clip, "storage_key", "sha256/1"))
        await asyncio.sleep(0.3)
        was_done = reserving.done()
        await delete_tasks(session, [task.id])
    with pytest.raises(ClaimLost):
        await reserving

    assert not was_done
    async with database.reads() as session:
        assert (await session.scalars(select(StoredObject))).all() == []


async def test_key_of_a_claim_that_is_lost_falls_due_to_be_removed(database: Database) -> None:
    _, clip = await _add_claimed(database)
    async with database.writes.begin() as session:
        await session.execute(update(Clip).values(fence="another's"))

    with pytest.raises(ClaimLost):
        await ClipCommits(database, Metrics()).reserve(clip, "storage_key", "sha256/1")

    async with database.reads() as session:
        [stored] = await session.scalars(select(StoredObject))
        assert (stored.key, stored.due_at is None) == ("sha256/1", False)
        assert await session.scalar(select(Clip.storage_key)) is None


async def _add_claimed(database: Database) -> tuple[Task, Clip]:
    task = await add_task(database, await add_key(database), status=TaskStatus.succeeded)
    clip = Clip(task_id=task.id, index=0, created_at=MORNING, attempts=1, due_at=MORNING, fence="mine")
    async with database.writes.begin() as session:
        session.add(clip)
    return task, clip
