"""The one shape of a loop: claim what is due, work on it at once, sleep until there may be more."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import structlog

from app.database.engine import TRANSIENT

log = structlog.get_logger()
Item = TypeVar("Item")

FALLBACK_INTERVAL = 1.0


@dataclass(frozen=True, slots=True)
class Claimed(Generic[Item]):
    """What a claim brought, and after how many seconds to look again if nothing rings before."""

    items: Sequence[Item]
    idle: float = FALLBACK_INTERVAL


@dataclass(frozen=True, slots=True)
class Loop(Generic[Item]):
    """
    Rows of one kind and what is done with them.

    `claim` takes at most as many as it is told and commits; `work` is run for each
    of them, up to `concurrency` at once. What `work` leaves undone falls due again.
    """

    name: str
    wakeup: asyncio.Event
    concurrency: int
    claim: Callable[[int], Awaitable[Claimed[Item]]]
    work: Callable[[Item], Awaitable[None]]


async def run_loop(loop: Loop[Item], stopping: asyncio.Event) -> None:
    """Run until told to stop, through every error; then wait for what is in flight."""
    running: set[asyncio.Task[None]] = set()
    try:
        while not stopping.is_set():
            idle = await _turn(loop, running)
            await _rest(loop.wakeup, stopping, idle)
        if running:
            await asyncio.wait(running)
    finally:
        # Out of grace: what is still in flight is left to its lease.
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)


async def insist(transaction: Callable[[], Awaitable[None]]) -> None:
    """
    Commit what cannot be asked for again, however long the database is away.

    The answer to a submit exists nowhere but in this process; giving up after the
    first refused connection would lose it.
    """
    delay = 0.1
    while True:
        try:
            return await transaction()
        except TRANSIENT as error:
            log.warning("commit_retried", error=type(error).__name__, delay=delay)
            await asyncio.sleep(delay)
            delay = min(delay * 2, 2.0)


async def _turn(loop: Loop[Item], running: set[asyncio.Task[None]]) -> float:
    room = loop.concurrency - len(running)
    if room <= 0:
        return FALLBACK_INTERVAL
    loop.wakeup.clear()
    try:
        claimed = await loop.claim(room)
    except TRANSIENT as error:
        log.warning("claim_failed", loop=loop.name, error=type(error).__name__)
        return FALLBACK_INTERVAL
    except Exception:
        log.exception("claim_broke", loop=loop.name)
        return FALLBACK_INTERVAL
    for item in claimed.items:
        task = asyncio.create_task(_work(loop, item))
        running.add(task)
        task.add_done_callback(_leave(loop, running))
    return claimed.idle


def _leave(loop: Loop[Item], running: set[asyncio.Task[None]]) -> Callable[[asyncio.Task[None]], None]:
    def leave(task: asyncio.Task[None]) -> None:
        running.discard(task)
        if len(running) == loop.concurrency - 1:
            # There was no room until now, so there may be due rows that nobody claimed.
            loop.wakeup.set()

    return leave


async def _work(loop: Loop[Item], item: Item) -> None:
    try:
        await loop.work(item)
    except TRANSIENT as error:
        log.warning("work_failed", loop=loop.name, error=type(error).__name__)
    except Exception:
        log.exception("work_broke", loop=loop.name)


async def _rest(wakeup: asyncio.Event, stopping: asyncio.Event, idle: float) -> None:
    """Sleep until the bell, the stop, or the time is up."""
    waits = [asyncio.ensure_future(wakeup.wait()), asyncio.ensure_future(stopping.wait())]
    try:
        await asyncio.wait(waits, timeout=idle, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for wait in waits:
            wait.cancel()
