"""Orders that may wait for room: held beyond the budget, and let in when there is some."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import select

from app.auth.callers import Caller
from app.budgets.ledger import LET_IN
from app.enums import Charge, EntryKind, Priority, TaskStatus, Window
from app.models import PeriodicJob, Task
from app.services import Services
from app.tasks.order_schemas import TaskCreate
from app.tasks.repository import lock_task
from app.tasks.service import distrust_queue
from app.workers.periodic import periodic_loop
from tests.budgets.accounts import check_ledger, give, kinds_of
from tests.support.clock import Clock
from tests.support.rows import add_key, reread
from tests.support.service import services_of

K = EntryKind


class Account:
    """A key with a budget of two tasks, what it orders, and what becomes of that as time goes on."""

    def __init__(self, services: Services, clock: Clock, key_id: str) -> None:
        self.services, self.clock, self.key_id = services, clock, key_id
        self.caller = Caller(key_id, is_admin=False)

    async def order(self, **fields: Any) -> str:
        """Order a sound that may wait; return its id."""
        body = TaskCreate.model_validate({"prompt": "rain", "hold": True, **fields})
        return (await self.services.orders.place(self.caller, body)).task.id

    async def cancel(self, task_id: str) -> None:
        await self.services.tasks.cancel(self.caller, task_id)

    async def look(self) -> int:
        """Do what periodic work lets tasks in and is due; return how often it was."""
        looks, loop = 0, periodic_loop(self.services)
        while jobs := [job for job in (await loop.claim(9)).items if job.name == LET_IN]:
            for job in jobs:
                await loop.work(job)
                looks += 1
        return looks

    async def held(self, task_ids: Sequence[str]) -> list[bool]:
        """Which of these tasks are queued and not due."""
        tasks = [await reread(self.services.database, task_id) for task_id in task_ids]
        return [task.status is TaskStatus.queued and task.due_at is None for task in tasks]

    async def job(self) -> PeriodicJob:
        async with self.services.database.reads() as session:
            return (await session.scalars(select(PeriodicJob).where(PeriodicJob.name == LET_IN))).one()


@pytest.fixture
async def account(database_url: str) -> AsyncIterator[Account]:
    clock = Clock()
    async with services_of(database_url, clock) as services:
        key_id = await add_key(services.database)
        await give(services.database, key_id, 5, now=clock.now)
        yield Account(services, clock, key_id)


async def test_held_order_waits_queued_without_an_entry_and_costs_nothing_when_canceled(account: Account) -> None:
    ids = [await account.order() for _ in range(3)]
    task = await account.services.tasks.get(account.caller, ids[2])
    await account.cancel(ids[2])

    assert (task.status, task.queue_position, task.charge) == (TaskStatus.queued, None, Charge.none)
    assert await kinds_of(account.services.database, account.key_id, ids[2]) == []
    assert (await check_ledger(account.services.database, account.key_id)).reserved == 5000
    assert (await account.job()).due_at == account.clock.now.replace(hour=0) + timedelta(days=1)


async def test_room_lets_held_tasks_in_by_priority_and_then_the_oldest(account: Account) -> None:
    ids = [await account.order() for _ in range(2)]
    priorities = Priority.low, Priority.normal, Priority.high, Priority.normal
    held = [await account.order(priority=priority) for priority in priorities]
    assert await account.look() == 0
    found = []
    for task_id in ids:
        await account.cancel(task_id)
        assert await account.look() == 1
        found.append(await account.held(held))

    assert found == [[True, True, False, True], [True, False, False, True]]
    assert await kinds_of(account.services.database, account.key_id, held[2]) == [K.reserve]
    task = await reread(account.services.database, held[2])
    assert (task.version, task.due_at, task.reserved_at) == (2, account.clock.now, account.clock.now)
    assert (await check_ledger(account.services.database, account.key_id)).reserved == 5000


@pytest.mark.parametrize(("credits_", "window"), [(10, Window.day), (None, None), (10, Window.month)])
async def test_larger_budget_lets_held_tasks_in(
    account: Account, credits_: float | None, window: Window | None
) -> None:
    ids = [await account.order() for _ in range(5)]
    await give(account.services.database, account.key_id, credits_, window, account.clock.now)
    await account.look()

    assert sum(await account.held(ids)) == (1 if credits_ else 0)


async def test_next_window_lets_in_what_it_has_room_for(account: Account) -> None:
    ids = [await account.order() for _ in range(5)]
    found = []
    for hours in (15, 2, 24):
        account.clock.advance(hours=hours)
        found.append((await account.look(), sum(await account.held(ids))))

    assert found == [(0, 3), (1, 1), (1, 0)]
    assert (await account.job()).due_at is None
    stored = await check_ledger(account.services.database, account.key_id)
    assert (stored.reserved, stored.balance) == (2500, -12_500)


async def test_what_is_held_while_others_look_is_looked_at_again(account: Account) -> None:
    ids = [await account.order() for _ in range(3)]
    account.clock.advance(hours=16)
    loop = periodic_loop(account.services)
    [job] = [job for job in (await loop.claim(9)).items if job.name == LET_IN]
    async with account.services.database.writes.begin() as session:
        await account.services.lifecycle.let_in(session, account.key_id, account.clock.now, 9)
    ids += [await account.order() for _ in range(2)]
    await loop.work(job)
    found = [sum(await account.held(ids)), (await account.job()).due_at is not None]
    account.clock.advance(hours=24)
    await account.look()

    assert [*found, sum(await account.held(ids))] == [1, True, 0]


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
async def test_held_task_that_somebody_looks_at_meanwhile_is_let_in_after_that(account: Account) -> None:
    ids = [await account.order() for _ in range(3)]
    account.clock.advance(hours=16)
    async with account.services.database.writes.begin() as session:
        # As a request to delete it does, which is refused.
        await lock_task(session, ids[2])
        looking = asyncio.create_task(account.look())
        await asyncio.wait([looking], timeout=0.5)
    await looking
    account.clock.advance(minutes=5)
    await account.look()

    assert await account.held(ids) == [False] * 3


async def test_key_without_a_budget_is_never_held(account: Account) -> None:
    await give(account.services.database, account.key_id, None, None, account.clock.now)

    assert await account.held([await account.order() for _ in range(3)]) == [False] * 3


async def test_held_task_of_a_restored_backup_may_have_been_sent_since(account: Account) -> None:
    ids = [await account.order() for _ in range(3)]
    assert await distrust_queue(account.services.database, account.services.lifecycle) == 3

    async with account.services.database.reads() as session:
        tasks = (await session.scalars(select(Task).where(Task.id.in_(ids)))).all()
    assert {(task.status, task.charge) for task in tasks} == {(TaskStatus.unconfirmed, Charge.possible)}
    assert (await check_ledger(account.services.database, account.key_id)).reserved == 7500
