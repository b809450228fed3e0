"""SQLite's statements run on the event loop, and nothing that waits does."""

import asyncio
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from threading import active_count

import pytest
from sqlalchemy import make_url, select

from app.database.engine import Database
from app.models import PeriodicJob
from tests.support.wait import eventually

pytestmark = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)


async def test_wait_for_another_process_holds_up_no_read(database: Database) -> None:
    with locked_by_another(database):
        writing = asyncio.create_task(write(database, "first"))
        read = [await names_in(database) for _ in range(20)]
        was_done = writing.done()
    await writing

    assert (read, was_done) == ([[]] * 20, False)
    assert await names_in(database) == ["first"]


@pytest.mark.parametrize("cancels", [1, 2])
async def test_canceled_wait_leaves_the_writer_usable(database: Database, cancels: int) -> None:
    threads = active_count()
    with locked_by_another(database):
        writing = asyncio.create_task(write(database, "canceled"))
        await asyncio.wait([writing], timeout=0.1)
        for _ in range(cancels):
            writing.cancel()
            await asyncio.sleep(0)
    await asyncio.wait([writing])
    await write(database, "next")
    # The thread of the connection that was given up has ended: the other one is of the next.
    await eventually(lambda: active_count() <= threads + 1)

    assert writing.cancelled()
    assert await names_in(database) == ["next"]


async def write(database: Database, name: str) -> None:
    async with database.transaction() as (session, _):
        session.add(PeriodicJob(name=name, due_at=datetime.now(UTC)))


async def names_in(database: Database) -> Sequence[str]:
    async with database.reads() as session:
        return (await session.scalars(select(PeriodicJob.name))).all()


@contextmanager
def locked_by_another(database: Database) -> Iterator[None]:
    with closing(sqlite3.connect(str(make_url(database.url).database), isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        yield
