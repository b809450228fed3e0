"""What rings in one process rings in all that share its PostgreSQL."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager

import pytest
from sqlalchemy import make_url

from app.database.engine import Database
from app.database.pg_notify import MAX_TOPICS_IN_A_PAYLOAD, PostgresNotifier
from app.database.wakeups import Wakeups, notify_on_commit
from tests.support.processes import eventually

NAMES = [f"{number:032x}" for number in range(2 * MAX_TOPICS_IN_A_PAYLOAD + 1)]


async def never() -> None:
    """A caller who does not hang up."""
    await asyncio.get_running_loop().create_future()


@pytest.fixture(params=["asyncpg", "psycopg"])
def url(request: pytest.FixtureRequest, database_url: str) -> str:
    """The database by each of the drivers."""
    return make_url(database_url).set(drivername=f"postgresql+{request.param}").render_as_string(hide_password=False)


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
async def test_every_name_of_a_large_commit_rings_at_the_other(url: str) -> None:
    async with _process(url) as (here, _), _process(url) as (_, there):
        await _connected(here, there)
        with ExitStack() as stack:
            watches = [stack.enter_context(there.subscribe(name)) for name in NAMES]
            await _ring(here, *NAMES)

            async with asyncio.timeout(10):
                rung = [await subscription.wait(10, never) for subscription in watches]

    assert all(rung)


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
async def test_loops_of_the_other_are_rung_too(url: str) -> None:
    async with _process(url) as (here, _), _process(url) as (_, there):
        await _connected(here, there)
        bell = there.event("submits")

        await _ring(here, "submits")

        await asyncio.wait_for(bell.wait(), 10)


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
async def test_what_one_told_does_not_come_back_to_it(url: str) -> None:
    async with _process(url) as (here, ours), _process(url) as (_, there):
        await _connected(here, there)
        with ours.subscribe("a task") as at_home, there.subscribe("a task") as abroad:
            await _ring(here, "a task")
            rang_at_the_commit = await at_home.wait(0, never)
            heard_abroad = await abroad.wait(10, never)
            came_back = await at_home.wait(0.1, never)

    assert (rang_at_the_commit, heard_abroad, came_back) == (True, True, False)


async def test_processes_on_sqlite_keep_their_names_to_themselves(database: Database) -> None:
    wakeups = Wakeups(database)
    relay = PostgresNotifier(wakeups, database)
    relay.start()

    with wakeups.subscribe("a task") as subscription:
        await _ring(database, "a task")
        assert await subscription.wait(0, never)
    await relay.close()


@asynccontextmanager
async def _process(url: str) -> AsyncIterator[tuple[Database, Wakeups]]:
    database = Database(url)
    wakeups = Wakeups(database)
    relay = PostgresNotifier(wakeups, database)
    relay.start()
    yield database, wakeups
    await relay.close()
    await database.close()


async def _connected(here: Database, there: Wakeups) -> None:
    """Ring until the other listens."""
    bell = there.event("hello")

    async def is_heard() -> bool:
        await _ring(here, "hello")
        return bell.is_set()

    await eventually(is_heard)


async def _ring(database: Database, *names: str) -> None:
    async with database.writes.begin() as session:
        for name in names:
            notify_on_commit(session, name)
