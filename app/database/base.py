"""The declarative base: constraint names, column types, ids, and rows that fall due."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Any

from sqlalchemy import (
    JSON,
    DateTime,
    Dialect,
    Enum,
    FunctionElement,
    Index,
    MetaData,
    SmallInteger,
    String,
    Text,
    TypeDecorator,
)
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from uuid_utils import compat

ID_LENGTH = 32
# Storage parameters of PostgreSQL. By default autovacuum waits until a fifth of a table is dead rows: of a million
# tasks that is days of updates. A tenth of each page stays free for the new versions of its rows.
MANY_UPDATED_ROWS = {
    "fillfactor": 90,
    "autovacuum_vacuum_scale_factor": 0.02,
    "autovacuum_analyze_scale_factor": 0.02,
}
# A few rows, updated several times a second: half of each page stays free, so that their new versions replace the old
# ones within it (HOT), and a few hundred dead ones are enough for autovacuum.
FEW_BUSY_ROWS = {"fillfactor": 50, "autovacuum_vacuum_scale_factor": 0, "autovacuum_vacuum_threshold": 200}


def new_id() -> str:
    """A new UUIDv7 (RFC 9562 §5.7) in 32 hex digits: unguessable, and sorted by creation time."""
    return compat.uuid7().hex


def id_floor(moment: datetime, skew: timedelta) -> str:
    """What sorts before every id made since this time, by clocks that are late by no more than `skew`."""
    milliseconds = (moment - datetime.fromtimestamp(0, UTC) - skew) // timedelta(milliseconds=1)
    return f"{max(0, milliseconds):012x}"


class UtcDateTime(TypeDecorator[datetime]):
    """An aware datetime in UTC, on databases that know time zones and on SQLite, which does not."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """Convert to UTC. Raises ValueError for a naive datetime, whose zone would be a guess."""
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError("a naive datetime has no time zone")
        value = to_utc(value)
        return value.replace(tzinfo=None) if dialect.name == "sqlite" else value

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """Make the result aware: SQLite returns UTC without a zone."""
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


class CurrentTime(FunctionElement[datetime]):
    """The database's time inside of a statement, to be compared with a column: on SQLite it is a text."""

    type = UtcDateTime()
    inherit_cache = True


@compiles(CurrentTime, "postgresql")
def _postgresql_time(*_: Any, **__: Any) -> str:
    return "clock_timestamp()"


@compiles(CurrentTime, "sqlite")
def _sqlite_time(*_: Any, **__: Any) -> str:
    return "strftime('%Y-%m-%d %H:%M:%f', 'now')"


class Ordered(TypeDecorator[StrEnum]):
    """The members of an enumeration as their places in it, by which the database sorts them."""

    impl = SmallInteger
    cache_ok = True

    def __init__(self, kind: type[StrEnum]) -> None:
        super().__init__()
        self.kind = kind
        self._members = tuple(kind)

    def process_bind_param(self, value: StrEnum | None, dialect: Dialect) -> int | None:
        """The place of a member, from 0."""
        return None if value is None else self._members.index(self.kind(value))

    def process_result_value(self, value: int | None, dialect: Dialect) -> StrEnum | None:
        """The member at a place."""
        return None if value is None else self._members[value]


def to_utc(value: datetime) -> datetime:
    """An aware time in UTC."""
    try:
        return value.astimezone(UTC)
    except OverflowError:
        # In other zones, times of the first and the last day of the calendar lie outside of it in UTC.
        return datetime.min.replace(tzinfo=UTC) if value.year == 1 else datetime.max.replace(tzinfo=UTC)


def _values(kind: type[StrEnum]) -> list[str]:
    return [member.value for member in kind]


class Base(DeclarativeBase):
    """The declarative base of every table: constraint names and column types."""

    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(table_name)s_%(column_0_N_name)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "fk": "fk_%(table_name)s_%(column_0_N_name)s",
            "pk": "pk_%(table_name)s",
        }
    )
    type_annotation_map = {  # noqa: RUF012 - SQLAlchemy reads it as declared
        datetime: UtcDateTime,
        str: Text,
        dict[str, Any]: JSON,
        dict[str, str]: JSON,
        # For every subclass too. Strings, because native PostgreSQL enums do not survive a downgrade and upgrade.
        StrEnum: Enum(StrEnum, native_enum=False, length=32, values_callable=_values),
    }


class Due:
    """
    A row with work to do, which workers claim.

    `due_at` is when, null is never. `attempts` counts claims. `fence` identifies the
    latest claim, so that a worker whose lease has ended cannot write.
    """

    due_at: Mapped[datetime | None]
    attempts: Mapped[int] = mapped_column(default=0)
    fence: Mapped[str | None] = mapped_column(String(ID_LENGTH))


def due_index(table: str, kind: type[Due], *columns: str) -> Index:
    """The partial index by which claims find rows: it holds only those that are due at some time."""
    due = kind.due_at.isnot(None)
    return Index(f"ix_{table}_due", *columns, postgresql_where=due, sqlite_where=due)
