"""Times, transactions, readers and writers behave alike on both databases."""

import asyncio
from datetime import UTC, datetime, timedelta, timezone

import pytest
from sqlalchemy import select, text
from sqlalchemy.exc import DBAPIError, StatementError

from app.database.engine import Database, database_clock, insert_new, on_commit
from app.database.failures import can_pass
from app.models import PeriodicJob
from tests.support.clock import MORNING, Clock

EAST = timezone(timedelta(hours=5, minutes=30))
MOMENTS = [
    datetime(2026, 3, 1, 8, 0, 0, 1, tzinfo=UTC),
    datetime(2026, 3, 1, 8, tzinfo=EAST),
    datetime(2026, 10, 25, 2, 30, tzinfo=timezone(timedelta(hours=-11))),
    datetime.min.replace(tzinfo=UTC),
    datetime.max.replace(tzinfo=UTC),
]


async def test_times_come_back_aware_and_in_utc(database: Database) -> None:
    for number, moment in enumerate(MOMENTS):
        await _add(database, f"{number}", moment)

    async with database.reads() as session:
        read = (await session.scalars(select(PeriodicJob.due_at).order_by(PeriodicJob.name))).all()

    assert read == MOMENTS
    assert {moment.tzinfo for moment in read if moment} == {UTC}


async def test_times_of_different_zones_are_compared_as_instants(database: Database) -> None:
    await _add(database, "it", datetime(2026, 3, 1, 8, tzinfo=EAST))

    async with database.reads() as session:
        before = await session.scalar(
            select(PeriodicJob.name).where(PeriodicJob.due_at < datetime(2026, 3, 1, 3, tzinfo=UTC))
        )
        after = await session.scalar(
            select(PeriodicJob.name).where(PeriodicJob.due_at > datetime(2026, 3, 1, 3, tzinfo=UTC))
        )

    assert (before, after) == ("it", None)


async def test_what_waits_for_a_commit_is_called_once_and_only_by_it(database: Database) -> None:
    called: list[str] = []
    async with database.writes() as session:
        on_commit(session, lambda: called.append("rolled back"))
        await session.rollback()
    async with database.writes.begin() as session:
        on_commit(session, lambda: called.append("committed"))
        before = list(called)

    assert (before, called) == ([], ["committed"])


async def test_session_that_is_used_again_forgets_what_waited_for_the_commit_that_did_not_come(
    database: Database,
) -> None:
    called: list[str] = []
    async with database.writes() as session:
        async with session.begin() as transaction:
            await session.connection()
            on_commit(session, lambda: called.append("rolled back"))
            await transaction.rollback()
        await session.connection()
        on_commit(session, lambda: called.append("closed"))
        await session.close()
        async with session.begin():
            on_commit(session, lambda: called.append("committed"))

    assert called == ["committed"]


async def test_release_of_a_savepoint_is_no_commit(database: Database) -> None:
    called: list[str] = []
    async with database.writes() as session, session.begin() as transaction:
        async with session.begin_nested():
            on_commit(session, lambda: called.append("rolled back"))
        await transaction.rollback()
    async with database.writes.begin() as session:
        async with session.begin_nested():
            on_commit(session, lambda: called.append("committed"))
        before = list(called)

    assert (before, called) == ([], ["committed"])


async def test_time_without_a_zone_is_refused(database: Database) -> None:
    with pytest.raises(StatementError, match="a naive datetime has no time zone"):
        await _add(database, "it", datetime(2026, 3, 1))  # noqa: DTZ001 - what is refused


async def test_time_outside_of_the_calendar_is_stored_as_its_end(database: Database) -> None:
    await _add(database, "first", datetime(1, 1, 1, tzinfo=EAST))
    await _add(database, "last", datetime(9999, 12, 31, 23, 59, tzinfo=timezone(timedelta(hours=-1))))

    async with database.reads() as session:
        first, last = (await session.scalars(select(PeriodicJob.due_at).order_by(PeriodicJob.name))).all()

    assert (first, last) == (datetime.min.replace(tzinfo=UTC), datetime.max.replace(tzinfo=UTC))


async def test_clock_is_in_utc(database: Database) -> None:
    async with database.reads() as session:
        now = await database_clock(session)

    assert now.tzinfo is UTC
    assert abs(now - datetime.now(UTC)) < timedelta(seconds=5)


async def test_database_uses_the_clock_that_it_is_given(database_url: str) -> None:
    database = Database(database_url, clock=Clock())

    async with database.reads() as session:
        assert await database.now(session) == MORNING
    await database.close()


async def test_closed_database_connects_no_more(database_url: str) -> None:
    database = Database(database_url)
    await database.fetch(select(1))
    await database.close()

    with pytest.raises(ConnectionError):
        await database.fetch(select(1))
    for sessions in (database.reads, database.writes, database.urgent_writes):
        async with sessions() as session:
            with pytest.raises(ConnectionError):
                await session.connection()


