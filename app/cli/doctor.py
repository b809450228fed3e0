"""Looks at everything that the service needs, and says what to do about what is wrong."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import timedelta

import httpx

from app.config import CALLBACKS_PATH, Settings
from app.database.engine import Database
from app.egress import upstream_client
from app.errors import StorageUnavailable
from app.keyring import Keyring, KeyringUnusable, load_or_create_keyring
from app.storage.store import Storage
from app.upstream.credits import CreditsCache, CreditsUnavailable
from app.upstream.hold import EXPLANATIONS, current_hold
from app.upstream.pacing import Pacer
from app.upstream.suno.client import Upstream

NO_KEY = "SOUNDPOST_UPSTREAM_API_KEY is not set, so nothing can be ordered: set it to the upstream's key"
TIMEOUT = timedelta(seconds=15)


@dataclass(frozen=True, slots=True)
class Finding:
    """What was looked at, whether it is well, and what to know or do."""

    check: str
    ok: bool
    detail: str


async def says(finding: Finding) -> AsyncIterator[Finding]:
    """The one thing that is found where nothing else can be looked at."""
    yield finding


async def examine(settings: Settings) -> AsyncIterator[Finding]:
    """Look at one thing after the other; a later look is left out where an earlier one makes it pointless."""
    try:
        keyring = load_or_create_keyring(settings)
    except KeyringUnusable as error:
        yield Finding("settings", ok=False, detail=str(error))
        return
    yield Finding("settings", ok=True, detail="every setting can be read")
    database = Database(settings.database_url)
    try:
        found = await _look_at_database(database)
        yield found
        if found.ok:
            yield await _look_at_queue(database)
            yield await _look_at_upstream(settings, database)
    finally:
        await database.close()
    yield await _look_at_storage(settings)
    yield await _look_at_public_url(settings, keyring)


async def _look_at_database(database: Database) -> Finding:
    try:
        if await database.is_migrated():
            return Finding("database", ok=True, detail="it answers, and its schema is this release's")
        return Finding("database", ok=False, detail="its schema is not this release's: run `soundpost migrate`")
    except Exception as error:
        said = str(getattr(error, "orig", None) or error).partition("\n")[0]
        return Finding("database", ok=False, detail=f"it does not answer: check SOUNDPOST_DATABASE_URL ({said})")


async def _look_at_storage(settings: Settings) -> Finding:
    try:
        await Storage(settings.storage_url).probe()
    except StorageUnavailable:
        detail = "it does not keep a file: check SOUNDPOST_STORAGE_URL, its room and who may write there"
        return Finding("storage", ok=False, detail=detail)
    return Finding("storage", ok=True, detail="a small file was written, read and removed")


async def _look_at_queue(database: Database) -> Finding:
    async with database.reads() as session:
        hold = await current_hold(session)
    if hold is None:
        return Finding("queue", ok=True, detail="submits leave as they come")
    return Finding(
        "queue", ok=False, detail=f"submits are held since {hold.since:%Y-%m-%d %H:%M} UTC: {hold.explanation}"
    )


async def _look_at_upstream(settings: Settings, database: Database) -> Finding:
    if settings.upstream_api_key is None:
        return Finding("upstream", ok=False, detail=NO_KEY)
    key = settings.upstream_api_key.get_secret_value()
    pacer = Pacer(settings.upstream_rate, hold=settings.submit_lease)
    async with upstream_client(settings.upstream_url, key, TIMEOUT) as http:
        async with database.transaction() as (session, now):
            await pacer.prepare(session, now)
        try:
            found = await CreditsCache(database, pacer, Upstream(http, TIMEOUT)).credits()
        except CreditsUnavailable as error:
            return _explain(error)
    if found.credits <= 0:
        return Finding("upstream", ok=False, detail="the key works, but the account has no credits: buy some")
    return Finding("upstream", ok=True, detail=f"the key works; {found.credits} credits are left")


def _explain(error: CreditsUnavailable) -> Finding:
    answer = error.answer
    if answer is None:
        return Finding("upstream", ok=False, detail="no request was free within its pace; look again in some seconds")
    if answer.hold_reason is not None:
        return Finding("upstream", ok=False, detail=EXPLANATIONS[answer.hold_reason])
    said = f" ({answer.message})" if answer.message else ""
    return Finding("upstream", ok=False, detail=f"it does not answer as it should: check SOUNDPOST_UPSTREAM_URL{said}")


async def _look_at_public_url(settings: Settings, keyring: Keyring) -> Finding:
    if settings.public_url is None:
        return Finding("public_url", ok=True, detail="not set: no callback can come, and polls do the work")
    challenge = secrets.token_hex(16)
    try:
        async with httpx.AsyncClient(trust_env=False, timeout=TIMEOUT.total_seconds()) as http:
            answer = await http.get(f"{settings.public_url}{CALLBACKS_PATH}{challenge}")
    except httpx.HTTPError as error:
        detail = (
            f"SOUNDPOST_PUBLIC_URL cannot be reached from here ({type(error).__name__}): does `soundpost serve` run?"
        )
        return Finding("public_url", ok=False, detail=detail)
    if answer.is_success and answer.text == keyring.prove_reach(challenge):
        return Finding("public_url", ok=True, detail="it reaches this service")
    detail = (
        f"SOUNDPOST_PUBLIC_URL reaches another server (HTTP {answer.status_code}): it must pass {CALLBACKS_PATH} on"
    )
    return Finding("public_url", ok=False, detail=detail)
