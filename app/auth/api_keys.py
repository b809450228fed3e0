"""API keys: stored as hashes, made, changed, listed, rotated and revoked by the operator, as the audit log tells."""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, TypedDict, Unpack

import structlog
from sqlalchemy import select, update

from app.auth.audit import OPERATOR, record
from app.auth.callers import hash_key
from app.database.engine import Session
from app.models import ApiKey, Budget, FormerKey

log = structlog.get_logger()
# How long a key works after its rotation.
OVERLAP = timedelta(hours=24)


class KeyTerms(TypedDict, total=False):
    """What a key may do and until when: the columns of its row that an operator chooses."""

    is_admin: bool
    # Separated by commas, without `admin`.
    scopes: str
    weight: int
    expires_at: datetime | None


async def create_key(session: Session, name: str, now: datetime, **terms: Unpack[KeyTerms]) -> str:
    """Create a key and return it; only its hash is stored."""
    key = f"sp_{secrets.token_urlsafe(32)}"
    row = ApiKey(name=name, key_hash=hash_key(key), created_at=now, **terms)
    session.add(row)
    # Fills in the id and the defaults.
    await session.flush()
    record(session, now, OPERATOR, "key.created", row.id, name=name, **_told(terms_of(row)))
    return key


async def change_key(session: Session, key_id: str, now: datetime, **terms: Unpack[KeyTerms]) -> ApiKey | None:
    """Change what is given of a key, and return it; None where there is no such key."""
    row = await session.get(ApiKey, key_id, with_for_update={"key_share": True}, populate_existing=True)
    if row is None:
        return None
    before = terms_of(row)
    for name, value in terms.items():
        setattr(row, name, value)
    if changed := {name: value for name, value in terms_of(row).items() if value != before.get(name)}:
        record(session, now, OPERATOR, "key.changed", row.id, **_told(changed))
    return row


def terms_of(key: ApiKey) -> dict[str, Any]:
    """What a key may do and until when, with all of its scopes as a list."""
    scopes = [scope for scope in key.scopes.split(",") if scope] + ["admin"] * key.is_admin
    return {"scopes": scopes, "weight": key.weight, "expires_at": key.expires_at}


def refusal_of(key: ApiKey, now: datetime) -> str | None:
    """Why this key does not open the service, and what to do; None where it does."""
    if key.revoked_at is not None:
        return f"The key of {key.name} is revoked; `soundpost keys rotate {key.id}` gives a new one."
    if key.expires_at is not None and key.expires_at <= now:
        return f"The key of {key.name} has expired; `soundpost keys set {key.id} --no-expiry` lets it work again."
    return None


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

    The old key works for `overlap`, unless it is revoked already, and with it all earlier ones. The new one may do the
    same, until the same time. A revoked caller gets in again, and a configured one no longer depends on
    SOUNDPOST_API_KEYS.
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
    record(session, now, OPERATOR, "key.rotated", caller.id, name=caller.name, old_works_until=works_until.isoformat())
    return key


async def remark_on_rotation(session: Session, key_id: str, now: datetime) -> str | None:
    """What a rotation of this key will not do, or what else it does; None where there is nothing to say."""
    caller = await session.get(ApiKey, key_id)
    if caller is not None and caller.revoked_at is not None:
        return "This caller's key was revoked: with the new one it gets in again, and the old one stays refused."
    if caller is not None and refusal_of(caller, now):
        return f"The new key has expired as the old one has: `soundpost keys set {key_id} --no-expiry` lets both work."
    return None


async def list_keys(session: Session) -> Sequence[ApiKey]:
    """Every key, oldest first."""
    return (await session.scalars(select(ApiKey).order_by(ApiKey.created_at, ApiKey.id))).all()


async def find_budgets(session: Session) -> Mapping[str, Budget]:
    """The budget of each key that has one, by the key's id."""
    limited = select(Budget).where(Budget.credit_limit.is_not(None))
    return {budget.api_key_id: budget for budget in await session.scalars(limited)}


async def revoke_key(session: Session, key_id: str, now: datetime) -> bool:
    """Revoke a key. False when there is no such key, or it is revoked already; one that is delisted stays revoked."""
    active = ApiKey.id == key_id, ApiKey.revoked_at.is_(None) | ApiKey.is_delisted
    revoked = update(ApiKey).where(*active).values(revoked_at=now, is_delisted=False)
    name = await session.scalar(revoked.returning(ApiKey.name))
    if name is not None:
        record(session, now, OPERATOR, "key.revoked", key_id, name=name)
    return name is not None


def _told(terms: dict[str, Any]) -> dict[str, Any]:
    """The same for the audit log, whose details are JSON."""
    return {name: value.isoformat() if isinstance(value, datetime) else value for name, value in terms.items()}
