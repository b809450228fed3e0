"""Positions in the queue, and Retry-After, say what really happens next."""

import random
import re
from collections.abc import AsyncIterator
from datetime import timedelta

import pytest
from sqlalchemy import select, update

from app.config import Rate
from app.database.claims import Claim
from app.enums import Priority, TaskStatus
from app.models import ApiKey, Task
from app.tasks.order_schemas import TaskCreate
from app.tasks.queue.estimates import RetryAfterEstimate
from app.tasks.queue.insertion import Order
from app.tasks.queue.positions import QueuePositions
from app.tasks.queue.walks import COUNT_PLACES
from app.tasks.schemas import MAX_QUEUE_POSITION
from tests.support.clock import MORNING
from tests.support.filling import Owner, fill_queued
from tests.support.rows import add_key, lifecycle_of
from tests.support.service import Service, client_with_key, serve
from tests.support.settings import settings_of
from tests.support.statements import COMMIT, recorded

NOON = MORNING + timedelta(hours=4)
LEASE = timedelta(seconds=30)


@pytest.fixture
async def paced(database_url: str) -> AsyncIterator[Service]:
    """A service, without its workers, that submits a task each two seconds."""
    async with serve(database_url, upstream_rate="5/10") as service:
        yield service


@pytest.mark.parametrize("seed", range(6))
async def test_positions_are_the_order_in_which_tasks_are_claimed(service: Service, seed: int) -> None:
    rng, database = random.Random(seed), service.database  # noqa: S311 - of what is ordered
    lifecycle = lifecycle_of(database)
    for number in range(rng.randint(2, 6)):
        key = await add_key(database, f"caller {number}")
        async with database.writes.begin() as session:
            await session.execute(update(ApiKey).where(ApiKey.id == key).values(weight=rng.choice([1, 1, 2, 4, 16])))
            bodies = [
                TaskCreate(prompt="soft rain", priority=rng.choice(list(Priority)), metadata={})
                for _ in range(rng.randint(4, 12))
            ]
            now = MORNING + timedelta(minutes=rng.randint(0, 100))
            await lifecycle.create(session, [Order(key, body) for body in bodies], now)
    # Some have been served before, so that the tags differ.
    async with database.writes.begin() as session:
        await lifecycle.claim_submits(session, Claim(NOON, LEASE, rng.randint(0, 5)))

    async with database.reads() as session:
        waiting = list(await session.scalars(select(Task).where(Task.status == TaskStatus.queued)))
        positions = await QueuePositions(service.services.settings).read(session, rng.sample(waiting, len(waiting)))
        one = rng.choice(waiting)
        alone = await QueuePositions(service.services.settings).read(session, [one])

    claimed: list[Task] = []
    for _ in waiting:
        async with database.writes.begin() as session:
            claimed += await lifecycle.claim_submits(session, Claim(NOON, LEASE, 1))
    assert sorted(positions, key=lambda id_: positions[id_]) == [task.id for task in claimed]
    assert sorted(positions.values()) == list(range(1, len(waiting) + 1))
    assert alone == {one.id: positions[one.id]}


async def test_short_and_long_queues_of_others_are_counted_as_far_as_they_go_before(service: Service) -> None:
    keys = [await add_key(service.database, f"caller {number}") for number in range(40)]
    for key in keys[1:]:
        await fill_queued_of(service, key, 1)
    await fill_queued_of(service, keys[0], 700)
    mine = await add_key(service.database, "mine")
    await fill_queued_of(service, mine, 450)

    async with service.database.reads() as session:
        own = select(Task).where(Task.api_key_id == mine).order_by(Task.due_at, Task.id)
        tasks = (await session.scalars(own)).all()
        asked = [tasks[place] for place in (0, 1, 300, 449)]
        positions = await QueuePositions(service.services.settings).read(session, asked)

    # Each short queue has its one task before the second of mine. The long one takes turns with it, and is older.
    before = [place + 39 + place + 1 for place in (1, 300, 449)]
    assert [positions[task.id] for task in asked][1:] == [count + 1 for count in before]


async def fill_queued_of(service: Service, key: str, count: int) -> None:
    """Add queued tasks to a key, older than those that are added later."""
    lifecycle = lifecycle_of(service.database)
    now = MORNING + timedelta(seconds=int(await _count(service)))
    body = TaskCreate(prompt="soft rain", metadata={})
    async with service.database.writes.begin() as session:
        await lifecycle.create(session, [Order(key, body)] * count, now)


async def _count(service: Service) -> int:
    async with service.database.reads() as session:
        return len((await session.scalars(select(Task.id))).all())


