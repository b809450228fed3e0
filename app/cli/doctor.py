"""`soundpost doctor`: every setting with its source, and every check of the service, one after the other."""

from __future__ import annotations

import asyncio
import json
import shutil
import sys
import textwrap
from collections.abc import AsyncGenerator, Collection, Iterator, Sequence
from contextlib import aclosing
from datetime import timedelta
from functools import partial
from typing import Any

import typer
from pydantic import ValidationError

from app.auth.configured_keys import doubts_about
from app.config import Settings, SettingsUnusable, read_settings, unknown_settings
from app.config.database_url import ignored_parameters
from app.config.listing import ListedSetting, list_settings
from app.database.failures import reason
from app.health.checks import Limits, all_checks, run_checks
from app.health.results import Check, Skipped
from app.keyring import KeyringUnusable
from app.observability.logging import configure_logging
from app.observability.redaction import printable
from app.services import build_services

# What a finding is called where people read it, and its colour on a terminal.
WORDS = {"ok": "ok", "skipped": "skipped", "degraded": "PROBLEM", "down": "PROBLEM"}
COLOURS = {"ok": typer.colors.GREEN, "skipped": typer.colors.YELLOW, "PROBLEM": typer.colors.RED}
# Wider lines are harder to read.
MAX_WIDTH = 110
# The upstream may take half a minute, and its rate some seconds before.
LIMITS = Limits(each=timedelta(seconds=45), total=timedelta(seconds=90))


def run(*, as_json: bool) -> bool:
    """Print every setting and finding, as they come or as JSON; return whether all is well."""
    settings, problem, refused = None, "", frozenset[str]()
    try:
        settings = read_settings()
    except SettingsUnusable as error:
        problem, refused = str(error), _refused(error)
    listed = _listed(settings, refused)
    if not as_json:
        _print_settings(listed)
    findings = asyncio.run(_examine_and_print(settings, problem, as_json=as_json))
    if as_json:
        findings[0]["settings"] = [setting._asdict() for setting in listed]
        typer.echo(json.dumps(findings, indent=2))
    return all(finding["ok"] for finding in findings)


async def _examine_and_print(settings: Settings | None, problem: str, *, as_json: bool) -> list[dict[str, Any]]:
    findings = []
    # Closed while the event loop still runs, wherever this stops: it has connections open.
    async with aclosing(_examine(settings, problem)) as checks:
        async for name, found in checks:
            status, detail = ("skipped", str(found)) if isinstance(found, Skipped) else (found.status, found.detail)
            findings.append({"check": name, "ok": status == "ok", "status": status, "detail": detail})
            if not as_json:
                _print_finding(WORDS[status], f"{name}: {detail}")
    return findings


async def _examine(settings: Settings | None, problem: str) -> AsyncGenerator[tuple[str, Check | Skipped]]:
    """Check the settings, and if they are valid, everything that the service needs. Yields each check with its name."""
    if settings is None:
        yield "settings", Check(status="down", detail=problem)
        return
    try:
        # The log goes to standard error, so that standard output holds the result alone.
        configure_logging(settings)
        services = build_services(settings)
    except KeyringUnusable as error:
        yield "settings", Check(status="down", detail=str(error))
        return
    yield "settings", Check(status="ok", detail="; ".join(["every setting can be read", *_doubts(settings)]))
    try:
        why = partial(reason, url=settings.database_url)
        async with aclosing(run_checks(all_checks(services), why, LIMITS)) as checks:
            async for name, found in checks:
                yield name, found
    finally:
        await services.close()


def _doubts(settings: Settings) -> Iterator[str]:
    """What is allowed and perhaps not meant."""
    for name, nearest in unknown_settings(Settings).items():
        yield f"but {name} is none and has no effect" + (f": did you mean {nearest}?" if nearest else "")
    listed = settings.api_keys.get_secret_value() if settings.api_keys else ""
    yield from (f"SOUNDPOST_API_KEYS: {each}" for each in doubts_about(listed))
    if ignored := ignored_parameters(settings.database_url):
        yield f"parameters of SOUNDPOST_DATABASE_URL that have no effect: {', '.join(ignored)}"


def _refused(error: SettingsUnusable) -> frozenset[str]:
    """The fields that are not valid; all of them, where no field was looked at."""
    cause = error.__cause__
    found = (
        {str(name) for each in cause.errors() for name in each["loc"]} if isinstance(cause, ValidationError) else set()
    )
    return frozenset(found or Settings.model_fields)


def _listed(settings: Settings | None, refused: Collection[str]) -> Sequence[ListedSetting]:
    """Every setting; none if .env cannot be read, which the check of the settings says."""
    try:
        return list(list_settings(Settings, settings, refused))
    except (OSError, UnicodeDecodeError):
        return []


def _print_settings(listed: Sequence[ListedSetting]) -> None:
    rows = [
        (
            each.name,
            "not set" if each.value is None else printable(each.value),
            f"file {each.file}" if each.file else each.source,
        )
        for each in listed
    ]
    if not sys.stdout.isatty():
        for name, value, source in rows:
            typer.echo(f"{name}: {value} ({source})")
        return
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("setting", no_wrap=True)
    table.add_column("value", overflow="fold")
    table.add_column("source", overflow="fold")
    for name, value, source in rows:
        table.add_row(name, Text(value), Text(source), style="dim" if source == "default" else "")
    Console(width=_width()).print(table)


def _print_finding(word: str, text: str) -> None:
    text = printable(text, kept="\n")
    if not sys.stdout.isatty():
        typer.echo(f"{word:<7}  {text}")
        return
    lines = [part for line in text.splitlines() for part in textwrap.wrap(line, _width() - 9, break_on_hyphens=False)]
    typer.echo(typer.style(f"{word:<7}  ", fg=COLOURS[word]) + f"\n{'':9}".join(lines))


def _width() -> int:
    return min(shutil.get_terminal_size().columns, MAX_WIDTH)
