"""Results of attempts are stored together, and one that cannot be stored holds up no other."""

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta

import psycopg
import pytest
from sqlalchemy import make_url
from structlog.testing import capture_logs

from app.enums import DeliveryStatus, DisabledBy
from app.webhooks.lifecycle import Attempted
from app.webhooks.retry import AttemptResult
from tests.support.receivers import Received, Reply, receiving
from tests.support.rows import add_key
from tests.support.statements import COMMIT, recorded
from tests.support.wait import eventually
from tests.webhooks.outbox import Outbox, outbox_of

on_postgresql = pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)


async def test_results_that_come_together_share_a_commit(database_url: str) -> None:
    async with outbox_of(database_url) as outbox, receiving() as receiver:
        key = await add_key(outbox.database)
        for number in range(20):
            await outbox.add_endpoint(key, receiver.url_at(f"/{number}"))
        await outbox.create_canceled_task(key)
        claimed = await outbox.loop.claim(100)

        with recorded(outbox.database) as statements:
            await asyncio.gather(*map(outbox.loop.work, claimed.items))

        assert {delivery.status for delivery in await outbox.deliveries()} == {DeliveryStatus.delivered}
        assert len(await outbox.attempts()) == len(claimed.items) == 20
        assert statements.count(COMMIT) < 10


@on_postgresql
@pytest.mark.parametrize("table", ["webhook_endpoints", "deliveries"])
async def test_locked_row_delays_its_own_result_alone(database_url: str, table: str) -> None:
    async with outbox_of(database_url) as outbox, receiving() as receiver:
        key = await add_key(outbox.database)
        endpoints = [await outbox.add_endpoint(key, receiver.url_at(f"/{number}")) for number in range(5)]
        await outbox.create_canceled_task(key)
        mine = {delivery.endpoint_id: delivery.id for delivery in await outbox.deliveries()}
        stuck = {"webhook_endpoints": endpoints[0].id, "deliveries": mine[endpoints[0].id]}[table]
        claimed = await outbox.loop.claim(100)
        with locked(database_url, table, stuck):
            working = asyncio.gather(*map(outbox.loop.work, claimed.items))
            await eventually(count_of(outbox, DeliveryStatus.delivered, 4))
            assert not working.done()
        await working

        assert await count_of(outbox, DeliveryStatus.delivered, 5)()
        assert len(receiver.requests) == len(await outbox.attempts()) == 5


async def test_endpoint_that_one_result_disables_gets_none_of_the_others_again(database_url: str) -> None:
    codes = iter([410, 500, 500])

    def respond(_: Received) -> Reply:
        return Reply(next(codes))

    async with outbox_of(database_url) as outbox, receiving() as receiver:
        receiver.respond = respond
        key = await add_key(outbox.database)
        endpoint = await outbox.add_endpoint(key, receiver.url)
        for _ in range(3):
            await outbox.create_canceled_task(key)

        await outbox.attempt_due()

        assert (await outbox.endpoint(endpoint.id)).disabled_by is DisabledBy.gone
        assert await count_of(outbox, DeliveryStatus.given_up, 3)()


async def test_endpoint_is_reported_as_disabled_when_that_is_committed(database_url: str) -> None:
    async with outbox_of(database_url) as outbox, receiving(410) as receiver:
        endpoint = await outbox.add_endpoint(key := await add_key(outbox.database), receiver.url)
        await outbox.create_canceled_task(key)
        [claimed] = (await outbox.loop.claim(100)).items
        gone = Attempted(claimed.delivery, AttemptResult(claimed.claimed_at, timedelta(), status_code=410))
        settle = outbox.services.webhook_lifecycle.settle
        with capture_logs() as lines:
            async with outbox.database.writes() as session:
                await settle(session, [gone], claimed.claimed_at)
                await session.rollback()
            rolled_back = list(lines)
            await outbox.loop.work(claimed)

    assert rolled_back == []
    assert [line["endpoint_id"] for line in lines if line["event"] == "endpoint_disabled"] == [endpoint.id]


async def test_result_for_an_endpoint_that_is_gone_is_dropped_beside_others(database_url: str) -> None:
    async with outbox_of(database_url) as outbox, receiving() as receiver:
        key = await add_key(outbox.database)
        gone, kept = [await outbox.add_endpoint(key, receiver.url_at(f"/{name}")) for name in "ab"]
        await outbox.create_canceled_task(key)
        claimed = await outbox.loop.claim(100)
        async with outbox.database.transaction() as (session, now):
            endpoint = await session.get_one(type(gone), gone.id)
            await outbox.services.webhook_lifecycle.delete_endpoint(session, endpoint, now)

        await asyncio.gather(*map(outbox.loop.work, claimed.items))

        [delivery], [attempt] = await outbox.deliveries(), await outbox.attempts()
        assert (delivery.endpoint_id, delivery.status) == (kept.id, DeliveryStatus.delivered)
        assert attempt.delivery_id == delivery.id


def count_of(outbox: Outbox, status: DeliveryStatus, count: int) -> Callable[[], Awaitable[bool]]:
    """Whether so many deliveries have this status."""

    async def is_reached() -> bool:
        return [delivery.status for delivery in await outbox.deliveries()].count(status) == count

    return is_reached


@contextmanager
def locked(database_url: str, table: str, row_id: str) -> Iterator[None]:
    """Lock a row for another session, inside the block."""
    plain = make_url(database_url).set(drivername="postgresql").render_as_string(hide_password=False)
    with psycopg.connect(plain) as connection:
        connection.execute(f"SELECT id FROM {table} WHERE id = %s FOR UPDATE", [row_id])  # noqa: S608
        yield
