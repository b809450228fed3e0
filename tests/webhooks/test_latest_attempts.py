"""The latest attempts of some deliveries are read by an index, however many there are of each."""

from __future__ import annotations

from datetime import timedelta

from sqlalchemy import insert, select, text

from app.database.engine import Database
from app.enums import WebhookType
from app.models import Delivery, DeliveryAttempt
from app.webhooks import repository
from tests.support.clock import MORNING
from tests.support.rows import add_key, add_task


async def add_deliveries(database: Database, task_id: str, key: str, number: int, attempts: int) -> list[str]:
    ids = [f"{place:032d}" for place in range(number)]
    url = {"url": "http://h/", "host": "h", "lane": "l", "body": b"{}", "created_at": MORNING}
    rows = [
        {
            "id": id_,
            "api_key_id": key,
            "task_id": task_id,
            "event_id": id_,
            "event_type": WebhookType.task_failed,
            **url,
        }
        for id_ in ids
    ]
    made = [
        {"delivery_id": ids[0], "attempted_at": MORNING + timedelta(seconds=place), "duration_ms": place}
        for place in range(attempts)
    ]
    async with database.writes.begin() as session:
        await session.execute(insert(Delivery), [{**row, "attempts": 0} for row in rows])
        await session.execute(insert(DeliveryAttempt), made)
        await session.execute(text("ANALYZE"))
    return ids


async def test_latest_attempts_of_each_delivery_are_read(database: Database) -> None:
    key = await add_key(database)
    ids = await add_deliveries(database, (await add_task(database, key)).id, key, 3, 40)

    async with database.reads() as session:
        found = await repository.latest_attempts(session, ids, 5)
        none = await repository.latest_attempts(session, [], 5)

    assert [attempt.duration_ms for attempt in found[ids[0]]] == [35, 36, 37, 38, 39]
    assert (found[ids[1]], none) == ([], {})


async def test_latest_deliveries_of_a_task_are_found_along_an_index(database: Database) -> None:
    key = await add_key(database)
    task = await add_task(database, key)
    await add_deliveries(database, task.id, key, 10_000, 1)
    latest = select(Delivery.id).where(Delivery.task_id == task.id).order_by(Delivery.id.desc()).limit(50)
    sql = str(latest.compile(database.writes.kw["bind"].sync_engine, compile_kwargs={"literal_binds": True}))
    explain = "EXPLAIN QUERY PLAN" if database.url.startswith("sqlite") else "EXPLAIN"

    async with database.reads() as session:
        plan = "\n".join(str(row) for row in await session.execute(text(f"{explain} {sql}")))

    assert "Sort" not in plan
    assert "TEMP B-TREE" not in plan
    assert "Seq Scan" not in plan
    assert "ix_deliveries_task_id_id" in plan or "pk_deliveries" in plan
