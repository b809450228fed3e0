"""The audit log: what keys and operators have changed, written in the transaction of the change."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import delete, func, select, tuple_

from app.database.engine import Session
from app.models import AuditEntry

# Who acts where no key does: the operator, by the command line or by a setting.
OPERATOR = "operator"


def record(session: Session, now: datetime, actor: str, action: str, target: str | None = None, **detail: Any) -> None:
    """
    Write down a change, such as `key.revoked`, of `target` by `actor`: the id of a key, or OPERATOR.

    `detail` says what is new, in values that JSON has, and never holds a secret.
    """
    session.add(AuditEntry(created_at=now, actor=actor, action=action, target=target, detail=detail))


async def list_entries(
    session: Session,
    since: datetime | None,
    until: datetime | None,
    before: tuple[datetime, str] | None,
    limit: int,
) -> Sequence[AuditEntry]:
    """Up to `limit` entries made from `since` on and before `until`, newest first, behind this position."""
    found = select(AuditEntry).order_by(AuditEntry.created_at.desc(), AuditEntry.id.desc()).limit(limit)
    if since is not None:
        found = found.where(AuditEntry.created_at >= since)
    if until is not None:
        found = found.where(AuditEntry.created_at < until)
    if before is not None:
        found = found.where(tuple_(AuditEntry.created_at, AuditEntry.id) < before)
    return (await session.scalars(found)).all()


async def count_before(session: Session, moment: datetime) -> int:
    """The number of entries that are older than this."""
    older = select(func.count()).select_from(AuditEntry).where(AuditEntry.created_at < moment)
    return await session.scalar(older) or 0


async def forget_before(session: Session, moment: datetime, limit: int) -> int:
    """Delete up to `limit` entries that are older than this; return how many there were."""
    older = select(AuditEntry.id).where(AuditEntry.created_at < moment).order_by(AuditEntry.created_at, AuditEntry.id)
    erased = delete(AuditEntry).where(AuditEntry.id.in_(older.limit(limit))).returning(AuditEntry.id)
    return len((await session.execute(erased)).all())
