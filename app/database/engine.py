"""Engines, sessions and the clock, used alike on SQLite (one writer) and PostgreSQL (one pool)."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any, NoReturn, cast

from prometheus_client import Gauge
from sqlalchemy import Executable, QueuePool, String, bindparam, event, func, orm, select
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import InvalidatePoolError
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker
from sqlalchemy.orm import DeclarativeBase

from app.config.database_url import DatabaseLimits, is_sqlite, read_postgres_url
from app.database.connections import PING_TIMEOUT, credentials, postgres_engine
from app.database.fetching import Fetcher, FixedQuery, is_checked
from app.database.migrations import is_usable
from app.database.turns import Admission, KeyedLocks
from app.observability.metrics import Metrics

Session = AsyncSession
Sessions = async_sessionmaker[AsyncSession]
Clock = Callable[[Session], Awaitable[datetime]]

# How long a request waits for a connection: long enough for a burst of tasks, and short enough to answer a callback
# before the upstream gives up.
POOL_TIMEOUT = timedelta(seconds=10)
RETURN_TIMEOUT, RETURN_LOOK = timedelta(seconds=1), timedelta(milliseconds=10)
# For so long after its last use a connection is not checked again.
ALIVE_FOR = timedelta(seconds=0.5)
# Callbacks are written one commit at a time; the second connection is for the time that the first takes to be replaced.
URGENT_OVERFLOW = 1
# One that waits for a lock, such as that of an endpoint, holds up all others: it comes back instead.
URGENT_LOCK_TIMEOUT = timedelta(milliseconds=50)
_BEGIN_BRIEFLY = select(
    func.clock_timestamp(), func.set_config("lock_timeout", bindparam("milliseconds", type_=String()), True)
)
# On SQLite they take turns with the workers: even with commits of half a second, none waits longer than POOL_TIMEOUT.
SQLITE_ORDERS = 8
# What a session has to call once it is committed.
_COMMITTED = "on_commit"


async def database_clock(session: Session) -> datetime:
    """The time of the PostgreSQL server, on which all replicas agree; on SQLite the time of this machine."""
    if session.get_bind().dialect.name == "sqlite":
        return datetime.now(UTC)
    now: datetime = (await session.scalars(select(func.clock_timestamp()))).one()
    return now.astimezone(UTC)


def on_commit(session: Session, call: Callable[[], None]) -> None:
    """
    Call this once, and only if, this transaction is committed: it may be rolled back and repeated until then.

    The session is one that writes; those of reads commit nothing.
    """
    session.info.setdefault(_COMMITTED, []).append(call)


async def insert_new(session: Session, table: type[DeclarativeBase], *rows: dict[str, Any]) -> None:
    """Insert rows and skip those whose key exists. Waits for a concurrent transaction that inserts the same key."""
    insert = sqlite.insert if session.get_bind().dialect.name == "sqlite" else postgresql.insert
    await session.execute(insert(table).on_conflict_do_nothing(), list(rows))


def _call_committed(session: orm.Session) -> None:
    # The release of a savepoint commits nothing.
    if not session.in_nested_transaction():
        for call in session.info.pop(_COMMITTED, ()):
            call()


def _forget_uncommitted(session: orm.Session, transaction: orm.SessionTransaction) -> None:
    if transaction.parent is None:
        session.info.pop(_COMMITTED, None)


class Database:
    """
    One database, with session factories for writes, for urgent writes and for reads.

    On PostgreSQL writes and reads use one pool, and urgent writes another. On SQLite one
    connection writes at a time, which is faster and fairer than contention for the file's lock.
    """

    def __init__(self, url: str, clock: Clock = database_clock, limits: DatabaseLimits | None = None) -> None:
        from app.database.sqlite import sqlite_engines

        # Another user or password counts for each connection that is opened from then on.
        self.url = url
        self.now = clock
        self.limits = limits or DatabaseLimits()
        self._engines = sqlite_engines(url, POOL_TIMEOUT) if is_sqlite(url) else _postgresql_engines(url, self.limits)
        if not is_sqlite(url):
            for engine in set(self._engines):
                event.listen(engine.sync_engine, "do_connect", self._take_credentials)
        # A class of its own, so that listeners to its commits do not see those of another database.
        self.session_class = type("Session", (orm.Session,), {})
        event.listen(self.session_class, "after_commit", _call_committed)
        event.listen(self.session_class, "after_transaction_end", _forget_uncommitted)
        writer, urgent, reader = self._engines
        self.writes: Sessions = async_sessionmaker(
            writer, expire_on_commit=False, sync_session_class=self.session_class
        )
        # For callbacks: the upstream waits for them, and gives up. Nothing else delays these writes.
        self.urgent_writes: Sessions = async_sessionmaker(
            urgent, expire_on_commit=False, sync_session_class=self.session_class
        )
        self.reads: Sessions = async_sessionmaker(_without_transactions(url, reader), expire_on_commit=False)
        self._fetcher = _fetcher(url, reader, self.limits)
        self.orders = Admission(SQLITE_ORDERS if is_sqlite(url) else self.limits.orders)
        self._locks = KeyedLocks()

    def exclusive(self, key: str) -> AbstractAsyncContextManager[None]:
        """
        Keep others of this process from the block with the same key. Raises DatabaseUnavailable.

        For what waits for the lock of one row: others that want it wait here, for the lock
        timeout, without a connection each, so that a lock that is held for long does not empty
        the pool.
        """
        return self._locks.held(key, self.limits.lock_timeout)

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[tuple[Session, datetime]]:
        """
        A write transaction and the time at its start. The end of the block commits, an exception rolls back.

        Where a lock is waited for inside, take the time with `now` once it is held.
        """
        async with self.writes.begin() as session:
            # The first statement is what waits, on SQLite for the one writer.
            await session.connection()
            yield session, await self.now(session)

    async def begin_briefly(self, session: Session, patience: timedelta = URGENT_LOCK_TIMEOUT) -> datetime:
        """
        Begin a transaction that several requests share; return the time, once it has its turn to write.

        It waits for no lock longer than `patience`.
        """
        await session.connection()
        if session.get_bind().dialect.name == "sqlite":
            return await self.now(session)
        begun = await session.execute(_BEGIN_BRIEFLY, {"milliseconds": f"{patience.total_seconds() * 1000:.0f}"})
        if self.now is database_clock:
            now: datetime = begun.one()[0]
            return now.astimezone(UTC)
        return await self.now(session)

    async def fetch(self, query: Executable | FixedQuery, **parameters: object) -> Sequence[Sequence[Any]]:
        """
        The rows of one short statement that only reads, with no session and transaction around it. Raises TRANSIENT.

        Its connection is not checked before: a dead one costs FETCH_TIMEOUT and what it takes to
        close it, some seconds, and is replaced.
        """
        return await self._fetcher.fetch(query, parameters)

    async def fetch_shared(self, query: FixedQuery, **parameters: object) -> Sequence[Sequence[Any]]:
        """The same, by one statement for all who ask at once. None gets what was read before it asked."""
        return await self._fetcher.fetch_shared(query, parameters)

    def _take_credentials(self, _dialect: object, _record: object, _arguments: object, parameters: Any) -> None:
        """Connect with the credentials of `url`, which may have changed since the engines were made."""
        for name, value in credentials(self.url).items():
            parameters.pop(name, None)
            if value is not None:
                parameters[name] = value

    async def is_migrated(self) -> bool:
        """Whether the schema is that of this release, or a newer one on which it works."""
        async with self._engines[-1].connect() as connection:
            return await connection.run_sync(is_usable)

    def count_in(self, metrics: Metrics) -> None:
        """Count the commits, and the connections that are in use, in these metrics."""
        event.listen(self.session_class, "after_commit", lambda _: metrics.commits.inc())
        for name, engine in zip(("main", "urgent", "reads"), dict.fromkeys(self._engines), strict=False):
            in_use, pool = metrics.connections.labels(name), cast("QueuePool", engine.pool)
            metrics.max_connections.labels(name).set(pool.size() + max(0, pool._max_overflow))
            for when, returned in (("checkout", 0), ("checkin", 1)):
                event.listen(engine.sync_engine, when, partial(_note_connections, engine, in_use, returned))

    async def close(self) -> None:
        """
        Close every connection; nothing connects any more.

        A session that was canceled gives its connection back in a task of its own: what
        comes back later than RETURN_TIMEOUT is left to the garbage collector.
        """
        # What a request has left behind may come for one later, and nobody would close it.
        for engine in set(self._engines):
            event.listen(engine.sync_engine, "do_connect", _refuse_to_connect)
        pools = [cast("QueuePool", engine.pool) for engine in self._engines]
        for _ in range(RETURN_TIMEOUT // RETURN_LOOK):
            if not any(pool.checkedout() for pool in pools):
                break
            await asyncio.sleep(RETURN_LOOK.total_seconds())
        for engine in set(self._engines):
            await engine.dispose()


def _postgresql_engines(url: str, limits: DatabaseLimits) -> tuple[AsyncEngine, AsyncEngine, AsyncEngine]:
    def engine(limits: DatabaseLimits, size: int, overflow: int) -> AsyncEngine:
        timeout = POOL_TIMEOUT.total_seconds()
        made = postgres_engine(
            url, limits, pool_size=size, max_overflow=overflow, pool_timeout=timeout, pool_use_lifo=True
        )
        event.listen(made.sync_engine, "checkout", _check_connection)
        event.listen(made.sync_engine, "checkin", _note_use)
        return made

    both = engine(limits, limits.pool_size, limits.max_overflow)
    return both, engine(replace(limits, lock_timeout=URGENT_LOCK_TIMEOUT), 1, URGENT_OVERFLOW), both


def _fetcher(url: str, reader: AsyncEngine, limits: DatabaseLimits) -> Fetcher:
    if is_sqlite(url):
        from app.database.sqlite import READERS

        return Fetcher(reader, READERS, is_sqlite=True, has_sessions=True)
    # The other half of the pool is for transactions.
    at_once = max(1, limits.pool_size // 2)
    return Fetcher(reader, at_once, is_sqlite=False, has_sessions=not read_postgres_url(url).is_pooled)


def _without_transactions(url: str, reader: AsyncEngine) -> AsyncEngine:
    """
    The engine for reads on which each statement is a transaction by itself: BEGIN and ROLLBACK would be two more.

    A statement sees the same at READ COMMITTED. Behind a pooler the limits of time are those of a transaction.
    """
    if is_sqlite(url) or read_postgres_url(url).is_pooled:
        return reader
    return reader.execution_options(isolation_level="AUTOCOMMIT")


def _note_connections(engine: AsyncEngine, in_use: Gauge, returned: int, *_: object) -> None:
    # The pool may be another one by now. A connection that comes back still counts there.
    in_use.set(cast("QueuePool", engine.pool).checkedout() - returned)


def _refuse_to_connect(*_arguments: object) -> NoReturn:
    raise ConnectionError("the database was closed by this process")


def _note_use(_connection: object, record: Any) -> None:
    record.info["used_at"] = time.monotonic()


def _check_connection(connection: Any, record: Any, _proxy: object) -> None:
    """
    Replace all connections of the pool if one is dead at checkout.

    `pool_pre_ping` has no timeout: it waits forever for a server that fell silent without
    closing the connection, as after a failover, a lost route or a frozen machine. One
    that worked a moment ago is not asked, if its driver tells when the server closes it.
    """
    is_fresh = time.monotonic() - record.info.get("used_at", -math.inf) < ALIVE_FOR.total_seconds()
    tells_the_end = getattr(connection.driver_connection, "is_closed", None)
    if not is_checked.get() or (is_fresh and tells_the_end is not None and not tells_the_end()):
        return
    try:
        connection.run_async(_ping)
    except Exception as error:
        raise InvalidatePoolError from error


async def _ping(connection: Any) -> None:
    async with asyncio.timeout(PING_TIMEOUT.total_seconds()):
        await connection.execute("SELECT 1")
