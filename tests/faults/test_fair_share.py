"""One caller's flood keeps no other waiting, whichever replica submits and however the slots become free."""

import asyncio
from contextlib import AsyncExitStack
from datetime import datetime
from typing import Any

import pytest
from sqlalchemy import select, update

from app.database.engine import Database
from app.models import Task
from app.tasks.order_schemas import TaskCreate
from app.workers.runner import run_loop
from app.workers.submit import submit_loop
from tests.support.filling import Owner, fill_queued
from tests.support.rows import add_key, create_task
from tests.support.sandbox import serve_sandbox, submits_at
from tests.support.service import services_of
from tests.support.wait import eventually

FLOOD = 10_000


@pytest.mark.parametrize("rate", ["1/0.5", "10/1"])
async def test_flood_of_one_key_delays_the_order_of_another_by_two_pace_windows_at_most(
    database_url: str, rate: str
) -> None:
    database = Database(database_url)
    noisy, quiet = await add_key(database, "noisy"), await add_key(database, "quiet")
    await fill_queued(database, [Owner(noisy, "")], FLOOD)
    async with database.writes.begin() as session:
        # The sandbox knows no other.
        await session.execute(update(Task).values(model="V5"))
    window = int(rate.partition("/")[0])
    async with AsyncExitStack() as stack:
        # No task ends meanwhile: all slots are for submits.
        upstream_url = await stack.enter_async_context(serve_sandbox(delay=3600))
        given: dict[str, Any] = {"upstream_url": upstream_url, "upstream_rate": rate}
        replicas = [await stack.enter_async_context(services_of(database_url, **given)) for _ in range(3)]
        async with database.transaction() as (session, now):
            await replicas[0].gateway.pacer.prepare(session, now)
        stopping = asyncio.Event()
        running = asyncio.gather(*(run_loop(submit_loop(replica), stopping) for replica in replicas))
        await eventually(lambda: _has_submitted(database, noisy, 2 * window), within=30)
        async with database.writes.begin() as session:
            now = await database.now(session)
            order = await create_task(
                session, replicas[0].lifecycle, quiet, TaskCreate(prompt="rain", metadata={}), now
            )
        await eventually(lambda: _has_submitted(database, quiet, 1), within=30)
        stopping.set()
        await running
        posted = len(await submits_at(upstream_url))
    sent = await _submitted(database)
    await database.close()

    own = next(at for key, at in sent if key == quiet)
    assert len([at for key, at in sent if key == noisy and order.created_at < at < own]) <= 2 * window
    assert posted == len(sent)


async def _has_submitted(database: Database, key: str, least: int) -> bool:
    return len([owner for owner, _ in await _submitted(database) if owner == key]) >= least


async def _submitted(database: Database) -> list[tuple[str, datetime]]:
    """The keys of the tasks that were sent, and when they were claimed for it."""
    async with database.reads() as session:
        sent = select(Task.api_key_id, Task.submitted_at).where(Task.submitted_at.isnot(None))
        return [(key, at) for key, at in (await session.execute(sent)).all() if at is not None]
