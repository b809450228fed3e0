"""Wake-ups come with the commit, and only with it."""

import asyncio

from app.database.engine import Database
from app.database.wakeups import (
    ARCHIVES,
    DELIVERIES,
    ERASURES,
    EVERY_TASK,
    POLLS,
    SUBMITS,
    SWEEPS,
    Wakeups,
    notify_on_commit,
)


async def test_commit_notifies_its_topics(database: Database) -> None:
    wakeups = Wakeups(database)

    async with database.writes.begin() as session:
        notify_on_commit(session, SUBMITS)
        was_notified_before = wakeups.event(SUBMITS).is_set()

    assert not was_notified_before
    assert wakeups.event(SUBMITS).is_set()
    assert not wakeups.event("something else").is_set()


async def test_commit_wakes_requests_and_deliveries_before_the_other_loops(database: Database) -> None:
    wakeups = Wakeups(database)
    woken: list[str] = []

    async def wait(topic: str) -> None:
        await wakeups.event(topic).wait()
        woken.append(topic)

    topics = [ARCHIVES, POLLS, DELIVERIES, SUBMITS, ERASURES, SWEEPS]
    waiting = [asyncio.create_task(wait(topic)) for topic in topics]
    await asyncio.sleep(0)
    async with database.writes.begin() as session:
        for topic in topics:
            notify_on_commit(session, topic)
    await asyncio.gather(*waiting)

    assert woken[0] == DELIVERIES


async def test_rollback_notifies_no_topic(database: Database) -> None:
    wakeups = Wakeups(database)

    async with database.writes() as session, session.begin() as transaction:
        notify_on_commit(session, SUBMITS)
        await transaction.rollback()

    assert not wakeups.event(SUBMITS).is_set()


async def test_commit_of_another_database_is_not_notified(database: Database, database_url: str) -> None:
    other = Database(database_url)
    wakeups = Wakeups(other)

    async with database.writes.begin() as session:
        notify_on_commit(session, SUBMITS)
    await other.close()

    assert not wakeups.event(SUBMITS).is_set()


async def test_who_subscribes_to_every_task_hears_of_every_topic(database: Database) -> None:
    wakeups = Wakeups(database)

    async def never() -> None:
        await asyncio.Event().wait()

    with wakeups.subscribe(EVERY_TASK) as everything, wakeups.subscribe("another task") as other:
        async with database.writes.begin() as session:
            notify_on_commit(session, "a task")

        assert await everything.wait(10, never)
        assert not await other.wait(0, never)
