"""The upstream's rate is shared by the keys' weights, within each key by priority, and no slot is wasted."""

import asyncio
import random
from collections import Counter
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import select, update

from app.database.claims import Claim
from app.database.engine import Database
from app.enums import Priority, TaskStatus
from app.models import ApiKey, QueueTag, Task
from app.tasks.lifecycle import TaskLifecycle
from app.tasks.order_schemas import TaskCreate
from app.tasks.queue.insertion import Order
from app.tasks.queue.shares import Share, choose
from app.tasks.repository import lock_task
from tests.support.clock import MORNING
from tests.support.rows import add_key, lifecycle_of, reread
from tests.support.statements import COMMIT, recorded

NOON = MORNING + timedelta(hours=4)
LEASE = timedelta(seconds=30)


def test_next_is_the_smallest_start_tag_and_the_oldest_among_equals() -> None:
    shares = [_share("late", 1.0), _share("young", 0.0, minutes=5), _share("old", 0.0)]

    assert [choose(shares, limit) for limit in (0, 1, 2, 4)] == [
        {},
        {"old": 1},
        {"old": 1, "young": 1},
        {"old": 2, "young": 1, "late": 1},
    ]


@pytest.mark.parametrize("weights", [(1, 1), (3, 1), (100, 1), (2, 3)])
def test_shares_are_as_the_weights_whatever_the_order(weights: tuple[int, int]) -> None:
    shares = [_share(f"key {number}", 0.0, weight=weight) for number, weight in enumerate(weights)]

    chosen = choose(shares, 50 * sum(weights))

    assert all(abs(chosen[share.key] - 50 * share.weight) <= 1 for share in shares)


def test_place_before_another_key_counts_what_is_served_until_then() -> None:
    mine, theirs = _share("mine", 0.0, minutes=5), _share("theirs", 0.0, weight=3)

    # At equal start tags theirs is older.
    assert [theirs.before(mine.start_of(place), mine) for place in range(3)] == [1, 4, 7]
    assert [mine.before(theirs.start_of(place), theirs) for place in range(5)] == [0, 1, 1, 1, 2]
    assert _share("late", 9.0).before(mine.start, mine) == 0


@pytest.mark.parametrize("at_once", [1, 2, 20])
async def test_one_order_goes_before_the_flood_of_another_key(database: Database, at_once: int) -> None:
    noisy, quiet = await add_key(database, "noisy"), await add_key(database, "quiet")
    await _order(database, noisy, 1000)
    # The noisy one has had the rate for itself so far.
    await _claim_all(database, [at_once] * 3)
    await _order(database, quiet, 1, now=MORNING + timedelta(hours=1))

    claimed = await _claim_all(database, [1, 1] if at_once == 1 else [at_once])

    assert quiet in claimed


@pytest.mark.parametrize("bursts", [[1] * 200, [7, 1, 20, 12] * 5])
async def test_weights_of_three_to_one_give_three_to_one(database: Database, bursts: Sequence[int]) -> None:
    heavy, light = await add_key(database, "heavy"), await add_key(database, "light")
    await _set_weight(database, heavy, 3)
    await _order(database, light, 200)
    await _order(database, heavy, 200)

    served = Counter(await _claim_all(database, bursts))

    assert served.total() == 200
    assert abs(served[heavy] - 150) <= 2


async def test_idle_time_earns_nothing_and_costs_nothing(database: Database) -> None:
    busy, idle = await add_key(database, "busy"), await add_key(database, "idle")
    await _order(database, idle, 5)
    await _claim_all(database, [5])
    await _order(database, busy, 200)
    await _claim_all(database, [1] * 60)
    await _order(database, idle, 50)

    served = Counter(await _claim_all(database, [1] * 40))

    assert abs(served[idle] - 20) <= 1


async def test_no_slot_is_wasted_while_anything_is_due(database: Database) -> None:
    small = [await add_key(database, f"small {number}") for number in range(9)]
    for number, key in enumerate(small):
        await _order(database, key, 1 + number % 3)
    large = await add_key(database, "large")
    await _order(database, large, 100)

    with recorded(database) as statements:
        claimed = Counter(await _claim_all(database, [40]))

    assert claimed == {**{key: 1 + number % 3 for number, key in enumerate(small)}, large: 22}
    # Two rounds: what the small ones leave goes to the large one.
    assert len([statement for statement in statements if "UPDATE tasks" in statement.sql]) <= 4


