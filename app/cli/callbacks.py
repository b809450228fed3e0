"""`soundpost callbacks`: kept callbacks, applied again."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated

import typer

from app.callbacks.repository import find_callbacks
from app.cli.context import fail, with_services
from app.services import Services

callbacks = typer.Typer(no_args_is_help=True, help="Callbacks that the upstream made.")


@callbacks.command("replay")
def replay_callbacks(
    task: Annotated[str | None, typer.Option(metavar="ID", help="Only those of one task.")] = None,
    since: Annotated[str | None, typer.Option(metavar="T", help="Only those since a time (RFC 3339).")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only print what would change.")] = False,
) -> None:
    """Apply stored callbacks again: all of them, or those of one task, or since a time."""
    if task is not None and since is not None:
        fail("Give --task ID or --since T, not both.")
    from_ = None if since is None else _moment(since)

    async def run(services: Services) -> tuple[int, int]:
        async with services.database.reads() as session:
            found = await find_callbacks(session, task, from_)
        applied = [await services.callbacks.replay(one, commits=not dry_run) for one in found]
        return len(found), sum(applied)

    found, applied = with_services(run)
    typer.echo(f"{found} callbacks read, {applied} {'would change' if dry_run else 'changed'} a task.")


def _moment(text: str) -> datetime:
    """A time that says no zone is in UTC, like all that we print."""
    try:
        read = datetime.fromisoformat(text)
    except ValueError:
        fail(f"--since cannot be read: {text!r} is no time such as 2026-01-31T08:00:00Z.")
    return read if read.tzinfo else read.replace(tzinfo=UTC)
