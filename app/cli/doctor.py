"""`soundpost doctor`: every check of the service, one after the other."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing
from datetime import timedelta
from functools import partial
from typing import Any

import typer

from app.auth.api_keys import doubts_about
from app.config import Settings, SettingsUnusable, read_settings, unknown_settings
from app.config.database_url import ignored_parameters
from app.database.engine import reason
from app.health.checks import Limits, all_checks, run_checks
from app.health.results import Check, Skipped
from app.keyring import KeyringUnusable
from app.observability.logging import configure_logging
from app.observability.redaction import printable
from app.services import build_services

WORDS = {"ok": "ok", "skipped": "skipped"}
# The upstream may take half a minute, and its rate some seconds before.
LIMITS = Limits(each=timedelta(seconds=45), total=timedelta(seconds=90))


def run(*, as_json: bool) -> bool:
    """Print every finding, as it comes or as JSON; return whether all is well."""
    findings = asyncio.run(_examine_and_print(as_json=as_json))
    if as_json:
        typer.echo(json.dumps(findings, indent=2))
    return all(finding["ok"] for finding in findings)


async def _examine_and_print(*, as_json: bool) -> list[dict[str, Any]]:
    findings = []
    async with aclosing(examine()) as checks:
        async for name, found in checks:
            findings.append(_as_finding(name, found))
            if not as_json:
                word = WORDS.get(findings[-1]["status"], "PROBLEM")
                typer.echo(printable(f"{word:<7}  {name}: {findings[-1]['detail']}", kept="\n"))
    return findings


def _as_finding(name: str, found: Check | Skipped) -> dict[str, Any]:
    status, detail = ("skipped", str(found)) if isinstance(found, Skipped) else (found.status, found.detail)
    return {"check": name, "ok": status == "ok", "status": status, "detail": detail}


async def examine() -> AsyncGenerator[tuple[str, Check | Skipped]]:
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
        async with aclosing(run_checks(all_checks(services), why, LIMITS)) as checks:
            async for name, found in checks:
                yield name, found
    finally:
        await services.close()


def _unknown() -> Iterator[str]:
    """A sentence for each variable that looks like a setting and is none: a warning, since others may use it."""
    for name, nearest in unknown_settings(Settings).items():
        yield f"but {name} is none and has no effect" + (f": did you mean {nearest}?" if nearest else "")
