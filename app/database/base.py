"""The declarative base: constraint names, column types, ids, and rows that fall due."""

from __future__ import annotations

from datetime import UTC, datetime
from enum import StrEnum
from typing import Any

from sqlalchemy import JSON, DateTime, Dialect, Enum, Index, MetaData, String, Text, TypeDecorator
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from uuid_utils import compat

ID_LENGTH = 32


def new_id() -> str:
    """A UUIDv7 in 32 hex digits: unguessable, and in order of making."""
    return compat.uuid7().hex


class UtcDateTime(TypeDecorator[datetime]):
    """An aware datetime in UTC, on databases that know time zones and on SQLite, which does not."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """Refuse naive times: which moment they mean is a guess."""
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError("a naive datetime has no moment")
        value = _to_utc(value)
        return value.replace(tzinfo=None) if dialect.name == "sqlite" else value

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """SQLite hands back what it was given: UTC without saying so."""
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


def _to_utc(value: datetime) -> datetime:
    try:
        return value.astimezone(UTC)
    except OverflowError:
        # In another zone the first and the last day of the calendar reach a few hours over its ends.
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
        # Strings, because PostgreSQL's own enums do not survive a migration down and up again. Every subclass too.
        StrEnum: Enum(StrEnum, native_enum=False, length=32, values_callable=_values),
    }


class Due:
    """
    A row that may need us again.

    `due_at` says when, null means never; `fence` names the claim that holds it, so
    that whoever was overtaken cannot write.
    """

    due_at: Mapped[datetime | None]
    attempts: Mapped[int] = mapped_column(default=0)
    fence: Mapped[str | None] = mapped_column(String(ID_LENGTH))


def due_index(table: str, kind: type[Due], *columns: str) -> Index:
    due = kind.due_at.isnot(None)
    return Index(f"ix_{table}_due", *columns, postgresql_where=due, sqlite_where=due)