async def test_last_tasks_of_a_queue_are_claimed_with_slots_to_spare(database: Database) -> None:
    keys = [await add_key(database, f"caller {number}") for number in range(3)]
    for key in keys:
        await _order(database, key, 2)

    assert Counter(await _claim_all(database, [20])) == dict.fromkeys(keys, 2)
    assert await _claim_all(database, [20]) == []


async def test_priority_orders_a_keys_own_tasks_and_takes_nothing_of_others(database: Database) -> None:
    eager, plain = await add_key(database, "eager"), await add_key(database, "plain")
    await _order(database, plain, 10)
    for priority in (Priority.low, Priority.normal, Priority.high):
        await _order(database, eager, 3, priority=priority)

    tasks = [task for _ in range(18) for task in await _claim(database, 1)]

    assert Counter(task.api_key_id for task in tasks) == {plain: 9, eager: 9}
    own = [task.priority.value for task in tasks if task.api_key_id == eager]
    assert own == 3 * ["high"] + 3 * ["normal"] + 3 * ["low"]


async def test_first_in_first_out_takes_the_oldest_whosever_it_is(database: Database) -> None:
    noisy, quiet = await add_key(database, "noisy"), await add_key(database, "quiet")
    await _order(database, noisy, 30)
    await _order(database, quiet, 1, now=MORNING + timedelta(hours=1), priority=Priority.high)

    claimed = [task.api_key_id for task in await _claim(database, 31, lifecycle_of(database, queue="fifo"))]

    assert Counter(claimed) == {noisy: 30, quiet: 1}
    assert await _tags(database) == {}


async def test_claim_that_is_rolled_back_takes_no_share(database: Database) -> None:
    key = await add_key(database)
    await _order(database, key, 3)
    await _claim(database, 1)
    before = await _tags(database)

    async with database.writes() as session, session.begin() as transaction:
        assert await lifecycle_of(database).claim_submits(session, Claim(NOON, LEASE, 2))
        await transaction.rollback()

    assert await _tags(database) == before
    assert len(await _claim(database, 5)) == 2


async def test_task_that_is_due_later_holds_up_neither_its_key_nor_others(database: Database) -> None:
    refused, other = await add_key(database, "refused"), await add_key(database, "other")
    await _order(database, refused, 2, priority=Priority.high)
    await _order(database, refused, 1)
    await _order(database, other, 1)
    lifecycle = lifecycle_of(database)
    async with database.writes.begin() as session:
        for task in await lifecycle.claim_submits(session, Claim(NOON, LEASE, 1)):
            lifecycle.requeue(session, task, NOON, NOON + timedelta(seconds=15))

    claimed = await _claim(database, 10)
    later = await _claim(database, 10, now=NOON + timedelta(seconds=20))

    assert Counter((task.api_key_id, task.priority) for task in claimed) == {
        (refused, Priority.high): 1,
        (refused, Priority.normal): 1,
        (other, Priority.normal): 1,
    }
    assert [(task.api_key_id, task.posts) for task in later] == [(refused, 2)]


async def test_task_that_waits_for_its_budget_is_not_claimed(database: Database) -> None:
    key = await add_key(database)
    await _order(database, key, 2)
    async with database.writes.begin() as session:
        held = (await session.scalars(select(Task).limit(1))).one()
        held.due_at = None

    assert [task.id for task in await _claim(database, 5)] != [held.id]
    assert (await reread(database, held.id)).status is TaskStatus.queued


async def test_claim_is_few_statements_however_many_keys_it_serves(database: Database) -> None:
    for number in range(8):
        await _order(database, await add_key(database, f"caller {number}"), 5)
    await _claim(database, 1)

    with recorded(database) as statements:
        assert len(await _claim(database, 8)) == 8

    own = [statement for statement in statements if statement != COMMIT and "BEGIN" not in statement.sql]
    assert len(own) == 4


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
async def test_tasks_that_others_hold_leave_their_slots_to_the_next(database: Database) -> None:
    locked, free = await add_key(database, "locked"), await add_key(database, "free")
    await _order(database, locked, 2)
    await _order(database, free, 2, now=MORNING + timedelta(hours=1))

    async with database.writes.begin() as session:
        ids = (await session.scalars(select(Task.id).where(Task.api_key_id == locked))).all()
        for task_id in ids:
            await lock_task(session, task_id)
        claimed = await _claim_all(database, [1, 1])

    assert claimed == [free, free]
    assert await _claim_all(database, [5]) == [locked, locked]


