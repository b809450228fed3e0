"""Whose key a request carries, and what it may do: looked up on every request, so that a change counts at once."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from hashlib import sha256
from typing import Annotated, Any, TypeVar

import structlog
from fastapi import Depends, Security
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer, SecurityScopes
from sqlalchemy import bindparam, select

from app.auth.last_use import LastUses
from app.database.base import CurrentTime
from app.database.engine import Database, Session
from app.database.failures import TRANSIENT
from app.database.fetching import FixedQuery
from app.enums import Scope
from app.errors import NotAuthenticated, NotFound, NotPermitted
from app.models import ApiKey, Delivery, FormerKey, Task, WebhookEndpoint
from app.web.provided import DatabaseDep, provided

Row = TypeVar("Row", Task, WebhookEndpoint, Delivery)

# Where requests note which key they came with.
LastUsesDep = Annotated[LastUses, provided(LastUses)]
bearer = HTTPBearer(
    auto_error=False,
    description="A key made by `soundpost keys create`. Each operation names the scope that the key needs.",
)


@dataclass(frozen=True, slots=True)
class Caller:
    """Whose key a request carries, and what it may do."""

    api_key_id: str
    is_admin: bool
    # Of the key that the request carries.
    key_hash: str = ""
    # Those of the key but `admin`; the command line needs none.
    scopes: frozenset[str] = frozenset()
    # The admin's key where it acts for this caller.
    acting_key_id: str = ""

    @property
    def actor(self) -> str:
        """The id of the key that the audit log names."""
        return self.acting_key_id or self.api_key_id

    def may(self, scope: str) -> bool:
        """Whether the key has this scope."""
        return self.is_admin if scope == Scope.admin else scope in self.scopes

    def require(self, scope: str) -> None:
        """Raises NotPermitted where the key does not have this scope."""
        if not self.may(scope):
            raise NotPermitted(f"The key has no scope `{scope}`: whoever runs this service can give it one that has.")

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
    database: DatabaseDep,
    last_uses: LastUsesDep,
    credentials: Annotated[HTTPAuthorizationCredentials | None, Depends(bearer)],
) -> Caller:
    """
    Return the caller whose key a request carries, whatever its scopes. Raises NotAuthenticated.

    Keys are long and random, so a plain hash protects them, and the lookup by hash
    compares nothing that an attacker could time.
    """
    if credentials is None:
        raise NotAuthenticated
    caller = await find_caller(database, last_uses, hash_key(credentials.credentials))
    if caller is None:
        raise NotAuthenticated
    return caller


async def require_permitted(needed: SecurityScopes, caller: Annotated[Caller, Depends(authenticate)]) -> Caller:
    """Return the caller, if its key has the scopes that the route needs. Raises NotAuthenticated, NotPermitted."""
    for scope in needed.scopes:
        caller.require(scope)
    return caller


def _with(scope: Scope) -> Any:
    return Security(require_permitted, scopes=[scope.value])


# What a route takes, by the scope that it needs: every route behind a key has one.
SubmitCaller = Annotated[Caller, _with(Scope.submit)]
ReadCaller = Annotated[Caller, _with(Scope.read)]
WebhooksCaller = Annotated[Caller, _with(Scope.webhooks)]
AdminCaller = Annotated[Caller, _with(Scope.admin)]


async def find_caller(database: Database, last_uses: LastUses, key_hash: str) -> Caller | None:
    """
    Return the caller whose key has this hash, if it works now.

    From here on, every log line of this request says whose it is.
    """
    found = await _find_by_current_key(database, key_hash) or await _find_by_any_key(database, key_hash)
    if found is None:
        return None
    key_id, is_admin, scopes, name = found
    last_uses.note(key_id)
    structlog.contextvars.bind_contextvars(caller=name)
    return Caller(key_id, is_admin, key_hash, scopes_in(scopes))


async def find_callers(database: Database, key_id: str) -> Sequence[tuple[Caller, str]]:
    """The caller with this id and its name, once for each of its keys that works now; its current key comes first."""
    of_caller = ApiKey.is_admin, ApiKey.scopes, ApiKey.name
    active = ApiKey.id == key_id, ApiKey.works()
    async with database.reads() as session:
        current = (await session.execute(select(ApiKey.key_hash, *of_caller).where(*active))).all()
        rotated = select(FormerKey.key_hash, *of_caller).where(*_is_former(), *active)
        found = [*current, *(await session.execute(rotated)).all()]
    return [(Caller(key_id, is_admin, key_hash, scopes_in(scopes)), name) for key_hash, is_admin, scopes, name in found]


def hash_key(key: str) -> str:
    """The SHA-256 of an API key, in hex."""
    return sha256(key.encode("utf-8", "replace")).hexdigest()


@cache
def scopes_in(stored: str) -> frozenset[str]:
    """The scopes of a key, but for `admin`, from its row."""
    return frozenset(stored.split(",")) - {""}


async def reading_keys(session: Session, hashes: Collection[str]) -> set[str]:
    """Those of these keys, by their hashes, that may read now."""
    may_read = ApiKey.works(), ApiKey.scopes.contains(Scope.read)
    current = select(ApiKey.key_hash).where(ApiKey.key_hash.in_(hashes), *may_read)
    rotated = select(FormerKey.key_hash).where(FormerKey.key_hash.in_(hashes), *_is_former(), *may_read)
    return {*await session.scalars(current), *await session.scalars(rotated)}


_FOUND = ApiKey.id, ApiKey.is_admin, ApiKey.scopes, ApiKey.name


_CURRENT_KEY = FixedQuery(select(*_FOUND).where(ApiKey.key_hash == bindparam("key_hash"), ApiKey.works()))


def _is_former() -> tuple[Any, ...]:
    return FormerKey.api_key_id == ApiKey.id, FormerKey.works_until > CurrentTime()


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
            former = FormerKey.key_hash == key_hash, *_is_former()
            found = (await session.execute(select(*_FOUND).where(*former, ApiKey.works()))).first()
    return found
