"""Whose turn it is to write: the first by priority, and nobody beyond what the database can take."""

import asyncio
from datetime import timedelta

import pytest

from app.database import turns
from app.database.turns import Admission, KeyedLocks, PriorityLock
from app.errors import DatabaseUnavailable


async def test_waiters_take_turns_by_priority_and_then_by_arrival() -> None:
    lock, order = PriorityLock(), list[str]()
    await lock.acquire(1, 1)

    async def take(name: str, priority: int) -> None:
        await lock.acquire(priority, 5)
        order.append(name)
        lock.release()

    waiting = [asyncio.create_task(take(name, priority)) for name, priority in (("a", 1), ("b", 1), ("urgent", 0))]
    await asyncio.sleep(0)
    lock.release()
    await asyncio.gather(*waiting)

    assert order == ["urgent", "a", "b"]
    await lock.acquire(1, 0)


async def test_waiter_whose_patience_ends_leaves_the_lock_to_others() -> None:
    lock = PriorityLock()
    await lock.acquire(0, 1)
    with pytest.raises(TimeoutError):
        await lock.acquire(0, 0.01)
    patient = asyncio.create_task(lock.acquire(1, 5))
    await asyncio.sleep(0)

    lock.release()

    await asyncio.wait_for(patient, 1)


async def test_turn_that_comes_with_the_cancellation_is_passed_on() -> None:
    lock = PriorityLock()
    await lock.acquire(0, 1)
    cancelled, next_one = asyncio.create_task(lock.acquire(0, 5)), asyncio.create_task(lock.acquire(1, 5))
    await asyncio.sleep(0)

    lock.release()
    cancelled.cancel()

    await asyncio.wait_for(next_one, 1)
    assert cancelled.cancelled()


async def test_holder_of_a_key_keeps_out_those_with_the_same_key_alone() -> None:
    locks, brief = KeyedLocks(), timedelta(milliseconds=10)
    async with locks.held("a", brief):
        async with locks.held("b", brief):
            pass
        with pytest.raises(DatabaseUnavailable):
            async with locks.held("a", brief):
                pass
    async with locks.held("a", brief):
        pass


async def test_nobody_is_let_in_beyond_the_places_and_the_longest_queue() -> None:
    admission, leave = Admission(1), asyncio.Event()

    async def order() -> None:
        async with admission.admitted():
            await leave.wait()

    inside = [asyncio.create_task(order()) for _ in range(1 + turns.MAX_WAITING)]
    await asyncio.sleep(0.05)
    with pytest.raises(DatabaseUnavailable) as refused:
        async with admission.admitted():
            pass
    leave.set()
    await asyncio.gather(*inside)

    assert int(refused.value.headers["Retry-After"]) >= 2
    async with admission.admitted():
        pass
