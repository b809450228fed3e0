"""The worker loop: it claims when there may be something, and rests when there cannot."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Literal

import pytest
from sqlalchemy import false

from app.enums import TaskStatus
from app.workers.runner import Claimed, Loop, run_loop
from tests.support.clock import MORNING
from tests.support.rows import reread
from tests.support.service import serve
from tests.support.statements import recorded
from tests.support.wait import eventually

PLACES = 3


class CountedEvent(asyncio.Event):
    """An event that counts the turns of its loop: each ends with a wait for it."""

    turns = 0

    async def wait(self) -> Literal[True]:
        self.turns += 1
        return await super().wait()


@dataclass
class Rows:
    """Rows that are always due; the work on each lasts until `done` is set."""

    wakeup: CountedEvent = field(default_factory=CountedEvent)
    done: asyncio.Event = field(default_factory=asyncio.Event)
    claimed: list[int] = field(default_factory=list)

    async def claim(self, limit: int) -> Claimed[int]:
        rows = range(len(self.claimed), len(self.claimed) + limit)
        self.claimed += rows
        return Claimed(rows)

    async def work(self, _row: int) -> None:
        await self.done.wait()


@asynccontextmanager
async def full_loop() -> AsyncIterator[Rows]:
    """A running loop without a free place."""
    rows, stopping = Rows(), asyncio.Event()
    loop = Loop("rows", rows.wakeup, PLACES, rows.claim, rows.work, false())
    running = asyncio.create_task(run_loop(loop, stopping))
    await eventually(lambda: len(rows.claimed) == PLACES)
    yield rows
    stopping.set()
    rows.done.set()
    await running


@pytest.mark.parametrize("rings", [1, 100])
async def test_full_loop_makes_one_turn_for_each_wakeup(rings: int) -> None:
    async with full_loop() as rows:
        before = rows.wakeup.turns
        for ring in range(1, rings + 1):
            rows.wakeup.set()
            await eventually(lambda ring=ring: rows.wakeup.turns >= before + ring)  # type: ignore[misc]
        # As many steps of the event loop as a loop that spins would use.
        for _ in range(1000):
            await asyncio.sleep(0)

        # The fallback may add some: one a second.
        assert rows.wakeup.turns <= before + rings + 10
        assert len(rows.claimed) == PLACES


async def test_full_loop_claims_again_as_soon_as_a_place_is_free() -> None:
    async with full_loop() as rows:
        rows.wakeup.set()
        rows.done.set()

        await eventually(lambda: len(rows.claimed) > PLACES, within=0.9)


async def test_idle_service_sends_one_statement_a_second(database_url: str) -> None:
    async with serve(database_url, runs_workers=True) as service:
        # Until the first claims are over; every five minutes there is also a look for what retention erases.
        for _ in range(5):
            with recorded(service.database) as statements:
                await asyncio.sleep(3)
            if len(statements) <= 3:
                break

    assert 1 <= len(statements) <= 3


async def test_row_is_claimed_when_its_time_comes(database_url: str) -> None:
    async with serve(database_url, runs_workers=True, submit_deadline=60) as service:
        soon = datetime.now(UTC) + timedelta(seconds=1)
        task = await service.add_task(TaskStatus.unconfirmed, submitted_at=MORNING, due_at=soon)

        async def is_expired() -> bool:
            return (await reread(service.database, task.id)).status is TaskStatus.failed

        await eventually(is_expired, within=10)
        assert datetime.now(UTC) >= soon


async def test_loop_whose_work_fails_at_once_rests_before_it_claims_again() -> None:
    async def fail(_row: int) -> None:
        raise OSError

    rows, stopping = Rows(), asyncio.Event()
    running = asyncio.create_task(run_loop(Loop("rows", rows.wakeup, 1, rows.claim, fail, false()), stopping))
    await eventually(lambda: rows.claimed != [])
    # As many steps of the event loop as a loop that spins would use.
    for _ in range(1000):
        await asyncio.sleep(0)
    stopping.set()
    await running

    assert len(rows.claimed) <= 2
