"""The upstream's pace: no window of time lets more out than the rate, whoever asks and whoever dies."""

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta

import pytest

from app.config import Rate
from app.db import Database
from app.upstream.pacing import Pacer

NOW = datetime(2026, 1, 1, tzinfo=UTC)
PERIOD, HOLD = timedelta(seconds=10), timedelta(seconds=45)


@pytest.fixture
async def database(database_url: str) -> AsyncIterator[Database]:
    database = Database(database_url)
    yield database
    await database.close()


async def _ring(database: Database, requests: int = 4) -> Pacer:
    pacer = Pacer(Rate(requests, PERIOD), HOLD)
    async with database.writes.begin() as session:
        await pacer.prepare(session, NOW)
    return pacer


async def _take(database: Database, pacer: Pacer, now: datetime, limit: int = 100, share: float = 1.0) -> list[int]:
    async with database.writes.begin() as session:
        free = await pacer.free(session, now, limit, share)
        await pacer.take(session, free, now)
    return list(free)


async def test_ring_gives_as_many_slots_as_the_rate_and_then_none(database: Database) -> None:
    pacer = await _ring(database)

    first, second = await _take(database, pacer, NOW), await _take(database, pacer, NOW)

    assert sorted(first) == [0, 1, 2, 3]
    assert second == []


async def test_slot_is_free_again_a_period_after_its_answer(database: Database) -> None:
    pacer = await _ring(database, 1)
    async with database.writes.begin() as session:
        slots = await pacer.take(session, await pacer.free(session, NOW, 1), NOW)
    answered = NOW + timedelta(seconds=3)
    async with database.writes.begin() as session:
        await pacer.give_back(session, slots.numbers[0], slots.fence, answered)

    too_soon = await _take(database, pacer, answered + PERIOD - timedelta(milliseconds=1))
    in_time = await _take(database, pacer, answered + PERIOD)

    assert (too_soon, in_time) == ([], [0])


async def test_slot_of_a_dead_process_comes_back_by_itself(database: Database) -> None:
    pacer = await _ring(database, 1)
    await _take(database, pacer, NOW)

    assert await _take(database, pacer, NOW + PERIOD + HOLD - timedelta(milliseconds=1)) == []
    assert await _take(database, pacer, NOW + PERIOD + HOLD) == [0]


async def test_late_answer_of_an_overtaken_process_frees_nothing(database: Database) -> None:
    pacer = await _ring(database, 1)
    async with database.writes.begin() as session:
        lost = await pacer.take(session, await pacer.free(session, NOW, 1), NOW)
    later = NOW + PERIOD + HOLD
    await _take(database, pacer, later)
    async with database.writes.begin() as session:
        await pacer.give_back(session, 0, lost.fence, later)

    assert await _take(database, pacer, later + PERIOD) == []


async def test_throttle_stops_every_slot_even_those_that_come_back_meanwhile(database: Database) -> None:
    pacer = await _ring(database, 2)
    async with database.writes.begin() as session:
        slots = await pacer.take(session, [0], NOW)
        await pacer.push_back(session, NOW + timedelta(seconds=60))
        await pacer.give_back(session, 0, slots.fence, NOW)
        wait = await pacer.next_free_in(session, NOW)

    assert wait == timedelta(seconds=60)
    assert await _take(database, pacer, NOW + timedelta(seconds=59)) == []
    assert sorted(await _take(database, pacer, NOW + timedelta(seconds=60))) == [0, 1]


async def test_polls_leave_most_slots_to_submits(database: Database) -> None:
    pacer = await _ring(database, 20)

    polls = await _take(database, pacer, NOW, share=0.25)
    submits = await _take(database, pacer, NOW)

    assert (len(polls), len(submits)) == (5, 15)


async def test_smaller_rate_takes_the_surplus_slots_away(database: Database) -> None:
    await _ring(database, 20)
    pacer = await _ring(database, 3)

    assert len(await _take(database, pacer, NOW)) == 3
