"""A topic notified in one process is notified in all that share its PostgreSQL."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager

import psycopg
import pytest
from sqlalchemy import make_url

from app.database.engine import Database
from app.database.pg_notify import CHANNEL, HERE, MAX_TOPICS_IN_A_PAYLOAD, WAITING, PostgresNotifier
from app.database.wakeups import Wakeups, notify_on_commit
from tests.support.wait import eventually

TOPICS = [f"{number:032x}" for number in range(2 * MAX_TOPICS_IN_A_PAYLOAD + 1)]


async def stays_connected() -> None:
    """A client that does not disconnect."""
    await asyncio.get_running_loop().create_future()


@pytest.fixture(params=["asyncpg", "psycopg"])
def url(request: pytest.FixtureRequest, database_url: str) -> str:
    """The database by each of the drivers."""
    return make_url(database_url).set(drivername=f"postgresql+{request.param}").render_as_string(hide_password=False)


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
async def test_every_topic_of_a_large_commit_is_notified_at_the_other_process(url: str) -> None:
    async with _process(url) as (here, _), _process(url) as (_, there):
        await _connected(here, there)
        with ExitStack() as stack:
            subscriptions = [stack.enter_context(there.subscribe(topic)) for topic in TOPICS]
            await _notify(here, *TOPICS)

            async with asyncio.timeout(10):
                notified = [await subscription.wait(10, stays_connected) for subscription in subscriptions]

    assert all(notified)


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
async def test_workers_of_the_other_process_are_notified_too(url: str) -> None:
    async with _process(url) as (here, _), _process(url) as (_, there):
        await _connected(here, there)
        event = there.event("submits")

        await _notify(here, "submits")

        await asyncio.wait_for(event.wait(), 10)


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
async def test_notification_does_not_come_back_to_its_publisher(url: str) -> None:
    async with _process(url) as (here, ours), _process(url) as (_, there):
        await _connected(here, there)
        with ours.subscribe("a task") as here_too, there.subscribe("a task") as over_there:
            await _notify(here, "a task")
            at_the_commit = await here_too.wait(0, stays_connected)
            at_the_other = await over_there.wait(10, stays_connected)
            came_back = await here_too.wait(0.1, stays_connected)

    assert (at_the_commit, at_the_other, came_back) == (True, True, False)


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
async def test_nothing_is_published_while_nobody_can_wait_elsewhere(database_url: str) -> None:
    plain = make_url(database_url).set(drivername="postgresql").render_as_string(hide_password=False)
    async with await psycopg.AsyncConnection.connect(plain, autocommit=True) as spy:
        await spy.execute(f"LISTEN {CHANNEL}")
        async with _process(database_url) as (here, ours):
            with ours.subscribe("a task"):
                for topic in ("a task", "submits", *TOPICS[:50]):
                    await _notify(here, topic)
            heard = [notification.payload async for notification in spy.notifies(timeout=0.5)]

    assert {payload.partition(":")[2] for payload in heard} <= {HERE, WAITING}


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
async def test_tasks_are_published_only_while_requests_wait_elsewhere(database_url: str) -> None:
    async with _process(database_url) as (here, _), _process(database_url) as (_, there):
        submits, task = there.event("submits"), there.event("a task")

        async def is_received() -> bool:
            await _notify(here, "submits", "a task")
            return submits.is_set()

        await eventually(is_received)
        assert not task.is_set()


async def test_sqlite_notifies_within_the_process_alone(database: Database) -> None:
    wakeups = Wakeups(database)
    notifier = PostgresNotifier(wakeups, database)
    notifier.start()

    with wakeups.subscribe("a task") as subscription:
        await _notify(database, "a task")
        assert await subscription.wait(0, stays_connected)
    await notifier.close()


@asynccontextmanager
async def _process(url: str) -> AsyncIterator[tuple[Database, Wakeups]]:
    database = Database(url)
    wakeups = Wakeups(database)
    notifier = PostgresNotifier(wakeups, database)
    notifier.start()
    yield database, wakeups
    await notifier.close()
    await database.close()


async def _connected(here: Database, there: Wakeups) -> None:
    """Notify until the other process listens, and this one knows that somebody waits there."""
    with there.subscribe("hello") as subscription:

        async def is_received() -> bool:
            await _notify(here, "hello")
            return await subscription.wait(0.02, stays_connected)

        await eventually(is_received)


async def _notify(database: Database, *topics: str) -> None:
    async with database.writes.begin() as session:
        for topic in topics:
            notify_on_commit(session, topic)
