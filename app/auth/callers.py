"""Whose key a request carries: looked up by hash on every request, so that revoking one takes effect at once."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from hashlib import sha256
from typing import Annotated, Any, TypeVar

import structlog
from fastapi import Depends
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from sqlalchemy import bindparam, select

from app.database.engine import Database, Session
from app.database.failures import TRANSIENT
from app.database.fetching import FixedQuery
from app.errors import NotAuthenticated, NotFound, NotPermitted
from app.models import ApiKey, Delivery, FormerKey, Task, WebhookEndpoint
from app.web.provided import DatabaseDep

Row = TypeVar("Row", Task, WebhookEndpoint, Delivery)


bearer = HTTPBearer(auto_error=False, description="A key made by `soundpost keys create`.")


@dataclass(frozen=True, slots=True)
class Caller:
    """Whose key a request carries."""

    api_key_id: str
    is_admin: bool
    # Of the key that the request carries.
    key_hash: str = ""

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

    def require_admin(self) -> None:
        """Raises NotPermitted unless this caller is an admin."""
        if not self.is_admin:
            raise NotPermitted("The key needs the scope `admin` for this.")


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
    caller = await find_caller(database, hash_key(credentials.credentials))
    if caller is None:
        raise NotAuthenticated
    return caller


async def find_caller(database: Database, key_hash: str) -> Caller | None:
    """
    Return the caller whose key has this hash, if it works now.

    From here on, every log line of this request says whose it is.
    """
    found = await _find_by_current_key(database, key_hash) or await _find_by_any_key(database, key_hash)
    if found is None:
        return None
    key_id, is_admin, name = found
    structlog.contextvars.bind_contextvars(caller=name)
    return Caller(key_id, is_admin, key_hash)


async def find_callers(database: Database, key_id: str) -> Sequence[tuple[Caller, str]]:
    """The caller with this id and its name, once for each of its keys that works now; its current key comes first."""
    async with database.reads() as session:
        now = await database.now(session)
        active = ApiKey.id == key_id, ApiKey.revoked_at.is_(None)
        former = FormerKey.api_key_id == ApiKey.id, FormerKey.works_until > now
        current = (await session.execute(select(ApiKey.key_hash, ApiKey.is_admin, ApiKey.name).where(*active))).all()
        rotated = select(FormerKey.key_hash, ApiKey.is_admin, ApiKey.name).where(*former, *active)
        found = [*current, *(await session.execute(rotated)).all()]
    return [(Caller(key_id, is_admin, key_hash), name) for key_hash, is_admin, name in found]


CallerDep = Annotated[Caller, Depends(authenticate)]


def hash_key(key: str) -> str:
    """The SHA-256 of an API key, in hex."""
    return sha256(key.encode("utf-8", "replace")).hexdigest()


async def working_keys(session: Session, hashes: Collection[str], now: datetime) -> set[str]:
    """Those of these keys, by their hashes, that open the service now."""
    current = select(ApiKey.key_hash).where(ApiKey.key_hash.in_(hashes), ApiKey.revoked_at.is_(None))
    former = FormerKey.api_key_id == ApiKey.id, FormerKey.key_hash.in_(hashes), FormerKey.works_until > now
    rotated = select(FormerKey.key_hash).where(*former, ApiKey.revoked_at.is_(None))
    return {*await session.scalars(current), *await session.scalars(rotated)}


_FOUND = ApiKey.id, ApiKey.is_admin, ApiKey.name


_CURRENT_KEY = FixedQuery(select(*_FOUND).where(ApiKey.key_hash == bindparam("key_hash"), ApiKey.revoked_at.is_(None)))


async def _find_by_current_key(database: Database, key_hash: str) -> Sequence[Any] | None:
    # Where the connection was dead, the other way gets a fresh one.
    with suppress(*TRANSIENT):
        for found in await database.fetch_shared(_CURRENT_KEY, key_hash=key_hash):
            return found
    return None


async def _find_by_any_key(database: Database, key_hash: str) -> Sequence[Any] | None:
    # Closed at once: requests that held a connection while they waited for another could exhaust the pool.
    async with database.reads() as session:
        found: Sequence[Any] | None = (await session.execute(_CURRENT_KEY.select, {"key_hash": key_hash})).first()
        if found is None:
            now = await database.now(session)
            former = FormerKey.api_key_id == ApiKey.id, FormerKey.key_hash == key_hash, FormerKey.works_until > now
            found = (await session.execute(select(*_FOUND).where(*former, ApiKey.revoked_at.is_(None)))).first()
    return found
