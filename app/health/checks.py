"""The checks that readiness and `soundpost doctor` share, and how they are run: one by one, each within its time."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from datetime import timedelta
from functools import partial
from typing import NamedTuple

import structlog

from app.config import Settings
from app.database.engine import Database
from app.database.failures import TRANSIENT
from app.health.addresses import check_base_url, check_public_url
from app.health.database import advice_on, check_database, check_migrations
from app.health.database_setup import check_database_setup, check_timeouts
from app.health.models import check_models
from app.health.results import Check, Skipped
from app.health.secret_keys import check_secret_keys
from app.health.storage import FILES_WITH_ROOM, StorageCheck
from app.health.upstream import UpstreamChecks, check_drift
from app.health.work import check_overdue, check_queue, check_submits, check_webhooks
from app.keyring import Keyring
from app.services import Services
from app.storage.store import Storage

Checks = Mapping[str, Callable[[], Awaitable[Check]]]
# Without these no request can be accepted.
VITAL = frozenset({"database", "migrations", "storage"})
# What each check needs: while that is down, there is nothing to check.
NEEDS: Mapping[str, str] = {
    "migrations": "database",
    "database_setup": "database",
    "timeouts": "database",
    "clock": "database",
    **dict.fromkeys(
        ("queue", "submits", "models", "overdue", "webhooks", "drift", "secret_keys", "upstream"), "migrations"
    ),
}
# What to do where a check does not end, and it is not the database that it waits for.
_ADVICE = {
    "storage": "check SOUNDPOST_STORAGE_URL and the disk or network behind it",
    "upstream": "check SOUNDPOST_UPSTREAM_URL and the network of this machine",
    "public_url": "check SOUNDPOST_PUBLIC_URL and the network of this machine",
    "base_url": "check SOUNDPOST_BASE_URL and the network of this machine",
}

log = structlog.get_logger()


class Limits(NamedTuple):
    """How long one check may take, and how long all of them."""

    each: timedelta
    total: timedelta


def readiness_checks(database: Database, storage: Storage, settings: Settings, keyring: Keyring) -> Checks:
    """The checks by name that are cheap enough for a probe every few seconds."""
    return {
        "database": partial(check_database, database),
        "migrations": partial(check_migrations, database),
        "storage": StorageCheck(storage, FILES_WITH_ROOM * settings.audio_limit).check,
        "queue": partial(check_queue, database, settings),
        "submits": partial(check_submits, database, settings),
        "models": partial(check_models, database, settings),
        "overdue": partial(check_overdue, database, settings),
        "webhooks": partial(check_webhooks, database, settings),
        "drift": partial(check_drift, database, settings),
        "secret_keys": partial(check_secret_keys, database, keyring),
    }


def all_checks(services: Services) -> Checks:
    """Those of readiness, and those that look at what changes seldom, or call the upstream and the public URL."""
    database, upstream = services.database, UpstreamChecks(services)
    readiness = readiness_checks(database, services.storage, services.settings, services.keyring)
    return {
        **{name: readiness[name] for name in ("database", "migrations")},
        "database_setup": partial(check_database_setup, database),
        "timeouts": partial(check_timeouts, database, services.settings),
        **readiness,
        "upstream": upstream.key,
        "credits": upstream.credits,
        "clock": upstream.clock,
        "public_url": partial(check_public_url, services.settings, services.keyring),
        "base_url": partial(check_base_url, services.settings),
    }


async def run_checks(
    checks: Checks, reason: Callable[[Exception], str], limits: Limits
) -> AsyncGenerator[tuple[str, Check | Skipped]]:
    """
    Run checks one after the other. Yields each name with what was found, or why nothing was.

    `reason` says why the database does not answer. A driver's message may name hosts, so
    it is for operators only.
    """
    ends_at = time.monotonic() + limits.total.total_seconds()
    missing: set[str] = set()
    for name, check in checks.items():
        needed = NEEDS.get(name)
        left = timedelta(seconds=ends_at - time.monotonic())
        found: Check | Skipped
        if needed in missing:
            found = Skipped(f"not checked, because of `{needed}`")
        elif left <= timedelta():
            found = Skipped(f"not checked, because the checks before it took {limits.total.total_seconds():g} s")
        else:
            found = await _run(name, check, reason, min(limits.each, left))
        if isinstance(found, Skipped) or found.status == "down":
            missing.add(name)
        yield name, found


async def _run(
    name: str, check: Callable[[], Awaitable[Check]], reason: Callable[[Exception], str], limit: timedelta
) -> Check | Skipped:
    try:
        async with asyncio.timeout(limit.total_seconds()):
            return await check()
    except Skipped as skipped:
        return skipped
    except TimeoutError:
        return no_answer(name, limit)
    except Exception as error:
        # At the first use drivers raise TypeError too, for parameters of the URL that they do not know.
        if name == "database" or (name in NEEDS and isinstance(error, TRANSIENT)):
            return _failed(name, f"the database does not answer ({reason(error)}): {advice_on(error)}")
        log.exception("check_failed", check=name)
        return _failed(
            name, f"it cannot be checked ({kind_of(error)}), an error of this release: report it with the log"
        )


def no_answer(name: str, limit: timedelta) -> Check:
    """What is said of a check that did not end within its time."""
    advice = _ADVICE.get(name, "look at the load and the locks of the database, and at SOUNDPOST_DATABASE_URL")
    return _failed(name, f"no answer within {limit.total_seconds():.2g} seconds: {advice}")


def kind_of(error: Exception) -> str:
    """What anybody may know of an error: the name of its class."""
    return type(error).__name__


def _failed(name: str, detail: str) -> Check:
    return Check(status="down" if name in VITAL else "degraded", detail=detail)
