"""Two databases, one behaviour: moments, readers, writers."""

import asyncio
from datetime import UTC, datetime, timedelta, timezone

import pytest
from sqlalchemy import select, text
from sqlalchemy.exc import DBAPIError, StatementError

from app.database.engine import Database, database_clock, insert_new
from app.models import PeriodicJob
from tests.support.service import MORNING, Clock

EAST = timezone(timedelta(hours=5, minutes=30))
MOMENTS = [
    datetime(2026, 3, 1, 8, 0, 0, 1, tzinfo=UTC),
    datetime(2026, 3, 1, 8, tzinfo=EAST),
    datetime(2026, 10, 25, 2, 30, tzinfo=timezone(timedelta(hours=-11))),
    datetime.min.replace(tzinfo=UTC),
    datetime.max.replace(tzinfo=UTC),
]


async def test_moments_come_back_aware_and_in_utc(database: Database) -> None:
    for number, moment in enumerate(MOMENTS):
        await _add(database, f"{number}", moment)

    async with database.reads() as session:
        read = (await session.scalars(select(PeriodicJob.due_at).order_by(PeriodicJob.name))).all()

    assert read == MOMENTS
    assert {moment.tzinfo for moment in read if moment} == {UTC}


async def test_moments_are_compared_as_moments_whatever_their_zone(database: Database) -> None:
    await _add(database, "it", datetime(2026, 3, 1, 8, tzinfo=EAST))

    async with database.reads() as session:
        before = await session.scalar(
            select(PeriodicJob.name).where(PeriodicJob.due_at < datetime(2026, 3, 1, 3, tzinfo=UTC))
        )
        after = await session.scalar(
            select(PeriodicJob.name).where(PeriodicJob.due_at > datetime(2026, 3, 1, 3, tzinfo=UTC))
        )

    assert (before, after) == ("it", None)


async def test_moment_without_a_zone_is_refused(database: Database) -> None:
    with pytest.raises(StatementError, match="a naive datetime has no moment"):
        await _add(database, "it", datetime(2026, 3, 1))  # noqa: DTZ001 - what is refused


async def test_moment_beyond_the_calendar_is_its_end(database: Database) -> None:
    await _add(database, "first", datetime(1, 1, 1, tzinfo=EAST))
    await _add(database, "last", datetime(9999, 12, 31, 23, 59, tzinfo=timezone(timedelta(hours=-1))))

    async with database.reads() as session:
        first, last = (await session.scalars(select(PeriodicJob.due_at).order_by(PeriodicJob.name))).all()

    assert (first, last) == (datetime.min.replace(tzinfo=UTC), datetime.max.replace(tzinfo=UTC))


async def test_clock_tells_the_time_in_utc(database: Database) -> None:
    async with database.reads() as session:
        now = await database_clock(session)

    assert now.tzinfo is UTC
    assert abs(now - datetime.now(UTC)) < timedelta(seconds=5)


async def test_database_can_be_told_the_time(database_url: str) -> None:
    database = Database(database_url, clock=Clock())

    async with database.reads() as session:
        assert await database.now(session) == MORNING
    await database.close()


async def test_rows_that_are_there_are_left_as_they_are(database: Database) -> None:
    await _add(database, "it", MORNING)

    async with database.writes.begin() as session:
        await insert_new(session, PeriodicJob, *({"name": name, "attempts": 7, "detail": {}} for name in ("it", "new")))

    async with database.reads() as session:
        kept = await session.execute(select(PeriodicJob.name, PeriodicJob.attempts).order_by(PeriodicJob.name))
        assert list(kept.all()) == [("it", 0), ("new", 7)]


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


async def test_readers_are_not_kept_waiting_by_a_writer(database: Database) -> None:
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
async def test_sqlite_loses_no_commit_and_keeps_its_references(database: Database) -> None:
    async with database.writes() as session:
        pragmas = {
            name: await session.scalar(text(f"PRAGMA {name}"))
            for name in ("journal_mode", "synchronous", "foreign_keys")
        }

    assert pragmas == {"journal_mode": "wal", "synchronous": 2, "foreign_keys": 1}


async def _add(database: Database, name: str, due_at: datetime | None) -> None:
    async with database.writes.begin() as session:
        session.add(PeriodicJob(name=name, due_at=due_at, attempts=0, detail={}))
