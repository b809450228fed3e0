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
from app.database.wakeups import Wakeups

log = structlog.get_logger()

CHANNEL = "soundpost"
# PostgreSQL refuses payloads of 8,000 bytes, and a name takes 33 of them at most.
MAX_TOPICS_IN_A_PAYLOAD = 200
# NOTIFY takes a lock that all commits of the server share, so a burst of them is told at once.
MIN_PAUSE = 0.005
# What could not be told by then, the others have found by themselves.
PUBLISH_TIMEOUT = 1.0
HEARTBEAT = 10.0
MIN_RETRY, MAX_RETRY = 0.1, 5.0


class PostgresNotifier:
    """
    Tells the other replicas what rings here, and rings here what they tell.

    What is lost on the way, whoever waits finds by itself a moment later. SQLite has
    no such thing as a listener: its processes only find.
    """

    def __init__(self, wakeups: Wakeups, database: Database) -> None:
        self._wakeups, self._database = wakeups, database
        self._publisher = _Publisher(database)
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        """Begin, unless there is nobody to tell."""
        if not self._database.url.startswith("sqlite"):
            self._wakeups.forward_to(self._publisher.add)
            listening = _listen(self._database.url, self._publisher.name, self._wakeups)
            self._tasks = [asyncio.create_task(self._publisher.run()), asyncio.create_task(listening)]

    async def close(self) -> None:
        """Tell what is still untold, and end."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._publisher.publish()


class _Publisher:
    """Gathers names, and tells them in as few notifications as there can be."""

    def __init__(self, database: Database) -> None:
        self.name = uuid4().hex
        self._database = database
        self._topics: set[str] = set()
        self._has_topics = asyncio.Event()

    def add(self, topics: Collection[str]) -> None:
        self._topics.update(topics)
        self._has_topics.set()

    async def run(self) -> None:
        while True:
            await self._has_topics.wait()
            await self.publish()
            await asyncio.sleep(MIN_PAUSE)

    async def publish(self) -> None:
        topics, self._topics = sorted(self._topics), set()
        self._has_topics.clear()
        if not topics:
            return
        payloads = [
            topics[start : start + MAX_TOPICS_IN_A_PAYLOAD] for start in range(0, len(topics), MAX_TOPICS_IN_A_PAYLOAD)
        ]
        try:
            async with asyncio.timeout(PUBLISH_TIMEOUT), self._database.writes.begin() as session:
                for payload in payloads:
                    await session.execute(select(func.pg_notify(CHANNEL, f"{self.name}:{','.join(payload)}")))
        except TRANSIENT as error:
            log.warning("notify_failed", error=type(error).__name__)


async def _listen(url: str, own_id: str, wakeups: Wakeups) -> None:
    """Hear the others for ever, on a connection apart from the pool, made anew whenever it is lost."""

    def on_payload(payload: str) -> None:
        publisher, _, topics = payload.partition(":")
        if publisher != own_id:
            for name in topics.split(","):
                wakeups.notify(name)

    delay = MIN_RETRY
    while True:
        began = time.monotonic()
        try:
            await _listen_once(url, on_payload)
        except Exception as error:
            log.warning("listening_lost", error=type(error).__name__)
        delay = MIN_RETRY if time.monotonic() - began > HEARTBEAT else min(delay * 2, MAX_RETRY)
        await asyncio.sleep(delay)


async def _listen_once(url: str, on_payload: Callable[[str], None]) -> None:
    engine = create_async_engine(url, poolclass=NullPool, isolation_level="AUTOCOMMIT")
    try:
        async with engine.connect() as connection:
            driver = (await connection.get_raw_connection()).driver_connection
            await _RECEIVERS[engine.driver](driver, on_payload)
    finally:
        await engine.dispose()


async def _receive_asyncpg(connection: Any, on_payload: Callable[[str], None]) -> None:
    is_lost = asyncio.Event()
    connection.add_termination_listener(lambda _: is_lost.set())
    await connection.add_listener(CHANNEL, lambda _connection, _pid, _channel, payload: on_payload(payload))
    while True:
        with suppress(TimeoutError):
            await asyncio.wait_for(is_lost.wait(), HEARTBEAT)
        # A peer that vanished without a word is only found out by talking to it.
        await connection.execute("SELECT 1", timeout=HEARTBEAT)


async def _receive_psycopg(connection: Any, on_payload: Callable[[str], None]) -> None:
    await connection.execute(f"LISTEN {CHANNEL}")
    while True:
        async for notification in connection.notifies(timeout=HEARTBEAT):
            on_payload(notification.payload)
        async with asyncio.timeout(HEARTBEAT):
            await connection.execute("SELECT 1")


_RECEIVERS: dict[str, Callable[[Any, Callable[[str], None]], Coroutine[Any, Any, None]]] = {
    "asyncpg": _receive_asyncpg,
    "psycopg": _receive_psycopg,
}
