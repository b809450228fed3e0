"""Short reads outside of sessions return what sessions do, and survive what happens to their connections."""

import asyncio
from typing import Any

import pytest
from sqlalchemy import bindparam, delete, func, inspect, select, text
from sqlalchemy.exc import SQLAlchemyError

from app.database.engine import Database
from app.database.fetching import FixedQuery
from app.enums import Charge, ErrorCode, TaskStatus
from app.models import Clip, Task
from tests.support.clock import MORNING
from tests.support.rows import add_key, add_task
from tests.support.statements import recorded

TASKS = select(*inspect(Task).columns, *inspect(Clip).columns).outerjoin(Clip, Clip.task_id == Task.id)
TASK_BY_ID = FixedQuery(TASKS.where(Task.id == bindparam("task_id"), Task.created_at <= bindparam("until")))


async def test_fixed_query_converts_values_as_a_session_does(database: Database) -> None:
    task = await _add(database)
    parameters = {"task_id": task.id, "until": MORNING}

    fetched = await database.fetch(TASK_BY_ID, **parameters)
    async with database.reads() as session:
        read = (await session.execute(TASK_BY_ID.select, parameters)).all()

    assert [*map(tuple, fetched)] == [*map(tuple, read)]
    assert [*map(type, fetched[0])] == [*map(type, read[0])]
    assert len(fetched) == 2


async def test_reads_that_come_at_once_open_no_more_connections_than_the_pool_keeps(database: Database) -> None:
    task = await _add(database)

    await asyncio.gather(*(database.fetch(TASK_BY_ID, task_id=task.id, until=MORNING) for _ in range(40)))

    async with database.reads() as session:
        pool: Any = (await session.connection()).sync_engine.pool
        assert pool.checkedin() + 1 <= pool.size()
        assert pool.overflow() <= 0


async def test_those_who_ask_at_once_share_a_read_and_later_ones_see_what_was_committed(database: Database) -> None:
    task = await _add(database)
    parameters = {"task_id": task.id, "until": MORNING}

    with recorded(database) as statements:
        rows = await asyncio.gather(*(database.fetch_shared(TASK_BY_ID, **parameters) for _ in range(5)))
    async with database.writes.begin() as session:
        await session.execute(delete(Clip))
    later = await database.fetch_shared(TASK_BY_ID, **parameters)

    assert (len(statements), [len(found) for found in rows], len(later)) == (1, [2] * 5, 1)


async def test_shared_read_goes_on_for_others_when_one_of_them_is_canceled(database: Database) -> None:
    task = await _add(database)
    reads = [asyncio.create_task(database.fetch_shared(TASK_BY_ID, task_id=task.id, until=MORNING)) for _ in range(2)]
    await asyncio.sleep(0)
    reads[0].cancel()

    assert len(await reads[1]) == 2


async def test_read_that_fails_gives_its_connection_up_and_the_next_one_succeeds(database: Database) -> None:
    broken = FixedQuery(select(func.abs(text("no_such_column"))))

    for _ in range(20):
        with pytest.raises(SQLAlchemyError):
            await database.fetch(broken)

    task = await _add(database)
    assert len(await database.fetch(TASK_BY_ID, task_id=task.id, until=MORNING)) == 2


async def _add(database: Database) -> Task:
    key = await add_key(database)
    error: dict[str, Any] = {"error_code": ErrorCode.upstream_failed, "error_message": "é", "upstream_code": 2**40}
    task = await add_task(database, key, TaskStatus.failed, charge=Charge.refunded, labels={"a": "ü"}, **error)
    async with database.writes.begin() as session:
        words = [{"word": "rain", "start": 0.5, "end": 1}]
        session.add(Clip(task_id=task.id, index=0, created_at=MORNING, duration=11, size=2**30, lyrics=words))
        session.add(Clip(task_id=task.id, index=1, created_at=MORNING, archived_at=MORNING))
    return task
