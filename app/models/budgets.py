"""What each key may spend, and each change of what it has spent. Credits are stored as thousandths."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import BigInteger, ForeignKey, Index, String
from sqlalchemy.orm import Mapped, mapped_column

from app.database.base import FEW_BUSY_ROWS, ID_LENGTH, Base, new_id
from app.enums import EntryKind, Window


class Budget(Base):
    """
    A key's account: its budget, if it has one, what of it is used in this window, and its balance in the ledger.

    Made with the key's first order or budget. It is locked by whoever writes to the key's ledger.
    """

    __tablename__ = "budgets"
    __table_args__ = ({"postgresql_with": FEW_BUSY_ROWS},)

    api_key_id: Mapped[str] = mapped_column(ForeignKey("api_keys.id"), primary_key=True)
    # Thousandths of credits in each window; null is no limit.
    credit_limit: Mapped[int | None] = mapped_column(BigInteger)
    window: Mapped[Window | None]
    # The window that `spent` and `reserved` are of, by its beginning; null before the first entry. Where no window is
    # given, it is the day.
    starts_at: Mapped[datetime | None]
    spent: Mapped[int] = mapped_column(BigInteger, default=0)
    reserved: Mapped[int] = mapped_column(BigInteger, default=0)
    # What the upstream has charged and not given back, ever.
    charged: Mapped[int] = mapped_column(BigInteger, default=0)
    # Of the ledger: the sum of its entries, and the number and the time of the last one.
    balance: Mapped[int] = mapped_column(BigInteger, default=0)
    entries: Mapped[int] = mapped_column(BigInteger, default=0)
    booked_at: Mapped[datetime | None]
    # Whether webhooks have said so in this window.
    is_low: Mapped[bool] = mapped_column(default=False)
    is_exhausted: Mapped[bool] = mapped_column(default=False)


class LedgerEntry(Base):
    """One change of a key's balance. Written with what it is about, never changed, and kept when the task is erased."""

    __tablename__ = "ledger_entries"
    __table_args__ = (Index(None, "api_key_id", "created_at", "number"),)

    id: Mapped[str] = mapped_column(String(ID_LENGTH), primary_key=True, default=new_id)
    api_key_id: Mapped[str] = mapped_column(ForeignKey("api_keys.id"))
    # From 1 in each key's ledger, in the order of the commits.
    number: Mapped[int] = mapped_column(BigInteger)
    task_id: Mapped[str | None] = mapped_column(String(ID_LENGTH))
    kind: Mapped[EntryKind]
    # Thousandths of credits, negative for what is taken; and the sum of all entries up to this one.
    credits: Mapped[int] = mapped_column(BigInteger)
    balance: Mapped[int] = mapped_column(BigInteger)
    created_at: Mapped[datetime]
