"""SQLite: one writer at a time, several readers, and statements that run without a hop to a thread."""

from __future__ import annotations

import asyncio
import os
import sqlite3
from collections.abc import Callable
from contextlib import closing, suppress
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import aiosqlite
from sqlalchemy import Connection, Pool, event, make_url, text
from sqlalchemy.dialects.sqlite.base import SQLiteCompiler
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, create_async_engine

from app.database.fetching import SINGLE_STATEMENT
from app.database.turns import PriorityLock, prioritized_pool

BUSY_TIMEOUT = timedelta(seconds=8)
READERS = 5
BEGIN_WRITE = "BEGIN IMMEDIATE"
# What may wait for another process, or for the disk: for the lock of the file, or for its fsync.
_WAITING = (BEGIN_WRITE, "PRAGMA ")
_JOURNAL = text("PRAGMA journal_mode")
_FILE = text("SELECT file FROM pragma_database_list WHERE name = 'main'")


class _HintingCompiler(SQLiteCompiler):
    """Writes a query's hints for SQLite, such as INDEXED BY, behind its tables; SQLAlchemy leaves them out."""

    def get_from_hint_text(self, _table: Any, text: str | None) -> str | None:
        return text


class LoopConnection(aiosqlite.Connection):
    """
    A connection whose statements run on the event loop; what waits for a lock or for the disk runs in its thread.

    A statement by an index takes some 20 µs. To hand it to a thread and back costs ten
    times that, for each of `cursor`, `execute`, `fetchall` and `close`.
    """

    _in_thread = 0

    async def _execute(self, fn: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Call `fn`, as each method of the driver does. A canceled commit goes on, and later calls wait for it."""
        if self._in_thread or fn.__name__ == "commit" or (args and str(args[0]).startswith(_WAITING)):
            self._in_thread += 1
            call = asyncio.ensure_future(super()._execute(fn, *args, **kwargs))  # type: ignore[no-untyped-call]
            call.add_done_callback(self._leave_thread)
            return await asyncio.shield(call)
        if not self._running or self._connection is None:
            raise ValueError("Connection closed")
        return fn(*args, **kwargs)

    async def close(self) -> None:
        """Close the connection; nothing is left to do where it was stopped meanwhile."""
        with suppress(ValueError):
            await super().close()

    def stop(self) -> asyncio.Future[Any] | None:
        """Close the connection in its thread, behind what waits there; once, however often a close is canceled."""
        if not self._running:
            return None
        if self._connection is not None:
            # A graceful close that is canceled forgets the connection before the thread comes to it.
            self._tx.put_nowait((None, self._connection.close))
        return super().stop()

    def _leave_thread(self, call: asyncio.Future[Any]) -> None:
        self._in_thread -= 1
        # Where the caller was canceled nobody else takes the exception.
        if not call.cancelled():
            call.exception()


def sqlite_engines(url: str, pool_timeout: timedelta) -> tuple[AsyncEngine, AsyncEngine, AsyncEngine]:
    """The engines for writes, for urgent writes and for reads; the first two take turns, the urgent ones first."""
    turn = PriorityLock()

    def engine(size: int, begin: str, pool: type[Pool] | None = None) -> AsyncEngine:
        sizes = {"pool_size": size, "max_overflow": 0, "pool_timeout": pool_timeout.total_seconds()}
        made = create_async_engine(url, poolclass=pool, connect_args={"async_creator_fn": _open}, **sizes)
        made.sync_engine.dialect.statement_compiler = _HintingCompiler
        event.listen(made.sync_engine, "connect", _pragmas(is_reader=pool is None))
        event.listen(made.sync_engine, "begin", _begin_with(begin))
        return made

    urgent, writer = (engine(1, BEGIN_WRITE, prioritized_pool(turn, priority)) for priority in (0, 1))
    return writer, urgent, engine(READERS, "BEGIN")


async def file_of(session: AsyncSession) -> Path:
    """The file that a session reads, whether it is still there or not."""
    return Path((await session.scalars(_FILE)).one())


async def journal_mode(session: AsyncSession) -> str:
    """How changes reach the file: `wal`, unless its place or the URL forbids it."""
    return str((await session.scalars(_JOURNAL)).one())


def _open(database: str, **options: Any) -> LoopConnection:
    # Used by one thread at a time, and not only by the one that opened it.
    options["check_same_thread"] = False
    connection = LoopConnection(partial(sqlite3.connect, database, **options), iter_chunk_size=64)
    connection._thread.daemon = True
    return connection


def _pragmas(*, is_reader: bool) -> Callable[[Any, object], None]:
    def configure(connection: Any, _record: object) -> None:
        # The driver's own BEGIN is deferred: a read that becomes a write then fails at once, whatever the timeout.
        connection.isolation_level = None
        cursor = connection.cursor()
        cursor.execute(f"PRAGMA busy_timeout = {BUSY_TIMEOUT // timedelta(milliseconds=1)}")
        cursor.execute("PRAGMA journal_mode = WAL")
        cursor.execute("PRAGMA synchronous = FULL")
        cursor.execute("PRAGMA foreign_keys = ON")
        cursor.execute(f"PRAGMA query_only = {'ON' if is_reader else 'OFF'}")
        cursor.close()

    return configure


def _begin_with(statement: str) -> Callable[[Connection], None]:
    def begin(connection: Connection) -> None:
        if not connection.get_execution_options().get(SINGLE_STATEMENT):
            connection.exec_driver_sql(statement)

    return begin


def back_up(url: str, file: Path) -> None:
    """
    Write a consistent copy of an SQLite database to a new file, while processes use it.

    Copying the file itself misses what is still in its write-ahead log. The copy appears whole or not at all.
    Raises OSError, sqlite3.Error.
    """
    source = Path(str(make_url(url).database))
    if not source.exists():
        raise FileNotFoundError(f"{source} does not exist")
    if file.exists():
        raise FileExistsError(f"{file} exists already")
    if not file.parent.is_dir():
        raise FileNotFoundError(f"there is no folder {file.parent.absolute()}")
    draft = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        with closing(sqlite3.connect(f"{source.absolute().as_uri()}?mode=rw", uri=True, timeout=30)) as connection:
            try:
                connection.execute("VACUUM INTO ?", (str(draft),))
            except sqlite3.Error as error:
                # It names the draft, of which nobody has heard.
                raise OSError(str(error).replace(str(draft), str(file))) from error
        with draft.open("rb") as copy:
            os.fsync(copy.fileno())
        draft.rename(file)
    finally:
        draft.unlink(missing_ok=True)
