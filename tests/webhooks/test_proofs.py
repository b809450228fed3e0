"""Nothing is lost when workers are killed, no signature fails while secrets change, no hung receiver delays others."""

import asyncio
import os
import sys
import time
from asyncio.subprocess import Process
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import standardwebhooks

from app.database.engine import ROOT
from app.enums import DeliveryStatus
from app.models import WebhookEndpoint
from app.webhooks.repository import lock_endpoint
from app.webhooks.signing import secret_of
from tests.webhooks.receivers import HANG, Received, Receiver, Reply, receiving
from tests.webhooks.service import SECRET_KEY, Service, joined

PENDING = DeliveryStatus.pending


async def until_settled(service: Service, ignoring: str | None = None, within: float = 90) -> float:
    """Wait until nothing is pending, except for one endpoint; return how long it took."""
    began = time.monotonic()
    async with asyncio.timeout(within):
        # Nobody tells a test, which is none of the service's processes, of commits.
        while any(  # noqa: ASYNC110
            d.status is PENDING and d.endpoint_id != ignoring for d in await service.deliveries()
        ):
            await asyncio.sleep(0.05)
    return time.monotonic() - began


@asynccontextmanager
async def worker(database_url: str) -> AsyncIterator[Process]:
    """`soundpost worker` as a process, killed when the block ends."""
    settings = {
        "DATABASE_URL": database_url,
        "SECRET_KEYS": SECRET_KEY,
        "EGRESS_ALLOW": "127.0.0.0/8",
        "UPSTREAM_URL": "http://127.0.0.1:9",
        "UPSTREAM_API_KEY": "none",
        # A lease is longer than this by so much that a killed worker's claims lapse within the test.
        "WEBHOOK_TIMEOUT": "1",
        "LOG_LEVEL": "warning",
    }
    surroundings = {**os.environ, "PYTHONPATH": str(ROOT)}
    env = surroundings | {f"SOUNDPOST_{name}": value for name, value in settings.items()}
    command = (sys.executable, "-m", "app.cli", "worker")
    process = await asyncio.create_subprocess_exec(*command, env=env, stdin=asyncio.subprocess.DEVNULL)
    try:
        yield process
    finally:
        process.kill()
        await process.wait()


async def test_storm_of_kills_loses_no_delivery_and_changes_no_byte(
    database_url: str, measured: Callable[[str], None]
) -> None:
    async with joined(database_url) as service, receiving(Reply(delay=0.03)) as receiver:
        key = await service.add_key()
        for _ in range(10):
            await service.add_endpoint(key, receiver.url)
        for _ in range(4):
            seen = len(receiver.received)
            async with worker(database_url):
                for _ in range(5):
                    await service.order_and_cancel(key)
                # In the middle of it: some are sent, some on their way, some answered and not written down yet.
                await receiver.until(seen + 20, within=60)
        async with worker(database_url):
            await until_settled(service)

        deliveries = await service.deliveries()
        bodies = {(got.webhook_id, got.body) for got in receiver.received}
        per_event = Counter(got.webhook_id for got in receiver.received)
        measured(f"{len(deliveries)} deliveries, {len(receiver.received)} requests, 4 kills")
        assert {delivery.status for delivery in deliveries} == {DeliveryStatus.delivered}
        assert bodies == {(delivery.event_id, delivery.body) for delivery in deliveries}
        assert len(per_event) == 20
        assert all(count >= 10 for count in per_event.values())


async def test_every_signature_verifies_while_secrets_are_rotated(database_url: str) -> None:
    await check_rotations(database_url, events=100)


async def test_hung_receiver_does_not_slow_a_hundred_others(database_url: str, measured: Callable[[str], None]) -> None:
    async with joined(database_url) as service, receiving() as receiver, receiving(HANG) as hung:
        key, other = await service.add_key(), await service.add_key("other")
        for number in range(100):
            await service.add_endpoint(key, f"{receiver.url}/{number}")
        stuck = await service.add_endpoint(other, hung.url)
        async with service.running():
            alone = await time_of_three_events(service, key, receiver, stuck.id)
            await order_and_cancel_many(service, other, 200)
            await hung.until(5)
            beside = await time_of_three_events(service, key, receiver, stuck.id)

        measured(
            f"300 deliveries to 100 endpoints: {alone:.2f} s; beside a hung one: {beside:.2f} s ({beside / alone:.2f})"
        )
        assert beside < 2 * alone + 1


async def check_rotations(database_url: str, events: int) -> None:
    """Rotate the secrets of five endpoints again and again while each is told of so many events."""
    async with joined(database_url) as service, receiving() as receiver:
        key = await service.add_key()
        endpoints = [await service.add_endpoint(key, f"{receiver.url}/{number}") for number in range(5)]
        known = {f"/hook/{n}": secret_of(e).text(service.services.keyring) for n, e in enumerate(endpoints)}
        receiver.decide = lambda got: Reply(204 if verifies(known[got.path], got) else 400)
        await order_and_cancel_many(service, key, events)

        async with service.running():
            for rotation in range(4):
                await receiver.until(events * rotation + events // 2, within=60)
                rotated = {f"/hook/{n}": await rotate(service, endpoint) for n, endpoint in enumerate(endpoints)}
                # Receivers learn the new secrets only after what was signed before has arrived. More requests than can
                # be in flight at once show that no claim from before the rotation is still open.
                await receiver.until(events * (rotation + 1), within=60)
                await until_in_flight_have_arrived(service)
                known.update(rotated)
            await until_settled(service)

        assert len(receiver.received) == 5 * events
        assert {attempt.status_code for attempt in await service.attempts()} == {204}


async def until_in_flight_have_arrived(service: Service) -> None:
    """Wait until each attempt that is in flight now has ended."""
    in_flight = {(delivery.id, delivery.fence) for delivery in await service.deliveries() if delivery.fence}
    while in_flight & {(d.id, d.fence) for d in await service.deliveries()}:  # noqa: ASYNC110 - no event to await
        await asyncio.sleep(0.02)


async def time_of_three_events(service: Service, key: str, receiver: Receiver, stuck: str) -> float:
    before, began = len(receiver.received), time.monotonic()
    await order_and_cancel_many(service, key, 3)
    await receiver.until(before + 300, within=60)
    took = time.monotonic() - began
    await until_settled(service, ignoring=stuck)
    return took


async def order_and_cancel_many(service: Service, key: str, count: int) -> None:
    for _ in range(count):
        await service.order_and_cancel(key)


async def rotate(service: Service, endpoint: WebhookEndpoint) -> str:
    async with service.services.database.writes.begin() as session:
        locked = await lock_endpoint(session, endpoint.id)
        assert locked is not None
        service.services.webhook_lifecycle.rotate_secret(locked, await service.now_in(session))
    return secret_of(locked).text(service.services.keyring)


def verifies(secret: str, got: Received) -> bool:
    try:
        standardwebhooks.Webhook(secret).verify(got.body, got.headers)
    except standardwebhooks.WebhookVerificationError:
        return False
    return True
