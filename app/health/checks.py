"""The checks that readiness and `soundpost doctor` share."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from datetime import timedelta
from functools import partial
from typing import Literal

import httpx
from pydantic import BaseModel, Field

from app.auth.signing_keys import find_mismatches
from app.clips.repository import idle_lanes
from app.config import CALLBACKS_PATH, Settings
from app.database.claims import count_overdue
from app.database.engine import Database
from app.egress import is_internal, plain_client
from app.enums import TaskStatus
from app.errors import StorageUnavailable
from app.keyring import Keyring
from app.models import Clip, PeriodicJob, Task
from app.services import Services
from app.storage.store import Storage
from app.tasks.transitions import FINAL
from app.upstream.gateway import MAINTENANCE
from app.upstream.history import read_history
from app.upstream.hold import EXPLANATIONS, NO_KEY, account_name, current_hold, other_refused_keys
from app.upstream.pacing import SHARE_WHILE_QUEUED, full_share, is_idle_since
from app.upstream.types import HoldReason, Outcome
from app.webhooks.repository import count_overdue_deliveries, disabled_after_failures

# How long a row may be late, and how long a failed submit counts if none follows it.
OVERDUE_AFTER, FAILING_FOR = timedelta(seconds=60), timedelta(minutes=10)
SHOWN_ENDPOINTS = 5
# As many of the largest files are stored and spooled at once: with less room the storage is nearly full.
FILES_WITH_ROOM = 2
STORAGE_TIMEOUT, PUBLIC_URL_TIMEOUT = timedelta(seconds=5), timedelta(seconds=15)
# The checks that fail with the database; if its own does, the others are left out.
NEED_DATABASE = frozenset({"database", "queue", "submits", "overdue", "webhooks", "secret_keys", "upstream"})
State = Literal["ok", "degraded", "down"]


class Check(BaseModel):
    """The state of one thing that the service needs."""

    status: State = Field(
        description="`ok`; `degraded`, if some work waits; or `down`, if no request can be accepted.", examples=["ok"]
    )
    detail: str = Field(
        description="What was found, and what to do about it.", examples=["overdue: 12 tasks; does a worker run?"]
    )


Checks = Mapping[str, Callable[[], Awaitable[Check]]]


def worst(checks: Mapping[str, Check]) -> State:
    """The worst status of these checks."""
    found = {check.status for check in checks.values()}
    return "down" if "down" in found else "degraded" if "degraded" in found else "ok"


def readiness_checks(database: Database, storage: Storage, settings: Settings, keyring: Keyring) -> Checks:
    """The checks by name that are cheap enough for a probe every few seconds."""
    return {
        "database": partial(check_database, database),
        "storage": partial(check_storage, storage, FILES_WITH_ROOM * settings.audio_limit),
        "queue": partial(check_queue, database, settings),
        "submits": partial(check_submits, database, settings),
        "overdue": partial(check_overdue, database, settings),
        "webhooks": partial(check_webhooks, database),
        "secret_keys": partial(check_secret_keys, database, keyring),
    }


def all_checks(services: Services) -> Checks:
    """Those of readiness, and the checks that call the upstream and the public URL."""
    return {
        **readiness_checks(services.database, services.storage, services.settings, services.keyring),
        "upstream": partial(check_upstream, services),
        "public_url": partial(check_public_url, services.settings, services.keyring),
    }


async def run_checks(checks: Checks, reason: Callable[[Exception], str]) -> AsyncGenerator[tuple[str, Check]]:
    """
    Run checks one after the other. Yields each with its name.

    `reason` says why the database does not answer. A driver's message may name hosts, so
    it is for operators only.
    """
    is_database_ok = True
    for name, check in checks.items():
        if name in NEED_DATABASE and not is_database_ok:
            continue
        try:
            result = await check()
        # Not only TRANSIENT: drivers raise TypeError for parameters of the URL that they do not know.
        except Exception as error:
            if name not in NEED_DATABASE:
                raise
            detail = f"the database does not answer ({reason(error)}): check SOUNDPOST_DATABASE_URL"
            result = Check(status="down", detail=detail)
        if name == "database":
            is_database_ok = result.status == "ok"
        yield name, result


async def check_database(database: Database) -> Check:
    """Whether the database answers and has this release's schema. Raises what the driver raises."""
    if await database.is_migrated():
        return Check(status="ok", detail="it answers, and its schema is this release's")
    return Check(status="down", detail="its schema is not this release's: run `soundpost migrate`")


