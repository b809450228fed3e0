"""Queries on keys and their ledgers."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import select

from app.database.engine import Session
from app.models import ApiKey


async def has_key(session: Session, key_id: str) -> bool:
    """Whether there is a key with this id, revoked or not."""
    return await session.scalar(select(ApiKey.id).where(ApiKey.id == key_id)) is not None


async def list_key_ids(session: Session, after: str, limit: int) -> Sequence[str]:
    """The ids of up to `limit` keys after this one."""
    return (await session.scalars(select(ApiKey.id).where(ApiKey.id > after).order_by(ApiKey.id).limit(limit))).all()
