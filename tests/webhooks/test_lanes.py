"""Claims share their places among keys, hosts and receivers, and read no more than they need for that."""

import time
from datetime import datetime, timedelta
from uuid import uuid4

import pytest
from sqlalchemy import insert, text

from app.database.base import new_id
from app.database.engine import Database
from app.enums import DeliveryStatus, WebhookType
from app.models import Delivery
from tests.support.clock import Clock
from tests.support.receivers import Behaviour, Received, Reply, hang, receiving
from tests.support.rows import add_key
from tests.support.statements import recorded
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


@pytest.mark.parametrize(("max_walk", "count"), [(200, 3), (50, 8)])
async def test_claim_reads_deliveries_by_index_alone(
    database_url: str, monkeypatch: pytest.MonkeyPatch, max_walk: int, count: int
) -> None:
    monkeypatch.setattr("app.webhooks.due.MAX_WALK", max_walk)
    async with outbox_of(database_url) as outbox:
        key = await add_key(outbox.database)
        now = await _now(outbox)
        later = now + timedelta(hours=1)
        await _add_deliveries(outbox.database, key, MANY, is_ready=False, due_at=later, created_at=now)
        await _add_deliveries(outbox.database, key, MANY, is_ready=False, due_at=None, created_at=now)
        await _add_deliveries(outbox.database, key, 50, is_ready=True, due_at=now, created_at=now)
        async with outbox.database.writes.begin() as session:
            await session.execute(text("ANALYZE"))

        with recorded(outbox.database) as statements:
            assert len((await outbox.loop.claim(100)).items) == 20

        asked = [statement for statement in statements if "deliveries" in statement.sql]
        assert len(asked) == count
        explain = "EXPLAIN QUERY PLAN" if database_url.startswith("sqlite") else "EXPLAIN"
        async with outbox.database.reads() as session:
            connection = await session.connection()
            plans = [
                "\n".join(
                    " ".join(map(str, row)) for row in await connection.exec_driver_sql(f"{explain} {sql}", given)
                )
                for sql, given in asked
            ]
        assert not any("Seq Scan on deliveries" in plan or "SCAN deliveries" in plan for plan in plans), plans
        if database_url.startswith("sqlite") and max_walk == 200:
            # From lane to lane, and not through each lane's backlog.
            assert "(api_key_id,host,lane,due_at)>" in plans[1]


async def test_lane_with_less_than_its_share_leaves_its_place_to_the_others(database_url: str) -> None:
    async with outbox_of(database_url) as outbox:
        key, now = await add_key(outbox.database), await _now(outbox)
        ready = {"is_ready": True, "due_at": now, "created_at": now}
        await _add_deliveries(outbox.database, key, 6, **ready)
        await _add_deliveries(outbox.database, key, 30, **ready, lane="long")

        claimed = await outbox.loop.claim(100)

        # Of the twenty places of the host each lane was promised some, and most had one delivery only.
        assert (len(claimed.items) < 20, claimed.idle) == (True, timedelta())
        assert [(await outbox.loop.claim(100)).idle for _ in range(3)][-1] is None


async def test_single_delivery_is_claimed_by_one_claim(database_url: str) -> None:
    async with outbox_of(database_url) as outbox:
        key = await add_key(outbox.database)
        await outbox.create_canceled_task(key, "http://127.0.0.1:9/")

        claimed = await outbox.loop.claim(100)

        assert (len(claimed.items), claimed.idle) == (1, None)


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
            "body": b"{}",
            "status": DeliveryStatus.pending,
            "lane": uuid4().hex,
            **columns,
        }
        for _ in range(count)
    ]
    async with database.writes.begin() as session:
        await session.execute(insert(Delivery), rows)
