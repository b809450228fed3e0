"""API keys: stored as hashes, and looked up on every request, so that revoking one takes effect at once."""

from __future__ import annotations

import secrets
from collections import defaultdict
from collections.abc import Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from hashlib import sha256
from typing import Annotated, Any, TypeVar

import structlog
from fastapi import Depends
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from sqlalchemy import bindparam, or_, select, update

from app.config import parse_api_keys
from app.database.base import new_id
from app.database.engine import Database, Session, insert_new
from app.database.failures import TRANSIENT
from app.database.fetching import FixedQuery
from app.errors import NotAuthenticated, NotFound
from app.models import ApiKey, Delivery, FormerKey, Task, WebhookEndpoint
from app.web.provided import DatabaseDep

log = structlog.get_logger()
Row = TypeVar("Row", Task, WebhookEndpoint, Delivery)
# How long a key works after its rotation.
OVERLAP = timedelta(hours=24)
# Of a key that is given by hand, in characters; those that we make have 43.
SAFE_LENGTH = 16

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


async def working_keys(session: Session, hashes: Collection[str], now: datetime) -> set[str]:
    """Those of these keys, by their hashes, that open the service now."""
    current = select(ApiKey.key_hash).where(ApiKey.key_hash.in_(hashes), ApiKey.revoked_at.is_(None))
    former = FormerKey.api_key_id == ApiKey.id, FormerKey.key_hash.in_(hashes), FormerKey.works_until > now
    rotated = select(FormerKey.key_hash).where(*former, ApiKey.revoked_at.is_(None))
    return {*await session.scalars(current), *await session.scalars(rotated)}


async def list_keys(session: Session) -> Sequence[ApiKey]:
    """Every key, oldest first."""
    return (await session.scalars(select(ApiKey).order_by(ApiKey.created_at, ApiKey.id))).all()


async def revoke_key(session: Session, key_id: str, now: datetime) -> bool:
    """Revoke a key. False when there is no such key, or it is revoked already; one that is delisted stays revoked."""
    active = ApiKey.id == key_id, ApiKey.revoked_at.is_(None) | ApiKey.is_delisted
    revoked = update(ApiKey).where(*active).values(revoked_at=now, is_delisted=False)
    return (await session.execute(revoked.returning(ApiKey.id))).first() is not None


async def insert_configured_keys(database: Database, configured: str) -> None:
    """
    Apply SOUNDPOST_API_KEYS, which the process that started last decides for all replicas.

    Keys that are not listed any more are revoked, and work again once they are listed
    again. Another key under the name of a configured caller replaces that caller's key.
    What an operator has revoked or rotated stays as it is.
    """
    for doubt in doubts_about(configured):
        log.warning("configured_keys_doubtful", doubt=doubt)
    names = {hash_key(key): name for name, key in parse_api_keys(configured)}
    async with database.transaction() as (session, now):
        known = select(ApiKey).where(or_(ApiKey.is_configured, ApiKey.key_hash.in_(names)))
        callers = (await session.scalars(known.order_by(ApiKey.id).with_for_update())).all()
        former = select(FormerKey.key_hash).where(FormerKey.key_hash.in_(names))
        rotated = set((await session.scalars(former)).all())
        for hashed in rotated:
            log.warning("configured_key_was_rotated", name=names[hashed])
        new: list[dict[str, Any]] = []
        for hashed, name in names.items():
            caller = _caller_of(callers, name, hashed, names)
            if caller is not None:
                _list_key(caller, hashed)
            elif hashed not in rotated:
                row = {"id": new_id(), "name": name, "key_hash": hashed, "is_admin": False, "created_at": now}
                new.append({**row, "is_configured": True})
        for row in new:
            if same := await find_active(session, str(row["name"])):
                log.warning("configured_name_in_use", name=same.name, key_id=same.id)
        if new:
            await insert_new(session, ApiKey, *new)
        for caller in callers:
            if caller.is_configured and caller.key_hash not in names and caller.revoked_at is None:
                log.warning("unlisted_key_revoked", key_id=caller.id, name=caller.name)
                caller.revoked_at, caller.is_delisted = now, True


def _caller_of(callers: Sequence[ApiKey], name: str, hashed: str, listed: Collection[str]) -> ApiKey | None:
    """The caller that a listed key belongs to: the one with this key, or the configured one of this name."""
    for caller in callers:
        if caller.key_hash == hashed:
            return caller
    for caller in callers:
        is_replaced = caller.key_hash not in listed and (caller.revoked_at is None or caller.is_delisted)
        if caller.is_configured and caller.name == name and is_replaced:
            return caller
    return None


def _list_key(caller: ApiKey, hashed: str) -> None:
    if caller.key_hash != hashed:
        log.warning("configured_key_replaced", key_id=caller.id, name=caller.name)
        caller.key_hash = hashed
    caller.is_configured = True
    if caller.is_delisted:
        caller.revoked_at, caller.is_delisted = None, False
    if caller.revoked_at is not None:
        advice = "it is refused although it is listed; `soundpost keys rotate` gives the caller a new one"
        log.warning("configured_key_is_revoked", key_id=caller.id, name=caller.name, advice=advice)


def doubts_about(configured: str) -> list[str]:
    """What may be a mistake in SOUNDPOST_API_KEYS, in sentences that contain no key."""
    names_by_key, keys_by_name = defaultdict[str, list[str]](list), defaultdict[str, set[str]](set)
    for name, key in parse_api_keys(configured):
        names_by_key[key].append(name)
        keys_by_name[name].add(key)
    shared = [" and ".join(names) for names in names_by_key.values() if len(names) > 1]
    doubled = [name for name, keys in keys_by_name.items() if len(keys) > 1]
    short = [names[0] for key, names in names_by_key.items() if len(key) < SAFE_LENGTH]
    return [
        *(f"{names} have one key: it is one caller, named as it is last" for names in shared),
        *(f"{name} is there with different keys, which are different callers" for name in doubled),
        *(f"the key of {name} has fewer than {SAFE_LENGTH} characters, so others may guess it" for name in short),
    ]


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
