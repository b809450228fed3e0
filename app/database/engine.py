"""Engines, sessions, migrations and the clock: one writer on SQLite, a pool on PostgreSQL, one way to use both."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from alembic.util.exc import CommandError
from sqlalchemy import Connection, event, func, orm, select
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import make_url
from sqlalchemy.exc import InvalidatePoolError, SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.orm import DeclarativeBase

Session = AsyncSession
Sessions = async_sessionmaker[AsyncSession]
Clock = Callable[[Session], Awaitable[datetime]]

# Where alembic.ini and migrations/ lie: beside the package in a checkout and in the image.
ROOT = Path(__file__).resolve().parents[2]
SQLITE_BUSY_TIMEOUT_MS = 8_000
# Seconds that a request waits for its turn: a burst of orders is taken in, and a callback answered before the upstream
# stops listening.
POOL_TIMEOUT = 10
# The same for a server that says nothing: to let us in, to answer anything at all, and to answer a statement.
CONNECT_TIMEOUT, PING_TIMEOUT, STATEMENT_TIMEOUT = 5, 3, 15
_DRIVER_ARGUMENTS: Mapping[str, Mapping[str, int]] = {
    "asyncpg": {"timeout": CONNECT_TIMEOUT, "command_timeout": STATEMENT_TIMEOUT},
    # It has no timeout for a statement that is under way: there a peer that is gone shows by what TCP finds out.
    "psycopg": {
        "connect_timeout": CONNECT_TIMEOUT,
        "tcp_user_timeout": STATEMENT_TIMEOUT * 1000,
        "keepalives_idle": PING_TIMEOUT,
        "keepalives_interval": PING_TIMEOUT,
        "keepalives_count": 4,
    },
}
# How a database that is away for the moment shows, at whatever step.
TRANSIENT = (SQLAlchemyError, OSError, TimeoutError)


async def database_clock(session: Session) -> datetime:
    """The database's time on PostgreSQL, so that replicas with wrong clocks agree; SQLite has only this machine's."""
    if session.get_bind().dialect.name == "sqlite":
        return datetime.now(UTC)
    now: datetime = (await session.scalars(select(func.clock_timestamp()))).one()
    return now.astimezone(UTC)


def reason(error: Exception) -> str:
    """The first line of a driver's error, without the statement around it."""
    return str(getattr(error, "orig", None) or error).partition("\n")[0]


async def insert_new(session: Session, table: type[DeclarativeBase], *rows: dict[str, Any]) -> None:
    """Insert the rows that are not there yet; a concurrent insert of the same row is waited for."""
    insert = sqlite.insert if session.get_bind().dialect.name == "sqlite" else postgresql.insert
    await session.execute(insert(table).on_conflict_do_nothing(), list(rows))


class Database:
    """
    The two ways into one database.

    `writes` is for everything that changes rows, `reads` for what only looks. On
    PostgreSQL both are one pool. On SQLite a single writer connection queues the
    writers in line, which is both faster and fairer than letting them contend.
    """

    def __init__(self, url: str, clock: Clock = database_clock) -> None:
        self.url = url
        self.now = clock
        self._engines = _sqlite_engines(url) if url.startswith("sqlite") else _postgresql_engines(url)
        writer, reader = self._engines
        # A class of its own, so that what listens to commits hears those of this database only.
        self.session_class = type("Session", (orm.Session,), {})
        self.writes: Sessions = async_sessionmaker(
            writer, expire_on_commit=False, sync_session_class=self.session_class
        )
        self.reads: Sessions = async_sessionmaker(reader, expire_on_commit=False)

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[tuple[Session, datetime]]:
        """One write transaction and its time; committed at the end of the block, rolled back by an exception."""
        async with self.writes.begin() as session:
            yield session, await self.now(session)

    async def is_migrated(self) -> bool:
        """Whether the schema is the one this release was written for."""
        async with self._engines[1].connect() as connection:
            return await connection.run_sync(_is_at_head)

    async def close(self) -> None:
        """Give every connection back."""
        for engine in set(self._engines):
            await engine.dispose()


