"""The page of a task reads a bounded number of rows along indexes, however many the task has."""

from __future__ import annotations

import re
from datetime import timedelta

import pytest
from sqlalchemy import insert, text

from app.auth.callers import OPERATOR, Caller
from app.console.task_repository import MAX_BODIES, MAX_COUNTED, MAX_EVENTS, MAX_SHOWN, TaskRows, read_task_rows
from app.database.engine import Database
from app.enums import CallbackOutcome, EventType, WebhookType
from app.errors import NotFound
from app.models import Callback, Delivery, Event
from tests.support.clock import MORNING
from tests.support.rows import add_key, add_task
from tests.support.settings import settings_of
from tests.support.statements import recorded

MANY = 10_000
GROWING = "tasks", "clips", "events", "callbacks", "deliveries", "delivery_attempts"


async def read(database: Database, task_id: str) -> TaskRows:
    return await read_task_rows(database, OPERATOR, task_id, settings_of(database.url))


async def fill(database: Database, task_id: str, key: str, size: int = 10) -> None:
    """Give a task 10,000 events, callbacks and deliveries, a second apart."""
    places = [(place, MORNING + timedelta(seconds=place)) for place in range(MANY)]
    told = {"event_type": WebhookType.task_failed, "url": "http://h/", "host": "h", "lane": "l", "body": b"{}"}
    one = {"outcome": CallbackOutcome.stale, "headers": {}, "body": size * b"x", "task_id": task_id}
    deliveries = [
        {"id": f"{place:032d}", "api_key_id": key, "task_id": task_id, "event_id": "e", "created_at": at} | told
        for place, at in places
    ]
    async with database.writes.begin() as session:
        await session.execute(insert(Callback), [{**one, "received_at": at} for _, at in places])
        await session.execute(insert(Delivery), [{**delivery, "attempts": 0} for delivery in deliveries])
        await session.execute(
            insert(Event),
            [
                {
                    "task_id": task_id,
                    "version": place + 2,
                    "type": EventType.task_progressed,
                    "created_at": at,
                    "data": {},
                }
                for place, at in places
            ],
        )
        await session.execute(text("ANALYZE"))


async def test_newest_rows_are_read_and_the_others_counted_up_to_a_bound(database: Database) -> None:
    key = await add_key(database)
    task_id, other = (await add_task(database, key)).id, (await add_task(database, key)).id
    await fill(database, task_id, key)

    with recorded(database) as statements:
        rows, nothing = await read(database, task_id), await read(database, other)
    last = MORNING + timedelta(seconds=MANY - 1)

    assert rows.counts == {"events": MAX_COUNTED, "callbacks": MAX_COUNTED, "deliveries": MAX_COUNTED}
    assert nothing.counts == {"events": 1, "callbacks": 0, "deliveries": 0}
    assert (len(rows.events), len(rows.callbacks), len(rows.deliveries)) == (MAX_EVENTS, MAX_SHOWN, MAX_SHOWN)
    assert (rows.events[-1].created_at, rows.callbacks[-1].received_at, rows.deliveries[-1].created_at) == (last,) * 3
    assert len({sql for sql, _ in statements}) <= 18

    plans = [plan for sql, parameters in statements for plan in await explain(database, sql, parameters)]
    assert [line for line in plans if is_scan(line)] == []


async def explain(database: Database, sql: str, parameters: object) -> list[str]:
    """The plan of a statement that was sent, in the driver's form."""
    if not sql.startswith("SELECT"):
        return []
    is_sqlite = database.url.startswith("sqlite")
    async with database.reads() as session:
        connection = await (await session.connection()).get_raw_connection()
        driver = connection.driver_connection
        assert driver is not None
        if is_sqlite:
            return [str(row[3]) for row in await driver.execute_fetchall(f"EXPLAIN QUERY PLAN {sql}", parameters)]
        await driver.execute("SET enable_seqscan = off")
        return [str(row[0]) for row in await driver.fetch(f"EXPLAIN {sql}", *parameters)]  # type: ignore[misc]


def is_scan(line: str) -> bool:
    """Whether this line of a plan reads a growing table from end to end, or sorts what it could read in order."""
    scanned = re.search(r"Seq Scan on (\w+)|^SCAN (\w+)(?! USING)", line)
    return bool(scanned and (scanned[1] or scanned[2]) in GROWING)


async def test_bodies_that_are_too_large_for_a_page_are_left_out(database: Database) -> None:
    key = await add_key(database)
    task_id = (await add_task(database, key)).id
    one = {"outcome": CallbackOutcome.stale, "headers": {}, "task_id": task_id}
    sizes = [100, MAX_BODIES, 200]
    async with database.writes.begin() as session:
        for place, size in enumerate(sizes):
            at = MORNING + timedelta(seconds=place)
            session.add(Callback(received_at=at, body=size * b"x", **one))

    rows = await read(database, task_id)

    assert [callback.size for callback in rows.callbacks] == sizes
    assert [callback.body and len(callback.body) for callback in rows.callbacks] == [None, None, 200]


async def test_another_callers_task_is_not_found(database: Database) -> None:
    task_id = (await add_task(database, await add_key(database))).id

    with pytest.raises(NotFound):
        await read_task_rows(
            database, Caller(await add_key(database, "others"), is_admin=False), task_id, settings_of(database.url)
        )
