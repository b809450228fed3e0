"""Wake-ups come with the commit, and only with it."""

from app.database.engine import Database
from app.database.wakeups import SUBMITS, Signals, ring_on_commit


async def test_commit_wakes_who_waits(database: Database) -> None:
    signals = Signals(database)

    async with database.writes.begin() as session:
        ring_on_commit(session, SUBMITS)
        rang_before = signals.bell(SUBMITS).is_set()

    assert not rang_before
    assert signals.bell(SUBMITS).is_set()
    assert not signals.bell("something else").is_set()


async def test_what_is_rolled_back_wakes_nobody(database: Database) -> None:
    signals = Signals(database)

    async with database.writes() as session, session.begin() as transaction:
        ring_on_commit(session, SUBMITS)
        await transaction.rollback()

    assert not signals.bell(SUBMITS).is_set()


async def test_one_database_does_not_hear_of_another(database: Database, database_url: str) -> None:
    other = Database(database_url)
    signals = Signals(other)

    async with database.writes.begin() as session:
        ring_on_commit(session, SUBMITS)
    await other.close()

    assert not signals.bell(SUBMITS).is_set()
