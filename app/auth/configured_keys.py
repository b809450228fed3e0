"""The keys of SOUNDPOST_API_KEYS, which the process that started last decides for all replicas."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Sequence
from datetime import datetime
from typing import Any

import structlog
from sqlalchemy import or_, select

from app.auth.api_keys import find_active, refusal_of
from app.auth.audit import OPERATOR, record
from app.auth.callers import hash_key
from app.config import parse_api_keys
from app.database.base import new_id
from app.database.engine import Database, Session, insert_new
from app.models import ApiKey, FormerKey

log = structlog.get_logger()
# Of a key that is given by hand, in characters; those that we make have 43.
SAFE_LENGTH = 16
# What the audit log says of each change that a start makes.
_BY_SETTING = {"by": "SOUNDPOST_API_KEYS"}


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
                _list_key(session, caller, hashed, now)
            elif hashed not in rotated:
                row = {"id": new_id(), "name": name, "key_hash": hashed, "is_admin": False, "created_at": now}
                new.append({**row, "is_configured": True})
                record(session, now, OPERATOR, "key.created", str(row["id"]), name=name, **_BY_SETTING)
        for row in new:
            if same := await find_active(session, str(row["name"])):
                log.warning("configured_name_in_use", name=same.name, key_id=same.id)
        if new:
            await insert_new(session, ApiKey, *new)
        for caller in callers:
            if caller.is_configured and caller.key_hash not in names and caller.revoked_at is None:
                log.warning("unlisted_key_revoked", key_id=caller.id, name=caller.name)
                caller.revoked_at, caller.is_delisted = now, True
                record(session, now, OPERATOR, "key.revoked", caller.id, name=caller.name, **_BY_SETTING)


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


def _list_key(session: Session, caller: ApiKey, hashed: str, now: datetime) -> None:
    if caller.key_hash != hashed:
        log.warning("configured_key_replaced", key_id=caller.id, name=caller.name)
        caller.key_hash = hashed
        record(session, now, OPERATOR, "key.rotated", caller.id, name=caller.name, **_BY_SETTING)
    caller.is_configured = True
    if caller.is_delisted:
        caller.revoked_at, caller.is_delisted = None, False
        record(session, now, OPERATOR, "key.restored", caller.id, name=caller.name, **_BY_SETTING)
    if caller.revoked_at is not None:
        advice = "it is refused although it is listed; `soundpost keys rotate` gives the caller a new one"
        log.warning("configured_key_is_revoked", key_id=caller.id, name=caller.name, advice=advice)
    elif expired := refusal_of(caller, now):
        log.warning("configured_key_has_expired", key_id=caller.id, name=caller.name, advice=expired)


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
