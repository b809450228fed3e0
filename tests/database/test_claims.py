"""Due rows: claimed by lease, settled by fence."""

import asyncio
from collections.abc import Sequence
from datetime import timedelta

from app.database.claims import Claim, Claims, lock_claimed
from app.database.engine import Database
from app.enums import TaskStatus
from app.models import PeriodicJob, Task
from tests.support.clock import MORNING
from tests.support.rows import add_key, add_task

LEASE = timedelta(seconds=30)


async def test_row_falls_due_again_when_its_worker_dies(database: Database) -> None:
    await _add_jobs(database, 1)

    first = await _claim(database)
    meanwhile = await _claim(database, LEASE - timedelta(microseconds=1))
    afterwards = await _claim(database, LEASE)

    assert ([len(first), len(meanwhile), len(afterwards)], afterwards[0].attempts) == ([1, 0, 1], 2)


async def test_two_claimers_never_share_a_row(database: Database, database_url: str) -> None:
    await _add_jobs(database, 60)
    other = Database(database_url)

    rounds = await asyncio.gather(*(_claim(claimer, limit=4) for _ in range(8) for claimer in (database, other)))
    await other.close()

    taken = [job.name for claimed in rounds for job in claimed]
    assert len(taken) == len(set(taken))
    assert max(len(claimed) for claimed in rounds) <= 4
    assert len(taken) + len(await _claim(database, limit=100)) == 60


async def test_fence_refuses_a_worker_whose_claim_was_taken_over(database: Database) -> None:
    await _add_jobs(database, 1)
    [earlier] = await _claim(database)
    [holder] = await _claim(database, LEASE)

    async with database.writes.begin() as session:
        refused = await lock_claimed(session, PeriodicJob, earlier.name, earlier.fence)
        held = await lock_claimed(session, PeriodicJob, holder.name, holder.fence)

    assert refused is None
    assert held is not None


async def test_oldest_rows_are_claimed_first_and_no_more_than_asked_for(database: Database) -> None:
    await _add_jobs(database, 5)

    claimed = await _claim(database, limit=2)
    rest = await _claim(database)

    assert {job.name for job in claimed} == {"job 4", "job 3"}
    assert {job.name for job in rest} == {"job 2", "job 1", "job 0"}


async def test_rows_that_are_not_due_are_left_alone(database: Database) -> None:
    async with database.writes.begin() as session:
        session.add(PeriodicJob(name="never", due_at=None, attempts=0, detail={}))
        session.add(PeriodicJob(name="later", due_at=MORNING + timedelta(microseconds=1), attempts=0, detail={}))
        session.add(PeriodicJob(name="now", due_at=MORNING, attempts=0, detail={}))

    assert [job.name for job in await _claim(database)] == ["now"]


async def test_claim_sets_values_in_the_same_statement(database: Database) -> None:
    owner = await add_key(database)
    queued = await add_task(database, owner)
    generating = await add_task(database, owner, TaskStatus.generating)
    claim = Claim(MORNING, LEASE, 10)

    async with database.writes.begin() as session:
        is_queued = Task.status == TaskStatus.queued
        claims = Claims(Task, is_queued, values={"status": TaskStatus.submitting, "posts": Task.posts + 1})
        claimed = await claims.claim(session, claim)

    assert [(task.id, task.status, task.posts) for task in claimed] == [(queued.id, TaskStatus.submitting, 1)]
    assert claimed[0].due_at == MORNING + LEASE
    assert claimed[0].id != generating.id


async def test_claim_that_is_not_committed_leaves_the_row_due(database: Database) -> None:
    await _add_jobs(database, 1)

    async with database.writes() as session:
        await Claims(PeriodicJob).claim(session, Claim(MORNING, LEASE, 10))
        await session.rollback()

    assert len(await _claim(database)) == 1


async def _add_jobs(database: Database, count: int) -> None:
    async with database.writes.begin() as session:
        for number in range(count):
            due_at = MORNING - timedelta(seconds=number)
            session.add(PeriodicJob(name=f"job {number}", due_at=due_at, attempts=0, detail={}))


async def _claim(database: Database, later: timedelta = timedelta(), limit: int = 10) -> Sequence[PeriodicJob]:
    async with database.writes.begin() as session:
        return await Claims(PeriodicJob).claim(session, Claim(MORNING + later, LEASE, limit))
