"""Short reads with no session and no transaction around them; fixed ones go to the driver itself."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Hashable, Mapping, Sequence
from contextlib import nullcontext
from contextvars import ContextVar
from datetime import timedelta
from functools import cache, partial
from typing import Any, NamedTuple, TypeVar

from sqlalchemy import Dialect, Executable, Float, Select
from sqlalchemy.exc import OperationalError, SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncEngine
from sqlalchemy.types import TypeEngine
from sqlalchemy.util import await_only, greenlet_spawn

FETCH_TIMEOUT = timedelta(seconds=3)
# The execution option of a connection to SQLite that runs one statement, which is a transaction by itself.
SINGLE_STATEMENT = "single_statement"
# Whether a connection that is taken from the pool now is checked before its use.
is_checked = ContextVar("is_checked", default=True)
_Convert = Callable[[Any], Any]
Value = TypeVar("Value")


class FixedQuery:
    """A SELECT that never changes but for its parameters, which are named: made once, as a constant of its module."""

    def __init__(self, select: Select[*tuple[Any, ...]]) -> None:
        self.select = select
        self.compiled = cache(self._compile)

    def _compile(self, dialect: Dialect) -> _Compiled:
        compiled = self.select.compile(dialect=dialect)
        binds = [compiled.binds[name] for name in compiled.positiontup or ()]
        writers = [(bind.key, bind.type.dialect_impl(dialect).bind_processor(dialect)) for bind in binds]
        fixed = {bind.key: bind.value for bind in binds if not bind.required}
        readers = [_reader(column.type, dialect) for column in self.select.selected_columns]
        return _Compiled(str(compiled), writers, fixed, [(place, read) for place, read in enumerate(readers) if read])


class _Compiled(NamedTuple):
    """The text of a statement, its parameters in order, those with a value, and the columns to be converted."""

    text: str
    writers: Sequence[tuple[str, _Convert | None]]
    fixed: Mapping[str, Any]
    readers: Sequence[tuple[int, _Convert]]

    def parameters(self, given: Mapping[str, Any]) -> tuple[Any, ...]:
        values = {**self.fixed, **given}
        return tuple([values[name] if write is None else write(values[name]) for name, write in self.writers])

    def row(self, sent: Sequence[Any]) -> Sequence[Any]:
        row = list(sent)
        for place, read in self.readers:
            row[place] = read(row[place])
        return row


def _reader(kind: TypeEngine[Any], dialect: Dialect) -> _Convert | None:
    # Drivers make floats by themselves.
    return None if isinstance(kind, Float) else kind.dialect_impl(dialect).result_processor(dialect, None)


class SharedReads:
    """Reads that are made once for all who ask for the same thing; at most `at_once`, where that is given."""

    def __init__(self, at_once: int | None = None) -> None:
        self._places = nullcontext() if at_once is None else asyncio.Semaphore(at_once)
        # The reads that have not begun, by what they read.
        self._pending: dict[Hashable, asyncio.Task[Any]] = {}

    async def read(self, key: Hashable, query: Callable[[], Awaitable[Value]]) -> Value:
        """
        The result of one query for all who ask for the same `key` before it begins.

        The query goes on if its callers are canceled: to cancel it would close its connection.
        """
        pending = self._pending.get(key)
        if pending is None:
            pending = self._pending[key] = asyncio.create_task(self._run(key, query))
            pending.add_done_callback(_take_exception)
        result: Value = await asyncio.shield(pending)
        return result

    async def _run(self, key: Hashable, query: Callable[[], Awaitable[Value]]) -> Value:
        async with self._places:
            # Whoever asks from here on may know of a commit that this query does not see.
            del self._pending[key]
            return await query()


def _take_exception(read: asyncio.Task[Any]) -> None:
    """Mark the exception of a read as seen, whose callers may all have gone."""
    if not read.cancelled():
        read.exception()


class Fetcher:
    """
    Reads through the pool of an engine, at most `at_once`: beyond its size a pool opens connections for one use each.

    `has_sessions`: a connection has a session of the server for itself, which keeps prepared statements.
    """

    def __init__(self, engine: AsyncEngine, at_once: int, *, is_sqlite: bool, has_sessions: bool) -> None:
        self._engine, self._is_sqlite, self._has_sessions = engine.sync_engine, is_sqlite, has_sessions
        self._places = asyncio.Semaphore(at_once)
        self._shared = SharedReads()
        options: dict[str, Any] = {SINGLE_STATEMENT: True} if is_sqlite else {"isolation_level": "AUTOCOMMIT"}
        self._autocommit = self._engine.execution_options(**options)

    async def fetch(self, query: Executable | FixedQuery, parameters: Mapping[str, object]) -> Sequence[Sequence[Any]]:
        """The rows of one statement. Raises TRANSIENT."""
        async with asyncio.timeout(FETCH_TIMEOUT.total_seconds()), self._places:
            if isinstance(query, FixedQuery) and self._has_sessions:
                return await greenlet_spawn(self._unchecked, self._fetch_by_driver, query, parameters)
            statement = query.select if isinstance(query, FixedQuery) else query
            return await greenlet_spawn(self._unchecked, self._fetch, statement, parameters)

    async def fetch_shared(self, query: FixedQuery, parameters: Mapping[str, object]) -> Sequence[Sequence[Any]]:
        """The same, once for all who ask for it before it begins, in one turn of the event loop. Raises TRANSIENT."""
        return await self._shared.read((query, *parameters.items()), partial(self.fetch, query, parameters))

    def _unchecked(self, fetch: Callable[..., Sequence[Sequence[Any]]], *arguments: object) -> Sequence[Sequence[Any]]:
        was_checked = is_checked.set(False)
        try:
            return fetch(*arguments)
        finally:
            is_checked.reset(was_checked)

    def _fetch(self, statement: Executable, parameters: Mapping[str, object]) -> Sequence[Sequence[Any]]:
        with self._autocommit.connect() as connection:
            return connection.execute(statement, parameters).all()

    def _fetch_by_driver(self, query: FixedQuery, given: Mapping[str, object]) -> Sequence[Sequence[Any]]:
        compiled = query.compiled(self._engine.dialect)
        parameters = compiled.parameters(given)
        for listen in self._engine.dispatch.before_cursor_execute:
            listen(None, None, compiled.text, parameters, None, False)
        try:
            rows = self._send(compiled.text, parameters)
        except (SQLAlchemyError, OSError):
            raise
        except Exception as error:
            # The driver's own.
            raise OperationalError(None, None, error) from error
        return [compiled.row(row) for row in rows] if compiled.readers else rows

    def _send(self, text: str, parameters: Sequence[Any]) -> Sequence[Sequence[Any]]:
        pooled = self._engine.pool.connect()
        driver: Any = pooled.driver_connection
        try:
            sent = driver.execute_fetchall(text, parameters) if self._is_sqlite else driver.fetch(text, *parameters)
            rows: Sequence[Sequence[Any]] = await_only(sent)
        except BaseException as error:
            # Whatever the reason, the next one gets another connection.
            pooled.invalidate(error)
            raise
        pooled.close()
        return rows
