"""The statements that a database gets, as they are sent."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from sqlalchemy import event

from app.database.engine import Database


class Statement(NamedTuple):
    """A statement with its parameters, in the driver's form."""

    sql: str
    parameters: Any


COMMIT = Statement("COMMIT", ())


@contextmanager
def recorded(database: Database) -> Iterator[list[Statement]]:
    """Record every statement, and every commit, until the block ends."""
    statements: list[Statement] = []

    def keep(_connection: Any, _cursor: Any, sql: str, parameters: Any, _context: Any, executemany: bool) -> None:
        # An insert of several rows in one statement counts as many, with the parameters of one.
        is_list = executemany and isinstance(parameters, list)
        statements.append(Statement(sql, parameters[0] if is_list else parameters))

    def commit(_connection: Any) -> None:
        statements.append(COMMIT)

    engines = {
        sessions.kw["bind"].sync_engine for sessions in (database.writes, database.urgent_writes, database.reads)
    }
    listeners = [
        (engine, name, listen)
        for engine in engines
        for name, listen in (("before_cursor_execute", keep), ("commit", commit))
    ]
    for listener in listeners:
        event.listen(*listener)
    try:
        yield statements
    finally:
        for listener in listeners:
            event.remove(*listener)