class UnknownSchema(Exception):
    """The database is at a revision that this release does not know."""


def migrate(url: str) -> None:
    """
    Upgrade the schema of the database at this URL to this release's; creates an SQLite file and its folder.

    Raises UnknownSchema.
    """
    if url.startswith("sqlite"):
        Path(str(make_url(url).database)).parent.mkdir(parents=True, exist_ok=True)
    try:
        command.upgrade(alembic_config(url), "head")
    except CommandError as error:
        raise UnknownSchema(
            f"The schema is not of a release that this one can upgrade ({error}): a newer release made it, or "
            "one before 1.0, whose databases must be created anew."
        ) from error


def alembic_config(url: str) -> Config:
    """Alembic's configuration for one database, whatever the current folder."""
    config = Config(ROOT / "alembic.ini")
    config.set_main_option("script_location", str(ROOT / "migrations"))
    config.attributes["url"] = url
    return config


def _is_at_head(connection: Connection) -> bool:
    heads = ScriptDirectory(str(ROOT / "migrations")).get_heads()
    return set(MigrationContext.configure(connection).get_current_heads()) == set(heads)


def _postgresql_engines(url: str) -> tuple[AsyncEngine, AsyncEngine]:
    arguments = _DRIVER_ARGUMENTS.get(make_url(url).drivername.partition("+")[2], {})
    engine = create_async_engine(
        url, pool_size=10, max_overflow=10, pool_timeout=POOL_TIMEOUT, connect_args=dict(arguments)
    )
    event.listen(engine.sync_engine, "checkout", _check_connection)
    return engine, engine


def _check_connection(connection: Any, _record: object, _proxy: object) -> None:
    """
    Replace all connections if one is dead when it is handed out.

    Not `pool_pre_ping`, which waits for ever for a server that fell silent without
    closing the connection: behind a failover, a lost route, a frozen machine.
    """
    try:
        connection.run_async(_ping)
    except Exception as error:
        raise InvalidatePoolError from error


async def _ping(connection: Any) -> None:
    async with asyncio.timeout(PING_TIMEOUT):
        await connection.execute("SELECT 1")


def _sqlite_engines(url: str) -> tuple[AsyncEngine, AsyncEngine]:
    writer = create_async_engine(url, pool_size=1, max_overflow=0, pool_timeout=POOL_TIMEOUT)
    reader = create_async_engine(url, pool_size=5, max_overflow=0, pool_timeout=POOL_TIMEOUT)
    for engine, begin, is_reader in ((writer, "BEGIN IMMEDIATE", False), (reader, "BEGIN", True)):
        event.listen(engine.sync_engine, "connect", _sqlite_pragmas(is_reader))
        event.listen(engine.sync_engine, "begin", _begin_with(begin))
    return writer, reader


def _sqlite_pragmas(is_reader: bool) -> Callable[[Any, object], None]:
    def configure(connection: Any, _record: object) -> None:
        # The driver's own BEGIN is deferred: a read that turns into a write then fails at once, whatever the timeout.
        connection.isolation_level = None
        cursor = connection.cursor()
        cursor.execute(f"PRAGMA busy_timeout = {SQLITE_BUSY_TIMEOUT_MS}")
        cursor.execute("PRAGMA journal_mode = WAL")
        cursor.execute("PRAGMA synchronous = FULL")
        cursor.execute("PRAGMA foreign_keys = ON")
        cursor.execute(f"PRAGMA query_only = {'ON' if is_reader else 'OFF'}")
        cursor.close()

    return configure


def _begin_with(statement: str) -> Callable[[Connection], None]:
    def begin(connection: Connection) -> None:
        connection.exec_driver_sql(statement)

    return begin
