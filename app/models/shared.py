"""Rows that all replicas share: periodic jobs, the slots of the upstream's rate, and which releases may run."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import String
from sqlalchemy.orm import Mapped, mapped_column

from app.database.base import FEW_BUSY_ROWS, ID_LENGTH, Base, Due


class PeriodicJob(Due, Base):
    """Periodic work, or a recheck that is due: a row, so that one replica at a time does it."""

    __tablename__ = "periodic_jobs"
    __table_args__ = ({"postgresql_with": FEW_BUSY_ROWS},)

    name: Mapped[str] = mapped_column(String(64), primary_key=True)
    detail: Mapped[dict[str, Any]] = mapped_column(default=dict)


class CompatibleRevision(Base):
    """A revision whose release works on this schema, which a newer release has migrated."""

    __tablename__ = "compatible_revisions"

    revision: Mapped[str] = mapped_column(String(64), primary_key=True)


class QueueTag(Base):
    """
    Where a key stands in the fair queue: its next task's start tag, in virtual time.

    The row with an empty key holds the virtual time itself, which is the start tag of the task that was served last.
    """

    __tablename__ = "queue_tags"
    __table_args__ = ({"postgresql_with": FEW_BUSY_ROWS},)

    # No foreign key, for the row that is no key's.
    api_key_id: Mapped[str] = mapped_column(String(ID_LENGTH), primary_key=True)
    tag: Mapped[float]


class PaceSlot(Base):
    """One request in any window of the upstream's rate: reserved until `free_at`."""

    __tablename__ = "pace_slots"
    __table_args__ = ({"postgresql_with": FEW_BUSY_ROWS},)

    slot: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    free_at: Mapped[datetime]
    fence: Mapped[str | None] = mapped_column(String(ID_LENGTH))
