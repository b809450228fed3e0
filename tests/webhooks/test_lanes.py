"""Claims share their places among keys, hosts and receivers, and read no more than they need for that."""

import time
from datetime import datetime, timedelta
from uuid import uuid4

import pytest
from sqlalchemy import event, insert, text

from app.database.base import new_id
from app.database.engine import Database
from app.enums import DeliveryStatus, WebhookType
from app.models import Delivery
from tests.support.clock import Clock
from tests.support.receivers import Behaviour, Received, Reply, hang, receiving
from tests.support.rows import add_key
from tests.webhooks.outbox import Outbox, outbox_of

MANY = 5000


async def test_slow_path_of_a_host_does_not_delay_another_path(database_url: str) -> None:
    def respond(request: Received) -> Behaviour:
        return hang if request.path.startswith("/slow") else Reply()

    async with outbox_of(database_url) as outbox, receiving() as receiver:
        receiver.respond = respond
        key = await add_key(outbox.database)
        for number in range(10):
            # The query varies, and the receiver is the same.
            await outbox.create_canceled_task(key, receiver.url_at(f"/slow?order={number}"))
        async with outbox.running():
            await receiver.until(5)
            began = time.monotonic()
            await outbox.create_canceled_task(key, receiver.url_at("/good"))
            await receiver.until(6)

        assert time.monotonic() - began < 5
        assert [request.path for request in receiver.requests][5:] == ["/good"]
        assert receiver.max_at_once == 6


async def test_silent_hosts_of_one_key_do_not_delay_another_key(database_url: str) -> None:
    async with outbox_of(database_url) as outbox, receiving() as receiver:
        key, other = await add_key(outbox.database), await add_key(outbox.database, "other")
        for number in range(60):
            await outbox.create_canceled_task(key, f"http://127.0.1.{number}:9/")
        claimed = await outbox.loop.claim(outbox.loop.concurrency)
        assert len(claimed.items) == 50

        await outbox.create_canceled_task(other, receiver.url)

        assert await outbox.attempt_due() == 1
        assert len(receiver.requests) == 1


async def test_every_lane_has_its_turn_where_there_are_more_than_a_claim_looks_at(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.webhooks.due.MAX_WALK", 5)
    async with outbox_of(database_url) as outbox, receiving() as receiver:
        key, now = await add_key(outbox.database), await _now(outbox)
        ready = {"is_ready": True, "due_at": now, "created_at": now, "url": receiver.url}
        await _add_deliveries(outbox.database, key, 30, **ready)

        while await outbox.attempt_due():
            pass

        assert len(receiver.requests) == 30


async def test_deliveries_whose_time_has_come_are_claimed_in_batches(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.webhooks.repository.MAX_BATCH", 2)
    clock = Clock()
    async with outbox_of(database_url, clock) as outbox:
        key = await add_key(outbox.database)
        await _add_deliveries(outbox.database, key, 3, is_ready=False, due_at=clock.now, created_at=clock.now)

        first, second = await outbox.loop.claim(100), await outbox.loop.claim(100)

        assert (len(first.items), first.idle) == (2, timedelta())
        assert (len(second.items), second.idle) == (1, None)


async def test_claim_reads_deliveries_by_index_alone(database_url: str) -> None:
    async with outbox_of(database_url) as outbox:
        key = await add_key(outbox.database)
        now = await _now(outbox)
        later = now + timedelta(hours=1)
        await _add_deliveries(outbox.database, key, MANY, is_ready=False, due_at=later, created_at=now)
        await _add_deliveries(outbox.database, key, MANY, is_ready=False, due_at=None, created_at=now)
        await _add_deliveries(outbox.database, key, 50, is_ready=True, due_at=now, created_at=now)
        async with outbox.database.writes.begin() as session:
            await session.execute(text("ANALYZE"))
        statements: list[str] = []

        def note(connection: object, clause: object, *_: object) -> None:
            compiled = clause.compile(dialect=connection.dialect, compile_kwargs={"literal_binds": True})  # type: ignore[attr-defined]
            if "deliveries" in str(compiled):
                statements.append(str(compiled))

        engine = outbox.database.writes.kw["bind"].sync_engine
        event.listen(engine, "before_execute", note)
        assert len((await outbox.loop.claim(100)).items) == 20
        event.remove(engine, "before_execute", note)

        assert len(statements) == 24
        explain = "EXPLAIN QUERY PLAN " if database_url.startswith("sqlite") else "EXPLAIN "
        async with outbox.database.writes() as session:
            for statement in set(statements):
                escaped = text(explain + statement.replace(":", r"\:"))
                plan = [" ".join(map(str, row)) for row in await session.execute(escaped)]
                assert not any("Seq Scan on deliveries" in line or "SCAN deliveries" in line for line in plan), plan


async def _now(outbox: Outbox) -> datetime:
    async with outbox.database.reads() as session:
        return await outbox.database.now(session)


async def _add_deliveries(database: Database, key: str, count: int, **columns: object) -> None:
    """Deliveries that each have a lane of their own, at one host."""
    rows = [
        {
            "id": new_id(),
            "api_key_id": key,
            "event_id": "e",
            "event_type": WebhookType.task_canceled,
            "url": "http://127.0.0.1:9/",
            "host": "h",
            "lane": uuid4().hex,
            "body": b"{}",
            "status": DeliveryStatus.pending,
            **columns,
        }
        for _ in range(count)
    ]
    async with database.writes.begin() as session:
        await session.execute(insert(Delivery), rows)
