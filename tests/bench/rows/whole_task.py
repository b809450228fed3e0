"""The whole way of tasks, many at once: order, POST, three callbacks, two clips kept, one webhook."""

from __future__ import annotations

import asyncio
import json
import signal
import time
from dataclasses import dataclass
from pathlib import Path

from tests.bench import counted_sqlite, profiled
from tests.bench.client import request_bytes, send_all
from tests.bench.report import Figure
from tests.bench.servers import Server
from tests.bench.stand import Stand
from tests.bench.stores import execute
from tests.bench.upstream import Upstream, serving_upstream
from tests.support.settings import KEY
from tests.support.wait import eventually

HEADERS = {"Authorization": f"Bearer {KEY}", "Content-Type": "application/json"}
TASKS, FEW = 300, 60
AT_ONCE = 32
# Functions of ours that a profile shows.
SHOWN = 40
# Of the callbacks, each after the one before it.
DELAYS = 0.05, 0.05, 0.05
KEPT = "SELECT count(*) FROM clips WHERE archived_at IS NOT NULL"


@dataclass(frozen=True)
class Passage:
    """Many tasks from the first order to the last clip: CPU in ms a task."""

    rate: float
    refused: int
    service: float
    database: float
    client: float


def whole_task(stand: Stand) -> list[Figure]:
    """One whole task, 300 at once: its CPU, tasks a second, statements and commits."""
    tasks = FEW if stand.size.is_quick else TASKS
    database_url = stand.store.create(stand.new_name("whole"))
    passages = [asyncio.run(_measure(stand, database_url, tasks)) for _ in stand.rounds()]
    statements, commits = asyncio.run(_count(stand, database_url))
    client = max(each.client for each in passages)
    counted = f"{statements:.1f} statements, {commits:.1f} commits a task; client and upstream {client:.1f} ms"
    if refused := sum(each.refused for each in passages):
        counted += f"; **{refused} callbacks refused**"
    rates = [each.rate for each in passages]
    figures = [
        Figure("CPU of the service", [each.service for each in passages], "ms a task", counted, at_most=12),
        Figure("tasks", rates, "/s", f"{tasks} at once, {AT_ONCE} connections", at_least=60),
    ]
    if not stand.store.is_sqlite:
        figures.append(Figure("CPU of the database", [each.database for each in passages], "ms a task"))
    return figures


def profile(stand: Stand) -> list[Figure]:
    """Where the event loop spends the time of whole tasks, by samples; in greenlets without what waits for them."""
    packages, functions = profiled.shares(asyncio.run(_profile(stand)))
    own = [Figure(name, [share], "%", "of the time, in itself") for name, share in packages.most_common()]
    return own + [
        Figure(f"`{name}`", [share], "%", "with all it calls") for name, share in functions.most_common(SHOWN)
    ]


async def _profile(stand: Stand) -> Path:
    file = stand.store.folder / f"{stand.new_name('profile')}.pstats"
    async with serving_upstream(*DELAYS) as upstream:
        with stand.running("profiled", profile=file, upstream_url=upstream.url) as service:
            service.process.send_signal(signal.SIGUSR1)
            await _pass(service, upstream, TASKS)
            service.process.send_signal(signal.SIGUSR1)
            await eventually(file.exists)
    return file


async def _measure(stand: Stand, database_url: str, tasks: int) -> Passage:
    async with serving_upstream(*DELAYS) as upstream:
        with stand.running("tasks", url=database_url, upstream_url=upstream.url) as service:
            await asyncio.to_thread(service.settle)
            before = service.cpu(), stand.store.cpu(), time.process_time()
            seconds = await _pass(service, upstream, tasks)
            spent = service.cpu() - before[0], stand.store.cpu() - before[1], time.process_time() - before[2]
    return Passage(tasks / seconds, upstream.refused, *(each * 1000 / tasks for each in spent))


async def _count(stand: Stand, database_url: str) -> tuple[float, float]:
    """Statements and commits of a task, of which a few are on their way; those of idle loops count too."""
    async with serving_upstream(*DELAYS) as upstream:
        file = stand.store.folder / "tasks.statements" if stand.store.is_sqlite else None
        with stand.running("tasks", url=database_url, counts=file, upstream_url=upstream.url) as service:
            if file is not None:
                before = counted_sqlite.read(file)
                await _pass(service, upstream, FEW)
                after = counted_sqlite.read(file)
                return (after[0] - before[0]) / FEW, (after[1] - before[1]) / FEW
            with stand.store.logged(database_url) as found:
                await _pass(service, upstream, FEW)
    if stand.size.shows_statements:
        found[0].show(FEW, "task")
    return found[0].statements / FEW, found[0].commits / FEW


async def _pass(service: Server, upstream: Upstream, tasks: int) -> float:
    """Order the tasks; return the seconds until the last webhook has come and the last clip is kept."""
    kept = _kept(service)
    order = json.dumps({"prompt": "soft rain on a tin roof", "webhook_url": f"{upstream.url}/hook"})
    request = request_bytes("POST", "/v1/tasks", HEADERS, order)
    began = time.monotonic()
    statuses = await send_all(service.url, [request] * tasks, AT_ONCE)
    if set(statuses) != {202}:
        raise SystemExit(f"orders were answered with {sorted(set(statuses))}")
    await upstream.until(posts=tasks, webhooks=tasks, downloads=2 * tasks, within=150)
    await eventually(lambda: _kept(service) >= kept + 2 * tasks, within=60)
    return time.monotonic() - began


def _kept(service: Server) -> int:
    [[count]] = execute(service.database_url, KEPT)
    return int(count)
