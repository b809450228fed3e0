"""`soundpost doctor`: every check of the service, one after the other."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing
from functools import partial

from app.auth.api_keys import doubts_about
from app.config import Settings, SettingsUnusable, read_settings, unknown_settings
from app.config.database_url import ignored_parameters
from app.database.engine import reason
from app.health.checks import Check, all_checks, run_checks
from app.keyring import KeyringUnusable
from app.observability.logging import configure_logging
from app.services import build_services


async def examine() -> AsyncGenerator[tuple[str, Check]]:
    """
    Check the settings, and if they are valid, everything that the service needs. Yields each check with its name.

    Whoever may stop before the end closes this, while the event loop still runs: it has connections open.
    """
    try:
        settings = read_settings()
        # The log goes to standard error, so that standard output holds the result alone.
        configure_logging(settings)
        services = build_services(settings)
    except (SettingsUnusable, KeyringUnusable) as error:
        yield "settings", Check(status="down", detail=str(error))
        return
    listed = settings.api_keys.get_secret_value() if settings.api_keys else ""
    details = [
        "every setting can be read",
        *_unknown(),
        *(f"SOUNDPOST_API_KEYS: {each}" for each in doubts_about(listed)),
    ]
    if ignored := ignored_parameters(settings.database_url):
        details.append(f"parameters of SOUNDPOST_DATABASE_URL that have no effect: {', '.join(ignored)}")
    yield "settings", Check(status="ok", detail="; ".join(details))
    try:
        why = partial(reason, url=settings.database_url)
        async with aclosing(run_checks(all_checks(services), why)) as checks:
            async for name, check in checks:
                yield name, check
    finally:
        await services.close()


def _unknown() -> Iterator[str]:
    """A sentence for each variable that looks like a setting and is none: a warning, since others may use it."""
    for name, nearest in unknown_settings(Settings).items():
        yield f"but {name} is none and has no effect" + (f": did you mean {nearest}?" if nearest else "")
