"""Wake-ups across replicas: what one commits, the others hear of through PostgreSQL's NOTIFY."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Collection, Coroutine
from contextlib import suppress
from typing import Any
from uuid import uuid4

import structlog
from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.pool import NullPool

from app.database.engine import TRANSIENT, Database
from app.database.wakeups import Signals

log = structlog.get_logger()

CHANNEL = "soundpost"
# PostgreSQL refuses payloads of 8,000 bytes, and a name takes 33 of them at most.
NAMES_IN_A_PAYLOAD = 200
# NOTIFY takes a lock that all commits of the server share, so a burst of them is told at once.
PAUSE = 0.005
# What could not be told by then, the others have found by themselves.
SLOWEST = 1.0
HEARTBEAT = 10.0
FIRST_RETRY, SLOWEST_RETRY = 0.1, 5.0


class Relay:
    """
    Tells the other replicas what rings here, and rings here what they tell.

    What is lost on the way, whoever waits finds by itself a moment later. SQLite has
    no such thing as a listener: its processes only find.
    """

    def __init__(self, signals: Signals, database: Database) -> None:
        self._signals, self._database = signals, database
        self._teller = _Teller(database)
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        """Begin, unless there is nobody to tell."""
        if not self._database.url.startswith("sqlite"):
            self._signals.pass_on = self._teller.take
            listening = _listen(self._database.url, self._teller.name, self._signals)
            self._tasks = [asyncio.create_task(self._teller.run()), asyncio.create_task(listening)]

    async def close(self) -> None:
        """Tell what is still untold, and end."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._teller.tell()


class _Teller:
    """Gathers names, and tells them in as few notifications as there can be."""

    def __init__(self, database: Database) -> None:
        self.name = uuid4().hex
        self._database = database
        self._names: set[str] = set()
        self._has_names = asyncio.Event()

    def take(self, names: Collection[str]) -> None:
        self._names.update(names)
        self._has_names.set()

    async def run(self) -> None:
        while True:
            await self._has_names.wait()
            await self.tell()
            await asyncio.sleep(PAUSE)

    async def tell(self) -> None:
        names, self._names = sorted(self._names), set()
        self._has_names.clear()
        if not names:
            return
        payloads = [names[start : start + NAMES_IN_A_PAYLOAD] for start in range(0, len(names), NAMES_IN_A_PAYLOAD)]
        try:
            async with asyncio.timeout(SLOWEST), self._database.writes.begin() as session:
                for payload in payloads:
                    await session.execute(select(func.pg_notify(CHANNEL, f"{self.name}:{','.join(payload)}")))
        except TRANSIENT as error:
            log.warning("notify_failed", error=type(error).__name__)


async def _listen(url: str, own_name: str, signals: Signals) -> None:
    """Hear the others for ever, on a connection apart from the pool, made anew whenever it is lost."""

    def hear(payload: str) -> None:
        teller, _, names = payload.partition(":")
        if teller != own_name:
            for name in names.split(","):
                signals.ring(name)

    delay = FIRST_RETRY
    while True:
        began = time.monotonic()
        try:
            await _listen_once(url, hear)
        except Exception as error:
            log.warning("listening_lost", error=type(error).__name__)
        delay = FIRST_RETRY if time.monotonic() - began > HEARTBEAT else min(delay * 2, SLOWEST_RETRY)
        await asyncio.sleep(delay)


async def _listen_once(url: str, hear: Callable[[str], None]) -> None:
    engine = create_async_engine(url, poolclass=NullPool, isolation_level="AUTOCOMMIT")
    try:
        async with engine.connect() as connection:
            driver = (await connection.get_raw_connection()).driver_connection
            await _HEARING[engine.driver](driver, hear)
    finally:
        await engine.dispose()


async def _hear_asyncpg(connection: Any, hear: Callable[[str], None]) -> None:
    is_lost = asyncio.Event()
    connection.add_termination_listener(lambda _: is_lost.set())
    await connection.add_listener(CHANNEL, lambda _connection, _pid, _channel, payload: hear(payload))
    while True:
        with suppress(TimeoutError):
            await asyncio.wait_for(is_lost.wait(), HEARTBEAT)
        # A peer that vanished without a word is only found out by talking to it.
        await connection.execute("SELECT 1", timeout=HEARTBEAT)


async def _hear_psycopg(connection: Any, hear: Callable[[str], None]) -> None:
    await connection.execute(f"LISTEN {CHANNEL}")
    while True:
        async for notification in connection.notifies(timeout=HEARTBEAT):
            hear(notification.payload)
        async with asyncio.timeout(HEARTBEAT):
            await connection.execute("SELECT 1")


_HEARING: dict[str, Callable[[Any, Callable[[str], None]], Coroutine[Any, Any, None]]] = {
    "asyncpg": _hear_asyncpg,
    "psycopg": _hear_psycopg,
}
