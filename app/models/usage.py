"""What usage counts: the cost of each task, and the sums of it that make looking at each unnecessary."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import BigInteger, Computed, ForeignKey, Index, String
from sqlalchemy.orm import Mapped, declared_attr, mapped_column

from app.database.base import ID_LENGTH, Base
from app.enums import Charge, Period


class Counted:
    """
    What a task costs. The sums hold it as `counted_charge` and `counted_posts`; null is not at all yet.

    The database itself keeps `is_counted`, whether that is what it costs now, so that no change of the cost can be
    missed.
    """

    charge: Mapped[Charge] = mapped_column(default=Charge.none)
    # POSTs of this task to the upstream, without those that provably never left.
    posts: Mapped[int] = mapped_column(default=0)
    counted_charge: Mapped[Charge | None]
    counted_posts: Mapped[int | None]
    is_counted: Mapped[bool] = mapped_column(
        Computed("charge = COALESCE(counted_charge, '') AND posts = COALESCE(counted_posts, -1)", persisted=True),
        deferred=True,
    )


def uncounted_index(table: str, kind: type[Counted]) -> Index:
    """The partial index of what the sums do not hold as it is: it stays small, however many tasks there are."""
    is_uncounted = ~kind.is_counted
    columns = "api_key_id", "created_at"
    return Index(f"ix_{table}_uncounted", *columns, postgresql_where=is_uncounted, sqlite_where=is_uncounted)


class SpentCharge(Counted, Base):
    """What a deleted task cost, kept until it is older than the retention: then it is in the sums alone."""

    __tablename__ = "spent_charges"

    task_id: Mapped[str] = mapped_column(String(ID_LENGTH), primary_key=True)
    api_key_id: Mapped[str] = mapped_column(ForeignKey("api_keys.id"))
    created_at: Mapped[datetime]  # Of the task.

    @declared_attr.directive
    @classmethod
    def __table_args__(cls) -> tuple[Index, ...]:
        return (
            uncounted_index(cls.__tablename__, cls),
            Index(None, "created_at"),
            Index(None, "api_key_id", "created_at", "charge", "posts"),
        )


class UsageSum(Base):
    """The number and the POSTs of a key's tasks of one charge that were created in an hour or on a day, in UTC."""

    __tablename__ = "usage_sums"

    api_key_id: Mapped[str] = mapped_column(ForeignKey("api_keys.id"), primary_key=True)
    period: Mapped[Period] = mapped_column(primary_key=True)
    starts_at: Mapped[datetime] = mapped_column(primary_key=True)
    charge: Mapped[Charge] = mapped_column(primary_key=True)
    tasks: Mapped[int] = mapped_column(BigInteger)
    posts: Mapped[int] = mapped_column(BigInteger)