async def test_flood_of_another_key_leaves_a_new_order_near_the_front(service: Service) -> None:
    noisy = await add_key(service.database, "noisy")
    await fill_queued(service.database, [Owner(noisy, "")], 2 * MAX_QUEUE_POSITION)

    first, second = [(await service.client.post("/v1/tasks", json={"prompt": "rain"})).json() for _ in range(2)]

    assert (first["queue_position"], second["queue_position"]) == (2, 4)


async def test_high_priority_goes_before_the_own_others(service: Service) -> None:
    bodies = [{"prompt": "rain", "priority": priority} for priority in ("low", "normal", "high")]
    ids = [(await service.client.post("/v1/tasks", json=body)).json()["id"] for body in bodies]

    tasks = [(await service.client.get(f"/v1/tasks/{task_id}")).json() for task_id in ids]
    listed = (await service.client.get("/v1/tasks")).json()["items"]

    assert [(task["priority"], task["queue_position"]) for task in tasks] == [("low", 3), ("normal", 2), ("high", 1)]
    assert [task["queue_position"] for task in listed] == [1, 2, 3]


async def test_first_in_first_out_counts_all_that_are_older(database_url: str) -> None:
    async with serve(database_url, queue="fifo") as service:
        noisy = await add_key(service.database, "noisy")
        await fill_queued(service.database, [Owner(noisy, "")], 30)

        order = {"prompt": "rain", "priority": "high"}

        assert (await service.client.post("/v1/tasks", json=order)).json()["queue_position"] == 31


async def test_task_that_waits_for_its_budget_has_no_position(service: Service) -> None:
    held = await service.add_task(due_at=None)
    task = await service.create_task()

    assert (await service.task(held.id))["queue_position"] is None
    assert (await service.task(task))["queue_position"] == 1


async def test_look_at_a_queued_task_is_three_statements(service: Service) -> None:
    await fill_queued(
        service.database, [Owner(await add_key(service.database, f"caller {n}"), "") for n in range(5)], 50
    )
    task_id = await service.create_task()
    await service.task(task_id)

    with recorded(service.database) as statements:
        await service.task(task_id)
    with recorded(service.database) as listing:
        assert (await service.client.get("/v1/tasks")).is_success

    assert [len([each for each in some if each != COMMIT]) for some in (statements, listing)] == [3, 5]


async def test_retry_after_is_the_wait_for_the_place_and_the_usual_time(paced: Service) -> None:
    noisy = await add_key(paced.database, "noisy")
    await fill_queued(paced.database, [Owner(noisy, "")], 100)
    async with await client_with_key(paced, "quiet") as quiet:
        answers = [await quiet.post("/v1/tasks", json={"prompt": "rain"}) for _ in range(3)]

    assert [answer.json()["queue_position"] for answer in answers] == [2, 4, 6]
    # Before any task has ended, one takes five seconds.
    assert [answer.headers["Retry-After"] for answer in answers] == ["7", "11", "15"]


def test_wait_for_a_place_is_as_long_as_the_pace_makes_it() -> None:
    estimate = RetryAfterEstimate(Rate(20, timedelta(seconds=10)))

    assert [estimate.from_place(position, 40) for position in (None, 1, 2, 21, 1000)] == [40, 40, 41, 50, 540]
    assert RetryAfterEstimate(Rate(1, timedelta(minutes=1))).from_place(1000, 40) == 3640


def test_queue_is_fair_unless_it_is_told_otherwise() -> None:
    assert settings_of("sqlite+aiosqlite:///x.db").queue == "fair"


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
async def test_place_is_found_by_the_same_indexes_while_there_are_few_tasks(service: Service) -> None:
    """A server keeps a plan that it made for a small table, and the table grows."""
    ids = [await service.create_task() for _ in range(3)]
    async with service.database.writes.begin() as session:
        connection = await session.connection()
        places = COUNT_PLACES["postgresql"].compiled(connection.dialect)
        asked = places.parameters({"ids": ids, "keys": [], "most_own": 999, "most": 999})
        driver = (await connection.get_raw_connection()).driver_connection
        assert driver is not None
        await driver.execute("SET LOCAL plan_cache_mode = force_generic_plan")
        plan = [line for (line,) in await driver.fetch(f"EXPLAIN {places.text}", *asked)]

    used = [re.findall(r"using (\w+) on", line) for line in plan]
    assert [index for found in used for index in found] == ["pk_tasks", "ix_tasks_queue", "ix_tasks_queue"]
