"""The upstream's pace holds however many processes keep it, and whatever they do to the ring at once."""

import asyncio
from datetime import timedelta

from app.config import Rate
from app.database.engine import Database
from app.upstream.pacing import Pacer, Slot

RATE = Rate(10, timedelta(seconds=1))


async def test_many_throttled_calls_at_once_pause_the_slots_without_a_deadlock(database_url: str) -> None:
    database, pacer = Database(database_url), Pacer(RATE, hold=timedelta(minutes=1))
    all_hold_one = asyncio.Barrier(RATE.requests)
    async with database.writes.begin() as session:
        await pacer.prepare(session, await database.now(session))
        taken = await pacer.reserve(session, range(RATE.requests), await database.now(session))

    async def settle(slot: Slot) -> None:
        await all_hold_one.wait()
        async with database.writes.begin() as session:
            now = await database.now(session)
            await pacer.release(session, [slot], now)
            await pacer.pause(session, now, timedelta(seconds=30))

    await asyncio.gather(*(settle(slot) for slot in taken))

    async with database.reads() as session:
        now = await database.now(session)
        assert await pacer.next_free_in(session, now) > timedelta(seconds=20)
    await database.close()