async def test_insert_new_leaves_existing_rows_as_they_are(database: Database) -> None:
    await _add(database, "it", MORNING)

    async with database.writes.begin() as session:
        await insert_new(session, PeriodicJob, *({"name": name, "attempts": 7, "detail": {}} for name in ("it", "new")))

    async with database.reads() as session:
        kept = await session.execute(select(PeriodicJob.name, PeriodicJob.attempts).order_by(PeriodicJob.name))
        assert list(kept.all()) == [("it", 0), ("new", 7)]


async def test_transaction_commits_at_the_end_of_its_block_and_has_the_time_of_the_database(database_url: str) -> None:
    database = Database(database_url, clock=Clock())

    async with database.transaction() as (session, now):
        session.add(PeriodicJob(name="it", due_at=now, attempts=0, detail={}))

    async with database.reads() as session:
        assert (await session.get_one(PeriodicJob, "it")).due_at == MORNING
    await database.close()


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
async def test_transaction_that_waited_for_the_writer_has_the_time_after_the_wait(database_url: str) -> None:
    clock = Clock()
    database = Database(database_url, clock=clock)

    async def time_of_transaction() -> datetime:
        async with database.transaction() as (_, now):
            return now

    async with database.transaction():
        waiting = asyncio.create_task(time_of_transaction())
        await asyncio.sleep(0)
        clock.advance(minutes=1)

    assert await waiting == MORNING + timedelta(minutes=1)
    await database.close()


async def test_exception_rolls_a_transaction_back(database: Database) -> None:
    async def write_and_fail() -> None:
        async with database.transaction() as (session, now):
            session.add(PeriodicJob(name="it", due_at=now, attempts=0, detail={}))
            await session.flush()
            raise ArithmeticError

    with pytest.raises(ArithmeticError):
        await write_and_fail()

    async with database.reads() as session:
        assert await session.get(PeriodicJob, "it") is None


@pytest.mark.parametrize(
    "statement",
    [
        "SELECT gone FROM tasks",
        "SELECT 1 FROM gone",
        "INSERT INTO periodic_jobs (name, attempts, detail) VALUES ('it', 0, '{}')",
        "INSERT INTO periodic_jobs (name, attempts, detail) VALUES ('other', NULL, '{}')",
    ],
)
async def test_refusal_by_schema_or_constraint_does_not_pass(database: Database, statement: str) -> None:
    await _add(database, "it", None)

    with pytest.raises(DBAPIError) as refusal:
        async with database.writes.begin() as session:
            await session.execute(text(statement))

    assert not can_pass(refusal.value)


async def test_value_that_no_column_takes_does_not_pass(database: Database) -> None:
    with pytest.raises(StatementError) as refusal:
        await _add(database, "naive", datetime(2026, 3, 1))  # noqa: DTZ001 - it has no zone

    assert not can_pass(refusal.value)


async def test_database_that_is_full_or_goes_away_passes(database: Database, database_url: str) -> None:
    is_sqlite = database_url.startswith("sqlite")
    fill, go = "CREATE TABLE filler AS SELECT zeroblob(1000000)", "SELECT pg_terminate_backend(pg_backend_pid())"
    async with database.writes() as session:
        if is_sqlite:
            await session.execute(text("PRAGMA max_page_count = 1"))
        with pytest.raises(DBAPIError) as outage:
            await session.execute(text(fill if is_sqlite else go))

    assert can_pass(outage.value)


async def test_writers_wait_for_each_other(database: Database) -> None:
    await _add(database, "counter", None)

    async def count() -> None:
        async with database.writes.begin() as session:
            job = await session.get_one(PeriodicJob, "counter", with_for_update=True)
            await asyncio.sleep(0.001)
            job.attempts += 1

    await asyncio.gather(*(count() for _ in range(20)))

    async with database.reads() as session:
        assert (await session.get_one(PeriodicJob, "counter")).attempts == 20


async def test_readers_do_not_wait_for_a_writer(database: Database) -> None:
    await _add(database, "it", MORNING)

    async with database.writes.begin() as writing:
        (await writing.get_one(PeriodicJob, "it", with_for_update=True)).attempts = 5
        await writing.flush()
        async with asyncio.timeout(2), database.reads() as reading:
            seen = await reading.get_one(PeriodicJob, "it")

    assert seen.attempts == 0


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
async def test_reader_of_sqlite_cannot_write(database: Database) -> None:
    async with database.reads() as session:
        with pytest.raises(DBAPIError, match="readonly"):
            await session.execute(text("DELETE FROM periodic_jobs"))


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
async def test_sqlite_syncs_every_commit_and_enforces_foreign_keys(database: Database) -> None:
    async with database.writes() as session:
        pragmas = {
            name: await session.scalar(text(f"PRAGMA {name}"))
            for name in ("journal_mode", "synchronous", "foreign_keys")
        }

    assert pragmas == {"journal_mode": "wal", "synchronous": 2, "foreign_keys": 1}


async def _add(database: Database, name: str, due_at: datetime | None) -> None:
    async with database.writes.begin() as session:
        session.add(PeriodicJob(name=name, due_at=due_at, attempts=0, detail={}))
