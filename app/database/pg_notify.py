"""Wake-ups across replicas, by LISTEN and NOTIFY of PostgreSQL. Losing one only delays the waiter."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Collection, Coroutine
from contextlib import suppress
from datetime import timedelta
from typing import Any
from uuid import uuid4

import structlog
from sqlalchemy import func, select
from sqlalchemy.pool import NullPool

from app.database.backoff import exponential
from app.database.connections import postgres_engine
from app.database.engine import TRANSIENT, Database
from app.database.wakeups import Wakeups

log = structlog.get_logger()

CHANNEL = "soundpost"
# PostgreSQL refuses payloads of 8,000 bytes; a topic and its comma take at most 33.
MAX_TOPICS_IN_A_PAYLOAD = 200
# NOTIFY takes a lock that all commits of the server share: topics are gathered for this long between two of them.
PUBLISH_INTERVAL = timedelta(milliseconds=5)
# After this time the other replicas have found the change by their own polls.
PUBLISH_TIMEOUT = timedelta(seconds=1)
HEARTBEAT = timedelta(seconds=10)
MIN_RETRY, MAX_RETRY = timedelta(milliseconds=100), timedelta(seconds=5)


class PostgresNotifier:
    """
    Sends the topics of this process to the other replicas, and notifies theirs here.

    SQLite has no NOTIFY: there, each process relies on its own polls.
    """

    def __init__(self, wakeups: Wakeups, database: Database) -> None:
        self._wakeups, self._database = wakeups, database
        self._publisher = _Publisher(database)
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        """Start publishing and listening; does nothing on SQLite."""
        if not self._database.url.startswith("sqlite"):
            self._wakeups.forward_to(self._publisher.add)
            listening = _listen(self._database, self._publisher.name, self._wakeups)
            self._tasks = [asyncio.create_task(self._publisher.run()), asyncio.create_task(listening)]

    async def close(self) -> None:
        """Stop, and publish the topics that are still pending."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._publisher.publish()


class _Publisher:
    """Gathers topics and publishes them in as few notifications as possible."""

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
            await asyncio.sleep(PUBLISH_INTERVAL.total_seconds())

    async def publish(self) -> None:
        topics, self._topics = sorted(self._topics), set()
        self._has_topics.clear()
        if not topics:
            return
        payloads = [
            topics[start : start + MAX_TOPICS_IN_A_PAYLOAD] for start in range(0, len(topics), MAX_TOPICS_IN_A_PAYLOAD)
        ]
        timeout = asyncio.timeout(PUBLISH_TIMEOUT.total_seconds())
        try:
            async with timeout, self._database.writes.begin() as session:
                for payload in payloads:
                    await session.execute(select(func.pg_notify(CHANNEL, f"{self.name}:{','.join(payload)}")))
        except TRANSIENT as error:
            log.warning("notify_failed", error=type(error).__name__)


async def _listen(database: Database, own_id: str, wakeups: Wakeups) -> None:
    """Listen until cancelled, on a connection outside the pool; reconnect, backing off, when it is lost."""

    def on_payload(payload: str) -> None:
        publisher, _, topics = payload.partition(":")
        if publisher != own_id:
            for topic in topics.split(","):
                wakeups.notify(topic)

    retries = 0
    while True:
        began = time.monotonic()
        try:
            await _listen_once(database, on_payload)
        except Exception as error:
            log.warning("listen_lost", error=type(error).__name__)
        lasted = timedelta(seconds=time.monotonic() - began)
        retries = 0 if lasted > HEARTBEAT else retries + 1
        await asyncio.sleep(exponential(retries, MIN_RETRY, MAX_RETRY).total_seconds())


async def _listen_once(database: Database, on_payload: Callable[[str], None]) -> None:
    engine = postgres_engine(database.url, database.limits, poolclass=NullPool, isolation_level="AUTOCOMMIT")
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
            await asyncio.wait_for(is_lost.wait(), HEARTBEAT.total_seconds())
        # Only a statement shows that the peer vanished without closing the connection.
        await connection.execute("SELECT 1", timeout=HEARTBEAT.total_seconds())


async def _receive_psycopg(connection: Any, on_payload: Callable[[str], None]) -> None:
    await connection.execute(f"LISTEN {CHANNEL}")
    while True:
        async for notification in connection.notifies(timeout=HEARTBEAT.total_seconds()):
            on_payload(notification.payload)
        async with asyncio.timeout(HEARTBEAT.total_seconds()):
            await connection.execute("SELECT 1")


_RECEIVERS: dict[str, Callable[[Any, Callable[[str], None]], Coroutine[Any, Any, None]]] = {
    "asyncpg": _receive_asyncpg,
    "psycopg": _receive_psycopg,
}
