"""Failures of the database: which may pass, which are a lock, and what may be said of them."""

from __future__ import annotations

from sqlalchemy.exc import (
    DataError,
    DBAPIError,
    IntegrityError,
    NotSupportedError,
    OperationalError,
    ProgrammingError,
    SQLAlchemyError,
    StatementError,
)

from app.config.database_url import without_password
from app.database.migrations import is_not_migrated

# Exceptions that mean "the database is unreachable for now".
TRANSIENT = (SQLAlchemyError, OSError, TimeoutError)
# Those of them that the same transaction meets again: what it does is wrong, or the schema is not the one it expects.
# By SQLSTATE's class (PostgreSQL), by SQLite's name, and by SQLAlchemy's class where a driver says neither.
_REFUSED_STATES = frozenset({"0A", "21", "22", "23", "42"})
_REFUSED_NAMES = ("SQLITE_ERROR", "SQLITE_CONSTRAINT", "SQLITE_MISMATCH", "SQLITE_RANGE", "SQLITE_TOOBIG")
# Why there is no connection, or no longer one: such messages name roles and databases, and no values.
_DISCONNECTED_STATES = frozenset({"08", "28", "3D", "53", "57"})
_REFUSED = (DataError, IntegrityError, NotSupportedError, ProgrammingError)


def reason(error: Exception, url: str = "") -> str:
    """The first line of a driver's error, or else its class, without the statement and the password of the URL."""
    said = without_password(str(getattr(error, "orig", None) or error), url).partition("\n")[0]
    return said or type(error).__name__


def can_pass(error: Exception) -> bool:
    """Whether the transaction that raised this may succeed later, with nothing but the database's state changed."""
    if not isinstance(error, DBAPIError):
        return not isinstance(error, StatementError)
    cause = error.orig
    state, name = getattr(cause, "sqlstate", None), getattr(cause, "sqlite_errorname", None)
    if state is not None:
        return state[:2] not in _REFUSED_STATES
    if name is not None:
        return not name.startswith(_REFUSED_NAMES)
    # asyncpg's own check of a parameter is an InterfaceError, like a lost connection, and a ValueError.
    return not isinstance(error, _REFUSED) and not isinstance(getattr(cause, "__cause__", None), ValueError)


def is_locked(error: Exception) -> bool:
    """Whether a statement waited for a lock until its `lock_timeout`."""
    return getattr(getattr(error, "orig", None), "sqlstate", None) == "55P03"


def advice(error: Exception) -> str | None:
    """What a log may say of a driver's error: what to do, or why there is no connection. Never a statement's values."""
    if is_not_migrated(error):
        return "the schema is not this release's: run `soundpost migrate`"
    # asyncpg's refused connections are no OperationalError, as those of psycopg are.
    state = getattr(getattr(error, "orig", None), "sqlstate", None) or ""
    is_plain = isinstance(error, OSError | OperationalError) or state[:2] in _DISCONNECTED_STATES
    return reason(error) if is_plain else None
