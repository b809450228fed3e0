"""`soundpost doctor`: every check of the service's health, one after the other."""

from __future__ import annotations

from collections.abc import AsyncIterator

from app.cli.context import SettingsUnusable, read_settings
from app.health import (
    DATABASE_CHECKS,
    Check,
    check_database,
    check_public_url,
    check_storage,
    check_upstream,
)
from app.keyring import KeyringUnusable
from app.observability.logging import configure_logging
from app.services import Services, build_services

Named = tuple[str, Check]


async def examine() -> AsyncIterator[Named]:
    """Run every check with its name; one that an earlier failure makes pointless is left out."""
    try:
        settings = read_settings()
        # The log goes to standard error, so that standard output holds the result alone.
        configure_logging(settings)
        services = build_services(settings)
    except (SettingsUnusable, KeyringUnusable) as error:
        yield "settings", Check(status="down", detail=str(error))
        return
    yield "settings", Check(status="ok", detail="every setting can be read")
    try:
        async for named in _examine(services):
            yield named
    finally:
        await services.close()


async def _examine(services: Services) -> AsyncIterator[Named]:
    database = services.database
    found = await check_database(database, with_reason=True)
    yield "database", found
    if found.status == "ok":
        for name, check in DATABASE_CHECKS.items():
            yield name, await check(database)
        async with database.transaction() as (session, now):
            await services.gateway.pacer.prepare(session, now)
        yield "upstream", await check_upstream(services.settings, services.gateway)
    yield "storage", await check_storage(services.storage)
    yield "public_url", await check_public_url(services.settings, services.keyring)
