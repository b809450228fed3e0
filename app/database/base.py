"""What every table stands on: names, types, ids, and rows that fall due."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from typing import Any

from sqlalchemy import JSON, Enum, Index, MetaData, String, Text
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from uuid_utils import compat

from app.database.engine import UtcDateTime
from app.enums import (
    CallbackOutcome,
    Charge,
    DeliveryStatus,
    DisabledBy,
    ErrorCode,
    EventType,
    ResolvedBy,
    TaskStatus,
    WebhookType,
)

ID_LENGTH = 32


def new_id() -> str:
    """A UUIDv7 in 32 hex digits: unguessable, and in order of making."""
    return compat.uuid7().hex


def _words(kind: type[StrEnum]) -> Enum:
    # Strings, because PostgreSQL's own enums do not survive a migration down and up again.
    return Enum(kind, native_enum=False, length=32, values_callable=lambda kind: [word.value for word in kind])


class Base(DeclarativeBase):
    """Every table's ground."""

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
        TaskStatus: _words(TaskStatus),
        Charge: _words(Charge),
        ResolvedBy: _words(ResolvedBy),
        ErrorCode: _words(ErrorCode),
        CallbackOutcome: _words(CallbackOutcome),
        EventType: _words(EventType),
        WebhookType: _words(WebhookType),
        DeliveryStatus: _words(DeliveryStatus),
        DisabledBy: _words(DisabledBy),
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
