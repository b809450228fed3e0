"""
What each call costs on a database that has grown, against one of some hundred rows, in one run.

Both databases are served side by side and called in turn, so that a busy machine slows
both. Ends with 1 if any call's median takes more than twice as long, or a change of an
endpoint with all deliveries more than a second.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime, timedelta
from statistics import median
from typing import Any

import structlog
from sqlalchemy import select

from app.auth.callers import OPERATOR
from app.enums import TaskStatus
from app.models import ApiKey
from app.retention import Retention
from app.tasks.schemas import TaskFilters
from app.workers.archive import archive_loop
from app.workers.deliver import deliver_loop
from app.workers.poll import poll_loop
from app.workers.submit import submit_loop
from tests.bench.stores import opened
from tests.support.filling import (
    add_owner,
    fill_deliveries,
    fill_finished,
    fill_queued,
    fill_sums,
    settle_statistics,
)
from tests.support.service import Service, serve

MOST = 2.0
# Seconds for a change of all deliveries of an endpoint.
AT_MOST = 1.0
AT_ONCE = 60
# The rows of the database that stands for an empty one: enough to fill a page of each list.
FEW = argparse.Namespace(tasks=400, queued=100, deliveries=100)
Call = Callable[[Service], Awaitable[object]]
numbers = itertools.count(1)


def get(path: str) -> Call:
    """A GET that must succeed."""

    async def call(service: Service) -> object:
        return (await service.client.get(path)).raise_for_status()

    return call


async def order(service: Service) -> object:
    """One order, with labels."""
    body = {"prompt": "soft rain", "metadata": {"scene": "s7", "part": "p7"}}
    return (await service.client.post("/v1/tasks", json=body)).raise_for_status()


async def orders_at_once(service: Service) -> object:
    """Many orders at once, until the last is answered."""
    return await asyncio.gather(*(order(service) for _ in range(AT_ONCE)))


async def read_queued(service: Service) -> object:
    """A look at the latest queued task."""
    return (await service.client.get(f"/v1/tasks/2{FEW.queued:031x}")).raise_for_status()


async def list_as_admin(service: Service) -> object:
    """The newest tasks of all keys."""
    return await service.services.tasks.list(OPERATOR, TaskFilters(), {}, None, 51)


async def prune(service: Service) -> object:
    """A look for what is past its retention, when nothing is."""
    async with service.database.transaction() as (session, now):
        return await Retention(days=90, audit_days=365).erase_batch(session, now)


async def claim_submits(service: Service) -> object:
    """One queued task."""
    return await submit_loop(service.services).claim(1)


async def claim_polls(service: Service) -> object:
    """No task is due for a poll."""
    return await poll_loop(service.services).claim(1)


async def claim_clips(service: Service) -> object:
    """No clip is due."""
    return await archive_loop(service.services).claim(1)


async def claim_deliveries(service: Service) -> object:
    """No delivery is due, and many wait."""
    return await deliver_loop(service.services).claim(5)


CALLS: dict[str, Call] = {
    "POST /v1/tasks": order,
    f"{AT_ONCE} × POST /v1/tasks at once": orders_at_once,
    "GET a queued task": read_queued,
    "GET a finished task": get(f"/v1/tasks/1{7:031x}"),
    "list": get("/v1/tasks"),
    "list status=queued": get("/v1/tasks?status=queued"),
    "list status=failed": get("/v1/tasks?status=failed"),
    "list status=canceled, none": get("/v1/tasks?status=canceled"),
    "list model=V4": get("/v1/tasks?model=V4"),
    "list model=V3, none": get("/v1/tasks?model=V3"),
    "list created_before": get(f"/v1/tasks?created_before={datetime.now(UTC) - timedelta(days=15):%Y-%m-%dT%H:%M:%SZ}"),
    "list metadata, one in 1000": get("/v1/tasks?metadata.scene=s7&limit=1"),
    "list metadata, one in 10": get("/v1/tasks?metadata.part=p7"),
    "list metadata, one in 10 and none": get("/v1/tasks?metadata.part=p7&metadata.scene=nowhere"),
    "list metadata, none": get("/v1/tasks?metadata.scene=nowhere"),
    "list as admin": list_as_admin,
    "list deliveries": get("/v1/deliveries"),
    "list deliveries status=pending": get("/v1/deliveries?status=pending"),
    "list deliveries status=given_up, none": get("/v1/deliveries?status=given_up"),
    "usage, all": get("/v1/usage"),
    "usage, a day": get(f"/v1/usage?since={datetime.now(UTC) - timedelta(days=1):%Y-%m-%dT%H:%M:%SZ}"),
    "claim a submit": claim_submits,
    "claim a poll, none due": claim_polls,
    "claim a clip, none due": claim_clips,
    "claim deliveries, none due": claim_deliveries,
    "prune, nothing expired": prune,
}


async def time_callback(service: Service) -> float:
    """Seconds for the callback that ends a generating task."""
    upstream_task_id = f"u{next(numbers)}"
    task = await service.add_task(TaskStatus.generating, now=datetime.now(UTC), upstream_task_id=upstream_task_id)
    clip = {"id": upstream_task_id, "audio_url": "http://127.0.0.1:9/1.mp3"}
    report = {"code": 200, "msg": "", "data": {"callbackType": "complete", "task_id": upstream_task_id, "data": [clip]}}
    started = time.perf_counter()
    (await service.anonymous.post(service.callback_path(task.id), json=report)).raise_for_status()
    return time.perf_counter() - started


async def time_call(call: Call, service: Service) -> float:
    """Seconds for one call."""
    started = time.perf_counter()
    await call(service)
    return time.perf_counter() - started


async def fill(service: Service, sizes: argparse.Namespace) -> None:
    """Fill a service's database: every row belongs to one key, which is the worst case of all filters."""
    async with service.database.reads() as session:
        key_id = (await session.scalars(select(ApiKey.id).where(ApiKey.name == "tests"))).one()
    owners = [await add_owner(service.database, key_id)]
    await fill_finished(service.database, owners, sizes.tasks, histories=sizes.deliveries)
    await fill_queued(service.database, owners, sizes.queued)
    await fill_deliveries(service.database, owners, sizes.deliveries)
    await fill_sums(service.database)
    await settle_statistics(service.database)


