"""Killed workers lose no delivery, rotated secrets fail no signature, a hung receiver delays no other."""

import asyncio
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import psycopg
import pytest
from sqlalchemy import make_url

from app.enums import DeliveryStatus
from app.models import WebhookEndpoint
from app.webhooks.repository import lock_endpoint
from app.webhooks.retry import MAX_CONCURRENT
from app.webhooks.signing import secret_of
from tests.support.processes import Processes
from tests.support.receivers import Receiver, Reply, hang, receiving, verifies
from tests.support.rows import add_key
from tests.support.settings import UNREACHABLE
from tests.support.wait import eventually
from tests.webhooks.outbox import Outbox, outbox_of

KILLS = 4


@pytest.mark.slow
async def test_killed_workers_lose_no_delivery_and_change_no_byte(
    database_url: str, tmp_path: Path, measured: Callable[[str], None]
) -> None:
    # A lease is longer than this timeout by so little that a killed worker's claims lapse within the test.
    # On a busy machine an attempt can exceed it: retries are soon, so that they are made within the test.
    schedule = ",".join(["0", *["1"] * 30])
    settings = {"webhook_timeout": "1", "webhook_schedule": schedule, "log_level": "warning"}
    async with (
        outbox_of(database_url) as outbox,
        receiving(Reply(delay=0.03)) as receiver,
    ):
        key = await add_key(outbox.database)
        for _ in range(10):
            await outbox.add_endpoint(key, receiver.url)
        with Processes(tmp_path, **settings) as processes:
            for _ in range(KILLS):
                received = len(receiver.requests)
                worker = processes.worker(database_url, UNREACHABLE)
                for _ in range(5):
                    await outbox.create_canceled_task(key)
                # Some are sent now, some are on their way, some are answered and the answer is not stored yet.
                await receiver.until(received + 20, within=60)
                worker.kill()
            processes.worker(database_url, UNREACHABLE)
            await until_settled(outbox)

        deliveries = await outbox.deliveries()
        bodies = {(request.webhook_id, request.body) for request in receiver.requests}
        per_event = Counter(request.webhook_id for request in receiver.requests)
        measured(f"{len(deliveries)} deliveries, {len(receiver.requests)} requests, {KILLS} kills")
        assert {delivery.status for delivery in deliveries} == {DeliveryStatus.delivered}
        assert bodies == {(delivery.event_id, delivery.body) for delivery in deliveries}
        assert len(per_event) == 20
        assert all(count >= 10 for count in per_event.values())


@pytest.mark.parametrize("events", [40, pytest.param(200, marks=[pytest.mark.slow, pytest.mark.timeout(600)])])
async def test_every_signature_verifies_while_secrets_are_rotated(database_url: str, events: int) -> None:
    async with outbox_of(database_url) as outbox, receiving() as receiver:
        key = await add_key(outbox.database)
        endpoints = [await outbox.add_endpoint(key, f"{receiver.url}/{number}") for number in range(5)]
        known = {f"/{n}": secret_of(e).text(outbox.services.keyring) for n, e in enumerate(endpoints)}
        receiver.respond = lambda request: Reply(204 if verifies(known[request.path], request) else 400)
        await create_canceled_tasks(outbox, key, events)

        async with outbox.running():
            for rotation in range(4):
                await receiver.until(events * rotation + events // 2, within=60)
                rotated = {f"/{n}": await rotate(outbox, endpoint) for n, endpoint in enumerate(endpoints)}
                # Receivers learn the new secrets only after what was signed before has arrived.
                await receiver.until(events * (rotation + 1), within=60)
                await until_in_flight_have_ended(outbox)
                known.update(rotated)
            await until_settled(outbox)

        assert len(receiver.requests) == 5 * events
        assert {attempt.status_code for attempt in await outbox.attempts()} == {204}


@pytest.mark.slow
async def test_hung_receiver_does_not_slow_a_hundred_others(database_url: str, measured: Callable[[str], None]) -> None:
    # No attempt at the hung one ends within the test: whatever waited for one would never be sent.
    async with (
        outbox_of(database_url, webhook_timeout="600") as outbox,
        receiving() as receiver,
        receiving(hang) as hung,
    ):
        key, other = await add_key(outbox.database), await add_key(outbox.database, "other")
        for number in range(100):
            await outbox.add_endpoint(key, f"{receiver.url}/{number}")
        stuck = await outbox.add_endpoint(other, hung.url)
        async with outbox.running():
            alone = await time_of_three_events(outbox, key, receiver, stuck.id)
            await create_canceled_tasks(outbox, other, 200)
            await hung.until(5)
            beside = await time_of_three_events(outbox, key, receiver, stuck.id)

        measured(
            f"300 deliveries to 100 endpoints: {alone:.2f} s; beside a hung one: {beside:.2f} s ({beside / alone:.2f})"
        )
        assert hung.connections == hung.at_once <= MAX_CONCURRENT[-1]
        assert len(receiver.requests) == 600


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
async def test_results_that_cannot_be_stored_leave_connections_to_requests(database_url: str) -> None:
    plain = make_url(database_url).set(drivername="postgresql").render_as_string(hide_password=False)
    async with outbox_of(database_url) as outbox, receiving() as receiver:
        for name in ("one", "other"):
            key = await add_key(outbox.database, name)
            for number in range(15):
                await outbox.create_canceled_task(key, receiver.url_at(f"/{number}"))
        claimed = (await outbox.loop.claim(100)).items
        assert len(claimed) == 30
        with psycopg.connect(plain) as connection:
            connection.execute("LOCK TABLE delivery_attempts IN EXCLUSIVE MODE")
            working = [asyncio.ensure_future(outbox.loop.work(item)) for item in claimed]
            await receiver.until(30)
            async with asyncio.timeout(2), outbox.database.reads() as session:
                await session.get(WebhookEndpoint, "none")
        await asyncio.gather(*working)

        assert {delivery.status for delivery in await outbox.deliveries()} == {DeliveryStatus.delivered}


async def until_in_flight_have_ended(outbox: Outbox) -> None:
    """Wait until each attempt that is in flight now has ended."""
    in_flight = {(delivery.id, delivery.fence) for delivery in await outbox.deliveries() if delivery.fence}

    async def have_ended() -> bool:
        return not in_flight & {(delivery.id, delivery.fence) for delivery in await outbox.deliveries()}

    await eventually(have_ended)


async def until_settled(outbox: Outbox, ignoring: str | None = None) -> None:
    """Wait until no delivery is pending, except those to one endpoint."""

    async def is_settled() -> bool:
        await asyncio.sleep(0.03)
        pending = [each for each in await outbox.deliveries() if each.status is DeliveryStatus.pending]
        return all(delivery.endpoint_id == ignoring for delivery in pending)

    await eventually(is_settled, within=90)


async def time_of_three_events(outbox: Outbox, key: str, receiver: Receiver, stuck: str) -> float:
    before, began = len(receiver.requests), time.monotonic()
    await create_canceled_tasks(outbox, key, 3)
    await receiver.until(before + 300, within=60)
    took = time.monotonic() - began
    await until_settled(outbox, ignoring=stuck)
    return took


async def create_canceled_tasks(outbox: Outbox, key: str, count: int) -> None:
    for _ in range(count):
        await outbox.create_canceled_task(key)


async def rotate(outbox: Outbox, endpoint: WebhookEndpoint) -> str:
    async with outbox.database.writes.begin() as session:
        locked = await lock_endpoint(session, endpoint.id)
        assert locked is not None
        outbox.services.webhook_lifecycle.rotate_secret(locked, await outbox.database.now(session))
    return secret_of(locked).text(outbox.services.keyring)
