"""
What a claim of the fair queue costs with many keys and a long queue, and what a look at one of its tasks does.

`python -m tests.bench.fairness --keys 500 --queued 1000000 --database sqlite`; ends with 1 where the median claim of
one task takes longer than MOST.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
import time
from collections.abc import Awaitable, Callable
from statistics import median, quantiles

import structlog
from sqlalchemy import insert

from app.auth.callers import OPERATOR
from app.database.base import new_id
from app.database.claims import Claim
from app.models import ApiKey
from app.workers.submit import submit_loop
from tests.bench.stores import opened
from tests.support.clock import MORNING
from tests.support.filling import Owner, fill_queued, settle_statistics
from tests.support.service import Service, serve
from tests.support.statements import COMMIT, recorded

MOST = 5.0
# Keys that have ordered before and have nothing in the queue.
IDLE = 5_000


async def fill(service: Service, keys: int, queued: int) -> None:
    """Fill the queue with as many tasks of each key; others are idle."""
    ids = [new_id() for _ in range(keys + IDLE)]
    rows = [{"id": id_, "name": id_, "key_hash": id_, "created_at": MORNING} for id_ in ids]
    async with service.database.writes.begin() as session:
        await session.execute(insert(ApiKey), rows)
    # Every so many of them, so that idle ones stand in between.
    busy = ids[:: len(ids) // keys][:keys]
    await fill_queued(service.database, [Owner(id_, "") for id_ in busy], queued)
    await settle_statistics(service.database)


async def claim(service: Service, limit: int) -> int:
    """Claim tasks in a transaction, as the submit loop does it once it has its slots."""
    async with service.database.transaction() as (session, now):
        claim = Claim(now, service.services.settings.submit_lease, limit)
        return len(await service.services.lifecycle.claim_submits(session, claim))


async def measure(service: Service, rounds: int) -> float:
    """Print a line for each call; return the milliseconds of the median claim of one task."""
    loop = submit_loop(service.services)
    task_id = await service.create_task()
    calls: dict[str, Callable[[], Awaitable[object]]] = {
        "look at a queued task": lambda: service.services.tasks.get(OPERATOR, task_id),
        "claim 1": lambda: claim(service, 1),
        "claim 20": lambda: claim(service, 20),
        "turn of the submit loop, 1 task": lambda: loop.claim(1),
    }
    medians = {}
    for name, call in calls.items():
        times, cpu = [], time.process_time()
        for _ in range(rounds):
            began = time.perf_counter()
            await call()
            times.append((time.perf_counter() - began) * 1000)
        cpu = (time.process_time() - cpu) * 1000 / rounds
        with recorded(service.database) as statements:
            await call()
        sent = len([each for each in statements if each != COMMIT])
        medians[name] = median(times)
        tail = quantiles(times, n=20)[-1]
        least = min(times)
        print(
            f"  {name:34} p50 {medians[name]:6.1f} ms, p95 {tail:6.1f}, least {least:6.1f};"
            f" {cpu:5.1f} ms of our CPU, {sent} statements",
            flush=True,
        )
    return medians["claim 1"]


async def run(database: str, keys: int, queued: int, rounds: int) -> float:
    """Fill a database and measure."""
    with opened(database) as store:
        async with serve(store.create("fairness"), upstream_rate="1000/10") as service:
            async with service.database.transaction() as (session, now):
                await service.services.gateway.pacer.prepare(session, now)
            began = time.perf_counter()
            await fill(service, keys, queued)
            filled = time.perf_counter() - began
            load = os.getloadavg()[0]
            print(f"{database}: {keys} keys, {queued:,} queued (filled in {filled:.0f} s, load {load:.1f})", flush=True)
            return await measure(service, rounds)


def main() -> int:
    """Read the sizes from the command line, and run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--keys", type=int, default=500, help="keys with tasks in the queue")
    parser.add_argument("--queued", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=100, help="calls of each kind")
    parser.add_argument("--database", action="append", choices=["sqlite", "postgresql"])
    given = parser.parse_args()
    structlog.configure(logger_factory=structlog.ReturnLoggerFactory())
    names = given.database or ["sqlite", "postgresql"]
    slowest = max(asyncio.run(run(name, given.keys, given.queued, given.rounds)) for name in names)
    return int(slowest > MOST)


if __name__ == "__main__":
    sys.exit(main())
