"""The lifecycle of a process: prepare the database, run the workers, stop at a signal, drain within the grace."""

from __future__ import annotations

import asyncio
import signal
import threading
import time
from collections.abc import AsyncIterator, Callable, Collection, Coroutine, Iterator
from contextlib import asynccontextmanager, closing, contextmanager
from datetime import timedelta
from functools import partial
from types import FrameType
from typing import Any

import structlog

from app.auth.configured_keys import insert_configured_keys
from app.auth.signing_keys import note_signing_key
from app.config import PREFIX, SECRETS, Settings, SettingsUnusable
from app.database.pg_notify import PostgresNotifier
from app.database.wakeups import Wakeups
from app.observability.tracing import flush_traces, is_tracing_wanted, start_tracing
from app.services import Services, build_services
from app.workers.archive import archive_loop
from app.workers.deliver import deliver_loop
from app.workers.periodic import periodic_loop, prepare_jobs
from app.workers.poll import poll_loop
from app.workers.remove_files import remove_files_loop
from app.workers.runner import Loop, insist, run_loop, wake_when_due
from app.workers.submit import submit_loop
from app.workers.sweep import sweep_loop

log = structlog.get_logger()

# How long a start waits for its database. Then it goes on without it, and /readyz is 503 until the database answers.
DATABASE_TIMEOUT = timedelta(seconds=5)
# The fraction of the grace period for what is in flight. The rest is for closing connections.
DRAIN_SHARE = 0.8
STAY = "the former secrets stay: correct this and send SIGHUP again"
# The fraction that a collector of traces has to take the last of them.
FLUSH_SHARE = 0.1


async def run_worker(settings: Settings) -> None:
    """Run the workers without a server until SIGTERM or SIGINT. Raises KeyringUnusable."""
    if is_tracing_wanted():
        start_tracing()
    async with running(build_services(settings), runs_workers=True) as stopping:
        await stopping.wait()


@asynccontextmanager
async def running(
    services: Services, *, runs_workers: bool, drain: Callable[[], None] | None = None
) -> AsyncIterator[asyncio.Event]:
    """
    Run the background tasks of a process inside the block; yields the event that a signal sets to stop it.

    At the end of the block, workers settle what is in flight within the grace period
    since the signal; what is left then is cancelled, and the services are closed. `drain` is
    called at SIGTERM, and the drain delay passes before anything stops; a process without it
    answers no requests and stops at once.
    """
    stopping, hangup = asyncio.Event(), asyncio.Event()
    delay = services.settings.drain_delay if drain else timedelta()
    with stop_at_signal(stopping, drain, delay), at_hangup(hangup.set):
        preparing = asyncio.create_task(_prepare(services, serves=drain is not None))
        renewing = asyncio.create_task(_renew_secrets(services, hangup, serves=drain is not None))
        background: list[asyncio.Task[None]] = [preparing]
        await asyncio.wait(background, timeout=DATABASE_TIMEOUT.total_seconds())
        if preparing.done():
            preparing.result()
        if runs_workers:
            loops = loops_of(services)
            background += [asyncio.create_task(_run_once(preparing, run_loop(loop, stopping))) for loop in loops]
            watch = wake_when_due(loops, services.database, stopping)
            background.append(asyncio.create_task(_run_once(preparing, watch)))
        notifier = PostgresNotifier(services.wakeups, services.database)
        notifier.start()
        stop = asyncio.create_task(_close_when_stopping(stopping, services.wakeups))
        try:
            yield stopping
        finally:
            stopping.set()
            drain_until = await stop + services.settings.grace.total_seconds() * DRAIN_SHARE
            # If the database never answered, the next start prepares it.
            preparing.cancel()
            renewing.cancel()
            background.append(asyncio.create_task(services.last_uses.write()))
            await asyncio.wait(background, timeout=max(0.0, drain_until - time.monotonic()))
            for task in background:
                task.cancel()
            await asyncio.gather(*background, renewing, return_exceptions=True)
            await notifier.close()
            await services.close()
            await flush_traces(services.settings.grace * FLUSH_SHARE)


