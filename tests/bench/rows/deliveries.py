"""Webhooks that are due all at once."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from urllib.parse import urlsplit

from app.database.base import new_id
from app.database.engine import Database
from app.models import WebhookEndpoint
from tests.bench.client import connect, request_bytes
from tests.bench.report import Figure
from tests.bench.servers import Server
from tests.bench.stand import Stand, owner_in
from tests.bench.stores import execute
from tests.bench.upstream import serving_upstream
from tests.support.filling import Owner, fill_deliveries, fill_finished, settle_statistics
from tests.support.settings import KEY

# So many endpoints on so many hosts, all of this machine: no limit on what one key, host or receiver gets at once
# holds up the others.
HOSTS, ENDPOINTS = 5, 20
DELIVERIES, FEW = 2_000, 500


def webhooks(stand: Stand) -> list[Figure]:
    """Webhooks delivered a second by one process, and the CPU of each."""
    count = FEW if stand.size.is_quick else DELIVERIES
    return asyncio.run(_measure(stand, count))


async def _measure(stand: Stand, count: int) -> list[Figure]:
    rates, costs, databases = [], [], []
    async with serving_upstream() as receiver:
        for _ in stand.rounds(3):
            receiver.webhooks.clear()
            with stand.running("webhooks") as service:
                await _fill(service, receiver.url, count)
                await asyncio.to_thread(service.settle)
                before = service.cpu(), stand.store.cpu()
                execute(service.database_url, f"UPDATE deliveries SET due_at = '{_now(stand)}', is_ready = TRUE")  # noqa: S608
                await _wake(service)
                # One more: that of the call that wakes the loop.
                await receiver.until(webhooks=count + 1, within=300)
                rates.append(count / (receiver.webhooks[-1] - receiver.webhooks[0]))
                await asyncio.to_thread(service.settle)
                costs.append((service.cpu() - before[0]) * 1000 / count)
                databases.append((stand.store.cpu() - before[1]) * 1000 / count)
    how = f"{count:,} that are due at once, for {ENDPOINTS} endpoints on {HOSTS} hosts"
    figures = [
        Figure("webhooks delivered", rates, "/s", how, at_least=1000),
        Figure("CPU of the service", costs, "ms each", at_most=1),
    ]
    if not stand.store.is_sqlite:
        figures.append(Figure("CPU of the database", databases, "ms each"))
    return figures


async def _fill(service: Server, receiver_url: str, count: int) -> None:
    """Add endpoints of one key, and deliveries to them that are due in an hour."""
    owner, port = owner_in(service.database_url), urlsplit(receiver_url).port
    urls = [f"http://127.0.0.{1 + number % HOSTS}:{port}/hook/{number}" for number in range(ENDPOINTS)]
    database = Database(service.database_url)
    endpoints = [
        WebhookEndpoint(
            id=new_id(), api_key_id=owner.key_id, url=url, secret_generation=0, created_at=datetime.now(UTC)
        )
        for url in urls
    ]
    async with database.writes.begin() as session:
        session.add_all(endpoints)
    owners = [Owner(owner.key_id, endpoint.id) for endpoint in endpoints]
    await fill_finished(database, owners, count, histories=0)
    await fill_deliveries(database, owners, count)
    await settle_statistics(database)
    await database.close()
    for endpoint in endpoints:
        host = urlsplit(endpoint.url).netloc
        execute(service.database_url, f"UPDATE deliveries SET host = '{host}' WHERE endpoint_id = '{endpoint.id}'")  # noqa: S608


def _now(stand: Stand) -> str:
    zone = "" if stand.store.is_sqlite else "+00"
    return f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S.%f}{zone}"


async def _wake(service: Server) -> None:
    """Make the service look for deliveries, by one more of them."""
    headers = {"Authorization": f"Bearer {KEY}"}
    [[endpoint_id]] = execute(service.database_url, "SELECT id FROM webhook_endpoints LIMIT 1")
    connection = await connect(service.url)
    path = f"/v1/webhook-endpoints/{endpoint_id}/test"
    status, body = await connection.exchange(request_bytes("POST", path, headers))
    connection.close()
    assert status == 202, body