async def check_storage(storage: Storage, room: int) -> Check:
    """Whether the storage stores a file. Degraded while fewer than `room` bytes are free where files are spooled."""
    try:
        async with asyncio.timeout(STORAGE_TIMEOUT.total_seconds()):
            await storage.probe()
            free = await storage.free_space()
    except (StorageUnavailable, TimeoutError) as error:
        detail = "it does not store a file: check SOUNDPOST_STORAGE_URL, its free space and its permissions"
        own = error.detail if isinstance(error, StorageUnavailable) else StorageUnavailable.advice
        return Check(status="down", detail=detail if own == StorageUnavailable.advice else f"{own} {detail}")
    if free < room:
        amounts = f"{free // 1_000_000} MB are free, less than {room // 1_000_000} MB"
        return Check(status="degraded", detail=f"a small file was written, but only {amounts}: make room there")
    return Check(status="ok", detail="a small file was written, read and removed")


async def check_queue(database: Database, settings: Settings) -> Check:
    """Whether our submits are held. The upstream's own message is left out, because anybody may read /readyz."""
    async with database.reads() as session:
        hold = await current_hold(session, settings.upstream_fingerprint)
        others = ", ".join(await other_refused_keys(session, settings.upstream_fingerprint))
    other = f"; those of processes with another key ({others}) are, because the upstream refuses it" if others else ""
    if not hold:
        return Check(status="ok", detail=f"submits are not held{other}")
    where = f" ({account_name(settings)})" if hold.reason is HoldReason.bad_key else ""
    why = f"{EXPLANATIONS[hold.reason]}{where}{other}"
    return Check(status="degraded", detail=f"submits are held since {hold.since.isoformat(timespec='seconds')}: {why}")


async def check_submits(database: Database, settings: Settings) -> Check:
    """When submits last succeeded and failed. Degraded while the last one failed with our key, not long ago."""
    async with database.reads() as session:
        history, now = await read_history(session), await database.now(session)
    mine = (None, settings.upstream_fingerprint)
    told = [
        f"last {kind} at {at.isoformat(timespec='seconds')}" + f" with the key {key}" * (key not in mine)
        for kind, at, key in (
            ("success", history.succeeded_at, history.succeeded_with),
            (f"failure ({history.failure})", history.failed_at, history.failed_with),
        )
        if at
    ]
    detail = f"{account_name(settings)}: {', '.join(told) or 'nothing was submitted yet'}"
    counts_since = max(now - FAILING_FOR, history.succeeded_at or now - FAILING_FOR)
    is_failing = history.failed_at is not None and history.failed_at > counts_since and history.failed_with in mine
    return Check(status="degraded" if is_failing else "ok", detail=detail)


async def check_overdue(database: Database, settings: Settings) -> Check:
    """
    Whether rows have been due for more than OVERDUE_AFTER, and not because of a hold, the rate or a slow host.

    Ended tasks never count: their late polls wait for slots that nothing else needs. Clips and deliveries
    count where nothing of their host is under way.
    """
    async with database.reads() as session:
        now = await database.now(session)
        late = now - OVERDUE_AFTER
        waiting = set(FINAL)
        if await current_hold(session, settings.upstream_fingerprint) or not await is_idle_since(session, late):
            waiting.add(TaskStatus.queued)
        if not await is_idle_since(session, late, SHARE_WHILE_QUEUED):
            waiting.add(TaskStatus.generating)
        # Jobs with a colon in their names are not for every replica, or only remember something.
        counts = {
            "tasks": await count_overdue(session, Task, late, Task.status.in_(set(TaskStatus) - waiting)),
            "clips": await count_overdue(session, Clip, late, Clip.lane.in_(await idle_lanes(session, now, late))),
            "deliveries": await count_overdue_deliveries(session, now, late, settings.webhook_lease),
            "periodic jobs": await count_overdue(session, PeriodicJob, late, ~PeriodicJob.name.contains(":")),
        }
    overdue = ", ".join(f"{count} {name}" for name, count in counts.items() if count)
    if not overdue:
        return Check(status="ok", detail="nothing is overdue")
    return Check(status="degraded", detail=f"overdue: {overdue}; does a worker run?")