@contextmanager
def stop_at_signal(
    stopping: asyncio.Event, drain: Callable[[], None] | None = None, delay: timedelta = timedelta()
) -> Iterator[None]:
    """
    Set `stopping` on the first SIGTERM or SIGINT, then call the handler that was installed before.

    SIGTERM calls `drain`, and stops after `delay`; SIGINT, and a second SIGTERM, stop at once.

    Uvicorn ends the lifespan only after its last request, but a signal must end the
    requests that wait for a task. Outside the main thread, where Python allows no
    signal handlers, this does nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    loop = asyncio.get_running_loop()
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}

    is_draining = False

    def receive(number: int, frame: FrameType | None) -> None:
        nonlocal is_draining
        if drain is not None:
            drain()
        if number == signal.SIGTERM and delay and not is_draining:
            is_draining = True
            loop.call_soon_threadsafe(loop.call_later, delay.total_seconds(), stop, number, frame)
        else:
            stop(number, frame)

    def stop(number: int, frame: FrameType | None) -> None:
        loop.call_soon_threadsafe(stopping.set)
        handler = before[signal.Signals(number)]
        if callable(handler) and handler is not signal.default_int_handler:
            handler(number, frame)

    for number in before:
        signal.signal(number, receive)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def at_hangup(act: Callable[[], None]) -> Iterator[None]:
    """
    Call `act` in the event loop at each SIGHUP; inside the block alone the signal is not blocked.

    A process blocks it before it reads its settings: one that comes earlier than this block is not lost,
    and ends no process. Outside the main thread this does nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    loop = asyncio.get_running_loop()
    before = signal.signal(signal.SIGHUP, lambda *_: loop.call_soon_threadsafe(act))
    blocked = signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGHUP})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
        signal.signal(signal.SIGHUP, before)


async def _prepare(services: Services, *, serves: bool) -> None:
    async def prepare() -> None:
        async with services.database.transaction() as (session, now):
            await services.gateway.pacer.prepare(session, now)
            await prepare_jobs(session, now)
        await _note_secrets(services, SECRETS, serves=serves)

    # Without its tables too: somebody may be about to migrate the database.
    await insist(prepare, max_refusals=None)


async def _renew_secrets(services: Services, hangup: asyncio.Event, *, serves: bool) -> None:
    """Read the secrets again at each SIGHUP, until cancelled; those that cannot be used change nothing."""
    async with asyncio.TaskGroup() as noting:
        while True:
            await hangup.wait()
            hangup.clear()
            try:
                changed = [name.upper() for name in services.renew_secrets()]
            except SettingsUnusable as error:
                log.error("secrets_not_renewed", problem=str(error), advice=STAY)
                continue
            log.info("secrets_renewed", changed=[f"{PREFIX}{name}" for name in changed])
            # Beside the next SIGHUP: it may bring the password without which this waits for the database for ever.
            noting.create_task(insist(partial(_note_secrets, services, changed, serves=serves), max_refusals=None))


async def _note_secrets(services: Services, changed: Collection[str], *, serves: bool) -> None:
    """Tell the database of the secrets that this process has from now on."""
    if "SECRET_KEYS" in changed:
        async with services.database.transaction() as (session, now):
            await note_signing_key(session, services.keyring, now)
    # Callers' keys are no business of `soundpost worker`, which may be started without the list.
    if "API_KEYS" in changed and serves:
        listed = services.settings.api_keys
        await insert_configured_keys(services.database, listed.get_secret_value() if listed else "")


async def _run_once(preparing: asyncio.Task[None], run: Coroutine[Any, Any, None]) -> None:
    """Run something from when the database is prepared: before, each of its claims would fail with a warning."""
    with closing(run):
        await asyncio.wait([preparing])
        if not preparing.cancelled():
            await run


def loops_of(services: Services) -> list[Loop[Any]]:
    """Every kind of background work."""
    loops = submit_loop, poll_loop, deliver_loop, sweep_loop, periodic_loop, archive_loop, remove_files_loop
    return [loop(services) for loop in loops]


async def _close_when_stopping(stopping: asyncio.Event, wakeups: Wakeups) -> float:
    """End every wait once the process stops. Returns that time, as `time.monotonic()`."""
    await stopping.wait()
    stopped_at = time.monotonic()
    wakeups.close()
    return stopped_at
