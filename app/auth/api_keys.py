"""API keys: stored as hashes, and looked up on every request, so that revoking one takes effect at once."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from hashlib import sha256
from typing import Annotated, TypeVar

from fastapi import Depends
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from sqlalchemy import select, update

from app.config import fits_header
from app.database.base import new_id
from app.database.engine import Database, Session, insert_new
from app.errors import NotAuthenticated, NotFound
from app.models import ApiKey, Delivery, Task, WebhookEndpoint
from app.web.provided import DatabaseDep

Row = TypeVar("Row", Task, WebhookEndpoint, Delivery)

bearer = HTTPBearer(auto_error=False, description="A key made by `soundpost keys create`.")


@dataclass(frozen=True, slots=True)
class Caller:
    """Whose key a request carries."""

    api_key_id: str
    is_admin: bool

    def require_readable(self, row: Row | None) -> Row:
        """The row, if this caller may read it: an admin reads everything. Raises NotFound, for an absent row too."""
        if row is None or not (self.is_admin or row.api_key_id == self.api_key_id):
            raise NotFound
        return row

    def require_owned(self, row: Row | None) -> Row:
        """The row, if this caller may change it or read its secrets: an admin, too, only its own. Raises NotFound."""
        if row is None or row.api_key_id != self.api_key_id:
            raise NotFound
        return row


# The command line reads as an admin does, and owns nothing.
OPERATOR = Caller(api_key_id="", is_admin=True)


async def authenticate(
    database: DatabaseDep, credentials: Annotated[HTTPAuthorizationCredentials | None, Depends(bearer)]
) -> Caller:
    """
    Return the caller whose key a request carries. Raises NotAuthenticated.

    Keys are long and random, so a plain hash protects them, and the lookup by hash
    compares nothing that an attacker could time.
    """
    if credentials is None:
        raise NotAuthenticated
    found = select(ApiKey).where(ApiKey.key_hash == hash_key(credentials.credentials), ApiKey.revoked_at.is_(None))
    # Closed at once: requests that held a connection while they waited for another could exhaust the pool.
    async with database.reads() as session:
        key = await session.scalar(found)
    if key is None:
        raise NotAuthenticated
    return Caller(key.id, key.is_admin)


CallerDep = Annotated[Caller, Depends(authenticate)]


def hash_key(key: str) -> str:
    """The SHA-256 of an API key, in hex."""
    return sha256(key.encode("utf-8", "replace")).hexdigest()


async def create_key(session: Session, name: str, now: datetime, *, is_admin: bool) -> str:
    """Create a key and return it; only its hash is stored."""
    key = f"sp_{secrets.token_urlsafe(32)}"
    session.add(ApiKey(name=name, key_hash=hash_key(key), is_admin=is_admin, created_at=now))
    return key


async def list_keys(session: Session) -> Sequence[ApiKey]:
    """Every key, oldest first."""
    return (await session.scalars(select(ApiKey).order_by(ApiKey.created_at, ApiKey.id))).all()


async def revoke_key(session: Session, key_id: str, now: datetime) -> bool:
    """Revoke a key. False when there is no such key, or it is revoked already."""
    revoked = update(ApiKey).where(ApiKey.id == key_id, ApiKey.revoked_at.is_(None)).values(revoked_at=now)
    return (await session.execute(revoked.returning(ApiKey.id))).first() is not None


async def insert_configured_keys(database: Database, configured: str) -> None:
    """Insert the keys of SOUNDPOST_API_KEYS. Keys that exist, revoked ones too, stay as they are."""
    async with database.transaction() as (session, now):
        rows = [
            {"id": new_id(), "name": name, "key_hash": hash_key(key), "is_admin": False, "created_at": now}
            for name, key in parse_configured_keys(configured)
        ]
        await insert_new(session, ApiKey, *rows)


def parse_configured_keys(configured: str) -> list[tuple[str, str]]:
    """Read `name:key,name:key` as pairs. Raises ValueError, whose message contains no key."""
    pairs = [pair.strip().partition(":") for pair in configured.split(",") if pair.strip()]
    if any(not (name and key) for name, _, key in pairs):
        raise ValueError("SOUNDPOST_API_KEYS must be name:key pairs, separated by commas")
    if not all(fits_header(key.strip()) for _, _, key in pairs):
        raise ValueError("SOUNDPOST_API_KEYS must hold keys of visible ASCII characters: a header cannot carry others")
    return [(name.strip(), key.strip()) for name, _, key in pairs]
