"""Which tasks are polled, and in which order: those that callers wait for come first."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

from app.enums import ErrorCode, TaskStatus
from app.models import Task
from app.services import Services
from app.workers.poll import Poll, poll_loop
from tests.support.rows import add_key, add_task
from tests.support.service import services_of

S = TaskStatus
# Of the twenty slots polls may use fifteen, or five while tasks are queued.
RATE = "20/10"


@asynccontextmanager
async def many_given_up(database_url: str) -> AsyncIterator[tuple[Services, str]]:
    """The parts of the service, and the key of sixty tasks that were given up and are due since ten minutes."""
    async with services_of(database_url, upstream_rate=RATE) as services:
        key = await add_key(services.database)
        async with services.database.writes.begin() as session:
            await services.gateway.pacer.prepare(session, await services.database.now(session))
        for _ in range(60):
            await add_due(services, key, S.failed, error_code=ErrorCode.deadline_exceeded)
        yield services, key


async def add_due(services: Services, key: str, status: TaskStatus, minutes: float = 10, **columns: Any) -> Task:
    """Add a task that has been due for that long."""
    now = datetime.now(UTC)
    due = {"submitted_at": now - timedelta(hours=1), "due_at": now - timedelta(minutes=minutes)}
    return await add_task(services.database, key, status, upstream_task_id="up-1", **due, **columns)


async def claim(services: Services) -> list[Poll]:
    return list((await poll_loop(services).claim(20)).items)


async def test_generating_task_is_polled_before_all_that_were_given_up(database_url: str) -> None:
    async with many_given_up(database_url) as (services, key):
        living = await add_due(services, key, S.generating, minutes=1)

        polls = await claim(services)

    assert polls[0].task.id == living.id
    assert len({poll.slot.number for poll in polls}) == len(polls) == 1 + 3


async def test_tasks_that_were_given_up_use_a_fifth_of_the_polls(database_url: str) -> None:
    async with many_given_up(database_url) as (services, key):
        first, second = await claim(services), await claim(services)
        for _ in range(20):
            await add_due(services, key, S.generating, minutes=0)
        living = await claim(services)

    assert (len(first), len(second)) == (3, 0)
    assert {poll.task.status for poll in living} == {S.generating}
    assert len(living) == 15 - 3


async def test_tasks_that_were_given_up_use_one_poll_while_tasks_are_queued(database_url: str) -> None:
    async with many_given_up(database_url) as (services, key):
        await add_due(services, key, S.queued)
        for _ in range(5):
            await add_due(services, key, S.generating, minutes=0)

        living, late = await claim(services), await claim(services)

    assert [poll.task.status for poll in living] == [S.generating] * 5
    assert late == []
