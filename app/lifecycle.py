"""The life of a process: prepare the database, run the workers, stop at a signal, drain within the grace."""

from __future__ import annotations

import asyncio
import signal
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from datetime import timedelta
from types import FrameType
from typing import Any

from app.auth.api_keys import insert_configured_keys
from app.config import Settings
from app.database.pg_notify import PostgresNotifier
from app.database.wakeups import Wakeups
from app.services import Services, build_services
from app.workers.archive import archive_loop
from app.workers.deliver import deliver_loop
from app.workers.periodic import periodic_loop, prepare_jobs
from app.workers.poll import poll_loop
from app.workers.remove_files import remove_files_loop
from app.workers.runner import Loop, insist, run_loop
from app.workers.submit import submit_loop

# A start waits this long for its database and then goes on without; readiness is `down` until it is there.
DATABASE_TIMEOUT = timedelta(seconds=5)
# The share of the grace that requests and workers get; the rest is for closing connections.
USABLE_GRACE = 0.8


async def run_worker(settings: Settings) -> None:
    """Run the workers alone until a signal. Raises KeyringUnusable."""
    async with running(build_services(settings), runs_workers=True) as stopping:
        await stopping.wait()


@asynccontextmanager
async def running(services: Services, *, runs_workers: bool) -> AsyncIterator[asyncio.Event]:
    """Run a process's background work inside the block, and close its services behind it; yields the stop event."""
    stopping = asyncio.Event()
    with stop_at_signal(stopping):
        preparing = asyncio.create_task(_prepare(services))
        background: list[asyncio.Task[None]] = [preparing]
        await asyncio.wait(background, timeout=DATABASE_TIMEOUT.total_seconds())
        if preparing.done():
            preparing.result()
        if runs_workers:
            background += [asyncio.create_task(run_loop(loop, stopping)) for loop in _loops(services)]
        notifier = PostgresNotifier(services.wakeups, services.database)
        notifier.start()
        stopped_at: list[float] = []
        watch = asyncio.create_task(_note_stop(stopping, stopped_at, services.wakeups))
        try:
            yield stopping
        finally:
            stopping.set()
            await watch
            # Where the database never came, the next start prepares it.
            preparing.cancel()
            remaining = stopped_at[0] + services.settings.grace.total_seconds() * USABLE_GRACE - time.monotonic()
            await asyncio.wait(background, timeout=max(0.0, remaining))
            for task in background:
                task.cancel()
            await asyncio.gather(*background, return_exceptions=True)
            await notifier.close()
            await services.close()


@contextmanager
def stop_at_signal(stopping: asyncio.Event) -> Iterator[None]:
    """
    Set `stopping` on the first SIGTERM or SIGINT, then call the handler that was installed before.

    The server itself would report the signal only after its last request, and
    requests that wait for a task must end because of it.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    loop = asyncio.get_running_loop()
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}

    def stop(number: int, frame: FrameType | None) -> None:
        loop.call_soon_threadsafe(stopping.set)
        handler = before[signal.Signals(number)]
        if callable(handler) and handler is not signal.default_int_handler:
            handler(number, frame)

    for number in before:
        signal.signal(number, stop)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


async def _prepare(services: Services) -> None:
    async def prepare() -> None:
        async with services.database.transaction() as (session, now):
            await services.gateway.pacer.prepare(session, now)
            await prepare_jobs(session, now)
        if services.settings.api_keys:
            await insert_configured_keys(services.database, services.settings.api_keys.get_secret_value())

    await insist(prepare)


def _loops(services: Services) -> list[Loop[Any]]:
    loops = submit_loop, poll_loop, deliver_loop, periodic_loop, archive_loop, remove_files_loop
    return [loop(services) for loop in loops]


async def _note_stop(stopping: asyncio.Event, stopped_at: list[float], wakeups: Wakeups) -> None:
    await stopping.wait()
    stopped_at.append(time.monotonic())
    wakeups.close()
