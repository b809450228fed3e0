"""`soundpost audit`: what keys and operators have changed."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated

import typer

from app.cli.context import EXIT_CODES, with_services
from app.cli.output import TIME_HELP, is_terminal, note, parse_moment, print_json, print_table, timestamp, written
from app.observability.redaction import printable

if TYPE_CHECKING:
    from app.models import AuditEntry
    from app.services import Services

audit = typer.Typer()


@audit.command("audit", epilog=EXIT_CODES)
def list_audit(
    since: Annotated[str | None, typer.Option(metavar="T", help=f"Only changes since T: {TIME_HELP}.")] = None,
    until: Annotated[str | None, typer.Option(metavar="T", help="Only changes before T.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=10_000, help="List at most this many changes.")] = 50,
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON list.")] = False,
) -> None:
    """List what keys and operators have changed, newest first."""
    earliest, latest = parse_moment(since, "--since"), parse_moment(until, "--until")

    async def read(services: Services) -> tuple[Sequence[AuditEntry], Mapping[str, str]]:
        from app.auth.api_keys import list_keys
        from app.auth.audit import list_entries

        async with services.database.reads() as session:
            found = await list_entries(session, earliest, latest, None, limit + 1)
            return found, {key.id: key.name for key in await list_keys(session)}

    found, names = with_services(read)
    entries = found[:limit]
    if as_json:
        print_json(
            [
                {
                    "id": entry.id,
                    "at": timestamp(entry.created_at),
                    "actor": entry.actor,
                    "action": entry.action,
                    "target": entry.target,
                    "detail": entry.detail,
                }
                for entry in entries
            ]
        )
    else:
        _print(entries, names)
    if len(found) > limit:
        note("More follow: a larger `--limit` lists them, or an earlier `--until`.")


def _print(entries: Sequence[AuditEntry], names: Mapping[str, str]) -> None:
    now = datetime.now(UTC)
    lines = [
        (entry.action, names.get(entry.actor, entry.actor), entry.target or "", json.dumps(entry.detail))
        for entry in entries
    ]
    if is_terminal():
        times = [written(entry.created_at, now) for entry in entries]
        shown = [
            (at, actor, action, f"{target} {detail}")
            for at, (action, actor, target, detail) in zip(times, lines, strict=True)
        ]
        print_table(("WHEN", "WHO", "WHAT", "OF"), shown)
        return
    for entry, (action, actor, target, detail) in zip(entries, lines, strict=True):
        typer.echo(printable(f"{timestamp(entry.created_at)}  {actor}  {action}  {target}  {detail}"))
