"""A crowd: many orders at once for several processes that share one database, none of which dies."""

import asyncio
import time
from collections.abc import Callable
from datetime import timedelta

from app.config import parse_rate
from tests.faults.ledger import Ledger, has_ended, most_in_a_window, read_ledger
from tests.faults.storm import insist
from tests.support.api import client_of
from tests.support.processes import Processes
from tests.support.wait import eventually

AT_ONCE = 200


async def crowd(
    processes: Processes, database_url: str, *, orders: int, rate: str, count: int, measured: Callable[[str], None]
) -> Ledger:
    """Order so many sounds at once of so many processes; return what both sides wrote down."""
    # A callback that meets a busy moment comes again soon, long before a poll would.
    sandbox = await processes.sandbox("--callback-retries", "1,2,4,8,16", delay=0.5, rate=100_000, credits=1e6)
    service = await processes.serve(database_url, sandbox.url, upstream_rate=rate, poll_after="60")
    for _ in range(count - 1):
        processes.worker(database_url, sandbox.url, public_url=service.url, upstream_rate=rate, poll_after="60")
    began, places = time.monotonic(), asyncio.Semaphore(AT_ONCE)
    async with client_of(service.url) as client:

        async def order_one(number: int) -> None:
            named = {"Idempotency-Key": f"order-{number}"}
            async with places:
                await insist(client, "/v1/tasks", json={"prompt": "soft rain"}, headers=named)

        await asyncio.gather(*(order_one(number) for number in range(orders)))
    await eventually(lambda: has_ended(database_url), within=480)
    measured(f"{orders} orders through {count} processes took {time.monotonic() - began:.1f} s")
    return await read_ledger(database_url, sandbox.url)


def promises_broken(ledger: Ledger, orders: int, rate: str) -> list[str]:
    """What a crowd must not cause, in words."""
    found = ledger.disagreements()
    if not len(ledger.tasks) == len(ledger.submits) == len(ledger.made) == orders:
        found.append(f"{len(ledger.tasks)} rows, {len(ledger.submits)} POSTs, {len(ledger.made)} accepted of {orders}")
    pace = parse_rate(rate)
    most = most_in_a_window(ledger.requests, pace.period - timedelta(milliseconds=1))
    if most > pace.requests:
        found.append(f"{most} requests reached the upstream within one window")
    return found