@pytest.mark.parametrize("at_once", [1, 7])
async def test_replicas_share_one_order_of_service(database_url: str, at_once: int) -> None:
    replicas = [Database(database_url) for _ in range(3)]
    heavy, light = await add_key(replicas[0], "heavy"), await add_key(replicas[0], "light")
    await _set_weight(replicas[0], heavy, 3)
    await _order(replicas[0], light, 100)
    await _order(replicas[0], heavy, 100)
    served: list[str] = []

    async def serve(replica: Database) -> None:
        while len(served) < 84:
            served.extend(await _claim_all(replica, [at_once]))

    await asyncio.gather(*(serve(replica) for replica in replicas))

    first = Counter(served[:84])
    assert abs(first[heavy] - 63) <= 2 + 3 * at_once
    await asyncio.gather(*(replica.close() for replica in replicas))


async def test_cancels_amid_claims_waste_no_slot_and_lose_no_task(database_url: str) -> None:
    replicas = [Database(database_url) for _ in range(3)]
    keys = [await add_key(replicas[0], f"caller {number}") for number in range(4)]
    for key in keys:
        await _order(replicas[0], key, 25)
    async with replicas[0].reads() as session:
        ids = list(await session.scalars(select(Task.id)))
    rng = random.Random(7)  # noqa: S311 - which are canceled
    to_cancel = rng.sample(ids, 40)
    claimed: list[str] = []
    is_over = False

    async def cancel() -> None:
        lifecycle = lifecycle_of(replicas[0])
        for task_id in to_cancel:
            async with replicas[0].writes.begin() as session:
                task = await lock_task(session, task_id)
                assert task is not None
                if task.status is TaskStatus.queued:
                    lifecycle.cancel(session, task, NOON)

    async def claim(replica: Database) -> None:
        while not is_over or await _has_queued(replica):
            claimed.extend(task.id for task in await _claim(replica, 3))

    claiming = asyncio.gather(*(claim(replica) for replica in replicas[1:]))
    await cancel()
    is_over = True
    await claiming

    async with replicas[0].reads() as session:
        canceled = set(await session.scalars(select(Task.id).where(Task.status == TaskStatus.canceled)))
    assert len(claimed) == len(set(claimed))
    assert set(claimed) | canceled == set(ids)
    assert not set(claimed) & canceled
    await asyncio.gather(*(replica.close() for replica in replicas))


def _share(key: str, start: float, minutes: int = 0, weight: int = 1) -> Share:
    return Share(key, MORNING + timedelta(minutes=minutes), start, weight)


async def _order(database: Database, key: str, count: int, now: datetime = MORNING, **fields: Any) -> None:
    body = TaskCreate.model_validate({"prompt": "soft rain", **fields})
    async with database.writes.begin() as session:
        await lifecycle_of(database).create(session, [Order(key, body)] * count, now)


async def _claim(
    database: Database, limit: int, lifecycle: TaskLifecycle | None = None, now: datetime = NOON
) -> Sequence[Task]:
    async with database.writes.begin() as session:
        return await (lifecycle or lifecycle_of(database)).claim_submits(session, Claim(now, LEASE, limit))


async def _claim_all(database: Database, limits: Sequence[int]) -> list[str]:
    """The keys whose tasks were claimed, one claim after the other."""
    lifecycle = lifecycle_of(database)
    return [task.api_key_id for limit in limits for task in await _claim(database, limit, lifecycle)]


async def _set_weight(database: Database, key: str, weight: int) -> None:
    async with database.writes.begin() as session:
        await session.execute(update(ApiKey).where(ApiKey.id == key).values(weight=weight))


async def _tags(database: Database) -> dict[str, float]:
    async with database.reads() as session:
        return {row.api_key_id: row.tag for row in await session.scalars(select(QueueTag))}


async def _has_queued(database: Database) -> bool:
    async with database.reads() as session:
        return await session.scalar(select(Task.id).where(Task.status == TaskStatus.queued).limit(1)) is not None
