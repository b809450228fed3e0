"""Wake-ups come with the commit, and only with it."""

from app.database.engine import Database
from app.database.wakeups import SUBMITS, Wakeups, notify_on_commit


async def test_commit_wakes_who_waits(database: Database) -> None:
    wakeups = Wakeups(database)

    async with database.writes.begin() as session:
        notify_on_commit(session, SUBMITS)
        rang_before = wakeups.event(SUBMITS).is_set()

    assert not rang_before
    assert wakeups.event(SUBMITS).is_set()
    assert not wakeups.event("something else").is_set()


async def test_what_is_rolled_back_wakes_nobody(database: Database) -> None:
    wakeups = Wakeups(database)

    async with database.writes() as session, session.begin() as transaction:
        notify_on_commit(session, SUBMITS)
        await transaction.rollback()

    assert not wakeups.event(SUBMITS).is_set()


async def test_one_database_does_not_hear_of_another(database: Database, database_url: str) -> None:
    other = Database(database_url)
    wakeups = Wakeups(other)

    async with database.writes.begin() as session:
        notify_on_commit(session, SUBMITS)
    await other.close()

    assert not wakeups.event(SUBMITS).is_set()