async def check_webhooks(database: Database) -> Check:
    """Which webhook endpoints were disabled because they failed: only their owners can repair them, so always `ok`."""
    async with database.reads() as session:
        disabled = await disabled_after_failures(session, SHOWN_ENDPOINTS + 1)
    if not disabled:
        return Check(status="ok", detail="no endpoint is disabled because it failed")
    shown = ", ".join(disabled[:SHOWN_ENDPOINTS]) + (", …" if len(disabled) > SHOWN_ENDPOINTS else "")
    return Check(status="ok", detail=f"endpoints that are disabled because they failed: {shown}")


async def check_secret_keys(database: Database, keyring: Keyring) -> Check:
    """Whether this process has the secret keys that were signed with."""
    async with database.reads() as session:
        found = await find_mismatches(session, keyring, await database.now(session))
    return Check(status="degraded" if found else "ok", detail="; ".join(found) or f"{keyring.signer} signs")


async def check_upstream(services: Services) -> Check:
    """Whether the upstream accepts our key and the account has credits. A failure does not hold submits."""
    if not services.gateway.key:
        return Check(status="down", detail=f"{NO_KEY}: set it to the upstream's key")
    # The database may be new: the pacer's rows are otherwise created when a service starts.
    async with services.database.transaction() as (session, now):
        await services.gateway.pacer.prepare(session, now)
    result = await services.gateway.call(lambda upstream: upstream.credits(), full_share, may_hold=False)
    if result is None:
        return Check(status="degraded", detail="no request was free within its rate; check again in some seconds")
    name = account_name(services.settings)
    if reason := result.hold_reason:
        return Check(status="degraded", detail=f"{EXPLANATIONS[reason]} ({name})")
    if result.outcome is Outcome.throttled:
        case = "is under maintenance" if result.code == MAINTENANCE else "takes no requests for now"
        detail = f"the upstream {case} ({result.code}: {result.message}); tasks wait, and go on by themselves"
        return Check(status="degraded", detail=detail)
    if result.value is None:
        case = "its answer is not usable" if result.code else "it does not answer"
        detail = f"{case}: check SOUNDPOST_UPSTREAM_URL ({result.message or 'no message'}; {name})"
        return Check(status="degraded", detail=detail)
    if result.value <= 0:
        return Check(status="degraded", detail=EXPLANATIONS[HoldReason.no_credits])
    async with services.database.reads() as session:
        is_held = await current_hold(session, services.gateway.key)
    soon = "; the hold of submits ends at its next look" * bool(is_held)
    return Check(status="ok", detail=f"the key works now; {result.value} credits are left ({name}){soon}")


async def check_public_url(settings: Settings, keyring: Keyring) -> Check:
    """Whether SOUNDPOST_PUBLIC_URL leads to a service with our secret keys, which answers a random challenge."""
    if settings.public_url is None:
        return Check(status="ok", detail="not set: no callback can come, and polls do the work")
    if is_internal(settings.public_url) and not is_internal(settings.upstream_url):
        problem = f"is {settings.public_url}, which the upstream cannot reach: set it to an address on the internet"
        return Check(status="degraded", detail=f"SOUNDPOST_PUBLIC_URL {problem}, or unset it, and polls do the work")
    challenge = secrets.token_hex(16)
    try:
        async with plain_client(PUBLIC_URL_TIMEOUT) as http:
            response = await http.get(f"{settings.public_url}{CALLBACKS_PATH}{challenge}")
    except httpx.HTTPError as error:
        problem = f"cannot be reached from here ({kind_of(error)}: {error}): does `soundpost serve` run?"
        return Check(status="degraded", detail=f"SOUNDPOST_PUBLIC_URL {problem}")
    if response.is_success and response.text == keyring.prove_reach(challenge):
        return Check(status="ok", detail="it reaches this service")
    problem = f"reaches another server (HTTP {response.status_code}): it must pass {CALLBACKS_PATH} on"
    return Check(status="degraded", detail=f"SOUNDPOST_PUBLIC_URL {problem}")


def kind_of(error: Exception) -> str:
    return type(error).__name__
