"""The worker loop: claim due rows, work on them concurrently, sleep until more may be due."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from itertools import count
from typing import Any, Generic, TypeVar

import structlog
from sqlalchemy import ColumnElement, select

from app.database.backoff import exponential
from app.database.engine import Database
from app.database.failures import TRANSIENT, advice, can_pass, reason
from app.errors import DatabaseUnavailable

log = structlog.get_logger()
Item = TypeVar("Item")

# How often it is looked whether rows are due: a lost wake-up delays them by this much.
LOOK_EVERY = timedelta(seconds=1.25)
# How long a loop sleeps after a failed claim, and the submit loop at most where no slot is free.
FALLBACK_INTERVAL = timedelta(seconds=1)
MIN_COMMIT_RETRY, MAX_COMMIT_RETRY = timedelta(seconds=0.1), timedelta(seconds=2)
# How often a transaction is repeated that the database refuses: a race can be the cause, and then the next one passes.
MAX_REFUSALS = 4


@dataclass(frozen=True, slots=True)
class Claimed(Generic[Item]):
    """The claimed items, and how soon to claim again where no wake-up will say so."""

    items: Sequence[Item]
    idle: timedelta | None = None


@dataclass(frozen=True, slots=True)
class Loop(Generic[Item]):
    """
    One kind of rows and the work on them.

    `claim` takes at most the given number of rows and commits; `work` runs for each of
    them, up to `concurrency` at once. A row that `work` leaves undone falls due again.
    `is_due` tells, as an expression of SQL, whether there is anything to claim.
    """

    name: str
    wakeup: asyncio.Event
    concurrency: int
    claim: Callable[[int], Awaitable[Claimed[Item]]]
    work: Callable[[Item], Awaitable[None]]
    is_due: ColumnElement[bool]


async def wake_when_due(loops: Sequence[Loop[Any]], database: Database, stopping: asyncio.Event) -> None:
    """
    Wake each loop whose rows have fallen due, until `stopping` is set, by a look every LOOK_EVERY.

    It finds what another process stored too, and whatever a wake-up was lost for.
    """
    while not stopping.is_set():
        try:
            await wake_due(loops, database)
        except TRANSIENT as error:
            _log_failure("due_rows_not_read", error)
        except Exception:
            log.exception("due_rows_error")
        with suppress(TimeoutError):
            async with asyncio.timeout(LOOK_EVERY.total_seconds()):
                await stopping.wait()


async def wake_due(loops: Sequence[Loop[Any]], database: Database) -> None:
    """Wake each loop that has due rows now, by one statement for all of them."""
    [due] = await database.fetch(select(*(loop.is_due.label(loop.name) for loop in loops)))
    for loop, has_due in zip(loops, due, strict=True):
        if has_due:
            loop.wakeup.set()


async def run_loop(loop: Loop[Item], stopping: asyncio.Event) -> None:
    """Run until `stopping` is set, through every error, then wait for the work in flight. Claims once at the start."""
    running: set[asyncio.Task[bool]] = set()
    try:
        while not stopping.is_set():
            idle = await _turn(loop, running)
            await _sleep(loop.wakeup, stopping, idle)
        if running:
            await asyncio.wait(running)
    finally:
        # The grace is over: what is still in flight is left to its lease.
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)


async def insist(transaction: Callable[[], Awaitable[None]], *, max_refusals: int | None = MAX_REFUSALS) -> None:
    """
    Repeat a transaction until it commits, however long the database is away.

    The response to a submit exists in this process alone: giving up after the first
    refused connection would lose it. What the database refuses for a reason that does
    not pass, such as a missing column, is repeated `max_refusals` times, then raised:
    its place is needed by others. None repeats that too.
    """
    refusals = 0
    for retry in count():
        try:
            await transaction()
        except TRANSIENT as error:
            refusals += not can_pass(error)
            if max_refusals is not None and refusals > max_refusals:
                raise
            delay = exponential(retry, MIN_COMMIT_RETRY, MAX_COMMIT_RETRY)
            _log_failure("commit_retried", error, delay=delay.total_seconds())
            await asyncio.sleep(delay.total_seconds())
        else:
            return


def _log_failure(event: str, error: Exception, **fields: object) -> None:
    """Log what went wrong with the database: what does not pass by itself as an error, with the driver's message."""
    if can_pass(error):
        log.warning(event, error=type(error).__name__, reason=advice(error), **fields)
    else:
        log.error(event, error=type(error).__name__, reason=advice(error) or reason(error), **fields)


async def _turn(loop: Loop[Item], running: set[asyncio.Task[bool]]) -> timedelta | None:
    # Before anything else: a wake-up that a full loop left set would end each of its sleeps at once.
    loop.wakeup.clear()
    room = loop.concurrency - len(running)
    if room <= 0:
        return None
    try:
        claimed = await loop.claim(room)
    except TRANSIENT as error:
        _log_failure("claim_failed", error, loop=loop.name)
        return FALLBACK_INTERVAL
    except Exception:
        log.exception("claim_error", loop=loop.name)
        return FALLBACK_INTERVAL
    for item in claimed.items:
        task = asyncio.create_task(_work(loop, item))
        running.add(task)
        task.add_done_callback(_leave(loop, running))
    return claimed.idle


def _leave(loop: Loop[Item], running: set[asyncio.Task[bool]]) -> Callable[[asyncio.Task[bool]], None]:
    def leave(task: asyncio.Task[bool]) -> None:
        running.discard(task)
        is_done = not task.cancelled() and task.result()
        if is_done and len(running) == loop.concurrency - 1:
            # There was no room until now, so there may be due rows that were not claimed. After work that failed the
            # next turn can wait: rows without a lease, which a full disk lets nobody change, would be claimed at once.
            loop.wakeup.set()

    return leave


async def _work(loop: Loop[Item], item: Item) -> bool:
    """Work on one item; return whether that came to its end."""
    try:
        await loop.work(item)
    except (*TRANSIENT, DatabaseUnavailable) as error:
        _log_failure("work_failed", error, loop=loop.name)
    except Exception:
        log.exception("work_error", loop=loop.name)
    else:
        return True
    return False


async def _sleep(wakeup: asyncio.Event, stopping: asyncio.Event, idle: timedelta | None) -> None:
    """Sleep until a wake-up, the stop, or the end of the idle time, if there is one."""
    waits = [asyncio.ensure_future(wakeup.wait()), asyncio.ensure_future(stopping.wait())]
    try:
        timeout = None if idle is None else idle.total_seconds()
        await asyncio.wait(waits, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for wait in waits:
            wait.cancel()
