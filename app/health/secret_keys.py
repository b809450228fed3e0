"""Whether all processes sign with the same secret keys."""

from __future__ import annotations

from app.auth.signing_keys import find_mismatches
from app.database.engine import Database
from app.health.results import Check
from app.keyring import Keyring


async def check_secret_keys(database: Database, keyring: Keyring) -> Check:
    """Whether this process has the secret keys that were signed with."""
    async with database.reads() as session:
        found = await find_mismatches(session, keyring, await database.now(session))
    return Check(status="degraded" if found else "ok", detail="; ".join(found) or f"{keyring.signer} signs")