async def measure(empty: Service, full: Service, rounds: int) -> list[str]:
    """Print a line for each call; return the calls that take too long."""
    too_long = []
    timed = {name: lambda service, call=call: time_call(call, service) for name, call in CALLS.items()}
    for name, timing in {**timed, "callback": time_callback}.items():
        # Again if it took too long: on a busy machine the many that share it may have slowed one side.
        for _ in range(3):
            seconds = [(await timing(empty), await timing(full)) for _ in range(rounds + 1)]
            # The first of each compiles the statement and fills caches.
            small, large = (median(times) * 1000 for times in zip(*seconds[1:], strict=True))
            if large / small <= MOST:
                break
        print(f"  {name:40} {small:9.1f} ms {large:9.1f} ms {large / small:7.2f} ×", flush=True)
        if large / small > MOST:
            too_long.append(name)
    return too_long


async def measure_changes(full: Service) -> list[str]:
    """Print a line for each change of an endpoint with all deliveries; return the ones above AT_MOST."""
    [endpoint] = (await full.client.get("/v1/webhook-endpoints")).json()["items"]
    path = f"/v1/webhook-endpoints/{endpoint['id']}"
    since = {"since": f"{datetime.now(UTC) - timedelta(days=40):%Y-%m-%dT%H:%M:%SZ}"}
    changes: dict[str, tuple[str, str, Any]] = {
        "recover an endpoint": ("POST", f"{path}/recover", since),
        "redirect an endpoint": ("PATCH", path, {"url": "https://example.com/moved"}),
        "disable an endpoint": ("PATCH", path, {"disabled": True}),
        "delete an endpoint": ("DELETE", path, None),
    }
    too_long = []
    for name, (method, url, body) in changes.items():
        started = time.perf_counter()
        (await full.client.request(method, url, json=body)).raise_for_status()
        seconds = time.perf_counter() - started
        print(f"  {name:40} {'':12} {seconds * 1000:9.1f} ms", flush=True)
        if seconds > AT_MOST:
            too_long.append(f"{name}: {seconds:.1f} s")
    return too_long


@asynccontextmanager
async def served(urls: list[str]) -> AsyncIterator[list[Service]]:
    """Each of these databases, served."""
    async with AsyncExitStack() as stack:
        yield [await stack.enter_async_context(serve(url, upstream_rate="1000/10")) for url in urls]


async def run(databases: list[str], sizes: argparse.Namespace) -> int:
    """Measure on each database; return the exit code."""
    too_long = []
    for name in databases:
        with opened(name) as store:
            async with served([store.create(each) for each in ("few", "many")]) as (empty, full):
                started = time.perf_counter()
                await fill(empty, FEW)
                await fill(full, sizes)
                rows = f"{sizes.tasks:,} finished, {sizes.queued:,} queued, {sizes.deliveries:,} deliveries"
                print(f"{name}: {rows} (filled in {time.perf_counter() - started:.0f} s)", flush=True)
                slow = [*await measure(empty, full, sizes.rounds), *await measure_changes(full)]
                too_long += [f"{name}: {call}" for call in slow]
    for line in too_long:
        print(f"too long: {line}")
    return 1 if too_long else 0


def main() -> int:
    """Read the sizes from the command line, and run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tasks", type=int, default=1_000_000, help="finished tasks")
    parser.add_argument("--queued", type=int, default=100_000)
    parser.add_argument("--deliveries", type=int, default=300_000, help="pending deliveries")
    parser.add_argument("--rounds", type=int, default=15, help="calls of each kind, of which the median counts")
    parser.add_argument("--database", action="append", choices=["sqlite", "postgresql"])
    sizes = parser.parse_args()
    structlog.configure(logger_factory=structlog.ReturnLoggerFactory())
    return asyncio.run(run(sizes.database or ["sqlite", "postgresql"], sizes))


if __name__ == "__main__":
    sys.exit(main())
