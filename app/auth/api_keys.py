"""API keys: stored as hashes, made, listed, rotated and revoked."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from datetime import datetime, timedelta

import structlog
from sqlalchemy import select, update

from app.auth.callers import hash_key
from app.database.engine import Session
from app.models import ApiKey, FormerKey

log = structlog.get_logger()
# How long a key works after its rotation.
OVERLAP = timedelta(hours=24)


async def create_key(session: Session, name: str, now: datetime, *, is_admin: bool) -> str:
    """Create a key and return it; only its hash is stored."""
    key = f"sp_{secrets.token_urlsafe(32)}"
    session.add(ApiKey(name=name, key_hash=hash_key(key), is_admin=is_admin, created_at=now))
    return key


async def find_active(session: Session, name: str) -> ApiKey | None:
    """The oldest caller of this name whose key is not revoked."""
    active = select(ApiKey).where(ApiKey.name == name, ApiKey.revoked_at.is_(None))
    key: ApiKey | None = await session.scalar(active.order_by(ApiKey.created_at).limit(1))
    return key


async def find_revoked(session: Session, name: str) -> ApiKey | None:
    """The latest caller of this name whose key is revoked."""
    revoked = select(ApiKey).where(ApiKey.name == name, ApiKey.revoked_at.is_not(None))
    key: ApiKey | None = await session.scalar(revoked.order_by(ApiKey.created_at.desc()).limit(1))
    return key


async def rotate_key(session: Session, key_id: str, now: datetime, overlap: timedelta) -> str | None:
    """
    Return a new key of the same caller; None where there is no such caller.

    The old key works for `overlap`, unless it is revoked already, and with it all earlier ones. A revoked caller gets
    in again, and a configured one no longer depends on SOUNDPOST_API_KEYS.
    """
    caller = await session.get(ApiKey, key_id, with_for_update=True, populate_existing=True)
    if caller is None:
        return None
    works_until = now if caller.revoked_at else now + overlap
    session.add(FormerKey(key_hash=caller.key_hash, api_key_id=caller.id, works_until=works_until))
    if works_until <= now:
        all_former = update(FormerKey).where(FormerKey.api_key_id == caller.id, FormerKey.works_until > now)
        await session.execute(all_former.values(works_until=now))
    key = f"sp_{secrets.token_urlsafe(32)}"
    caller.key_hash, caller.revoked_at = hash_key(key), None
    caller.is_configured = caller.is_delisted = False
    return key


async def is_revoked(session: Session, key_id: str) -> bool:
    """Whether this caller is there and shut out."""
    caller = await session.get(ApiKey, key_id)
    return caller is not None and caller.revoked_at is not None


async def list_keys(session: Session) -> Sequence[ApiKey]:
    """Every key, oldest first."""
    return (await session.scalars(select(ApiKey).order_by(ApiKey.created_at, ApiKey.id))).all()


async def revoke_key(session: Session, key_id: str, now: datetime) -> bool:
    """Revoke a key. False when there is no such key, or it is revoked already; one that is delisted stays revoked."""
    active = ApiKey.id == key_id, ApiKey.revoked_at.is_(None) | ApiKey.is_delisted
    revoked = update(ApiKey).where(*active).values(revoked_at=now, is_delisted=False)
    return (await session.execute(revoked.returning(ApiKey.id))).first() is not None
