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

from app.config.database_url import is_sqlite, read_postgres_url
from app.database.backoff import exponential
from app.database.connections import postgres_engine
from app.database.engine import Database
from app.database.failures import TRANSIENT
from app.database.wakeups import WORKER_TOPICS, Wakeups

log = structlog.get_logger()

CHANNEL = "soundpost"
# PostgreSQL refuses payloads of 8,000 bytes; a topic and its comma take at most 33.
MAX_TOPICS_IN_A_PAYLOAD = 200
# NOTIFY takes a lock that all commits of the server share: topics are gathered for this long between two of them.
PUBLISH_INTERVAL = timedelta(milliseconds=50)
# How often a process tells the others that it is there, and whether requests wait in it; and after how long without
# that it is taken to be gone. A first wait is told of at once.
ANNOUNCE_EVERY, GONE_AFTER = timedelta(seconds=8), timedelta(seconds=20)
HERE, WAITING = "+here", "+waiting"
# After this time the other replicas have found the change by their own polls.
PUBLISH_TIMEOUT = timedelta(seconds=1)
# A connection on which nothing came for so long, not even what this process announces, is asked whether it lives.
HEARTBEAT = timedelta(seconds=10)
MIN_RETRY, MAX_RETRY = timedelta(milliseconds=100), timedelta(seconds=5)


class PostgresNotifier:
    """
    Sends the topics of this process to the other replicas, and notifies theirs here.

    SQLite has no NOTIFY, and nothing is heard through a pooler in transaction mode:
    there, each process relies on its own polls.
    """

    def __init__(self, wakeups: Wakeups, database: Database) -> None:
        self._wakeups, self._database = wakeups, database
        self._publisher = _Publisher(database, wakeups)
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        """Start publishing and listening; does nothing on SQLite and behind a pooler."""
        url = self._database.url
        if not is_sqlite(url) and not read_postgres_url(url).has_pooler:
            self._wakeups.forward_to(self._publisher.add, self._publisher.tell_of_waits)
            listening = _listen(self._database, self._publisher, self._wakeups)
            background = self._publisher.run(), self._publisher.announce(), listening
            self._tasks = [asyncio.create_task(each) for each in background]

    async def close(self) -> None:
        """Stop, and publish the topics that are still pending."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._publisher.publish()


class _Publisher:
    """
    Gathers topics and publishes them in as few notifications as possible, and only where somebody may wait.

    Workers of other processes wait always, requests for a task seldom: each process announces
    which it has. A topic that is published to nobody is found by the waiter's own poll.
    """

    def __init__(self, database: Database, wakeups: Wakeups) -> None:
        self.name = uuid4().hex
        self._database, self._wakeups = database, wakeups
        # When the others were heard of last, by name, as `time.monotonic()`, and those in which requests wait.
        self._heard_at: dict[str, float] = {}
        self._waiting: set[str] = set()
        # What this one announced last, and whether there is more to tell.
        self._said = HERE
        self._has_news = asyncio.Event()
        self._topics: set[str] = set()
        self._has_topics = asyncio.Event()

    def add(self, topics: Collection[str]) -> None:
        cutoff = time.monotonic() - GONE_AFTER.total_seconds()
        self._heard_at = {name: at for name, at in self._heard_at.items() if at > cutoff}
        self._waiting &= self._heard_at.keys()
        if self._heard_at:
            self._topics.update(topics if self._waiting else WORKER_TOPICS.intersection(topics))
        if self._topics:
            self._has_topics.set()

    def hear(self, name: str, announcement: str) -> None:
        """Note what another process says of itself; one that is new is told of this one."""
        if name not in self._heard_at:
            self._has_news.set()
        self._heard_at[name] = time.monotonic()
        (self._waiting.add if announcement == WAITING else self._waiting.discard)(name)

    def tell_of_waits(self) -> None:
        """Announce at once that a request waits. That none does any more can wait: the next may come soon."""
        if self._said != WAITING:
            self._has_news.set()

    async def announce(self) -> None:
        """Announce this process until cancelled."""
        while True:
            self._has_news.clear()
            self._said = WAITING if self._wakeups.has_subscriptions else HERE
            self._topics.add(self._said)
            self._has_topics.set()
            with suppress(TimeoutError):
                async with asyncio.timeout(ANNOUNCE_EVERY.total_seconds()):
                    await self._has_news.wait()

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
        size = MAX_TOPICS_IN_A_PAYLOAD
        payloads = [",".join(topics[start : start + size]) for start in range(0, len(topics), size)]
        notifies = [func.pg_notify(CHANNEL, f"{self.name}:{payload}") for payload in payloads]
        try:
            async with asyncio.timeout(PUBLISH_TIMEOUT.total_seconds()):
                await self._database.fetch(select(*notifies))
        except TRANSIENT as error:
            log.warning("notify_failed", error=type(error).__name__)


async def _listen(database: Database, own: _Publisher, wakeups: Wakeups) -> None:
    """Listen until cancelled, on a connection outside the pool; reconnect, backing off, when it is lost."""

    def on_payload(payload: str) -> None:
        publisher, _, topics = payload.partition(":")
        if publisher == own.name:
            return
        for topic in topics.split(","):
            if topic in (HERE, WAITING):
                own.hear(publisher, topic)
            else:
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
    lives, is_lost = asyncio.Event(), asyncio.Event()

    def hear(_connection: object, _pid: int, _channel: str, payload: str) -> None:
        lives.set()
        on_payload(payload)

    connection.add_termination_listener(lambda _: is_lost.set())
    await connection.add_listener(CHANNEL, hear)
    while True:
        lives.clear()
        with suppress(TimeoutError):
            await asyncio.wait_for(is_lost.wait(), HEARTBEAT.total_seconds())
        if is_lost.is_set() or not lives.is_set():
            # Only a statement shows that the peer vanished without closing the connection.
            await connection.execute("SELECT 1", timeout=HEARTBEAT.total_seconds())


async def _receive_psycopg(connection: Any, on_payload: Callable[[str], None]) -> None:
    await connection.execute(f"LISTEN {CHANNEL}")
    while True:
        lives = False
        async for notification in connection.notifies(timeout=HEARTBEAT.total_seconds()):
            lives = True
            on_payload(notification.payload)
        if not lives:
            async with asyncio.timeout(HEARTBEAT.total_seconds()):
                await connection.execute("SELECT 1")


_RECEIVERS: dict[str, Callable[[Any, Callable[[str], None]], Coroutine[Any, Any, None]]] = {
    "asyncpg": _receive_asyncpg,
    "psycopg": _receive_psycopg,
}
