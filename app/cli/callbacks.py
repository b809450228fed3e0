"""`soundpost callbacks`: kept callbacks, applied again."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated

import typer

from app.callbacks.replay import find_callbacks, replay
from app.cli.context import fail, with_services
from app.services import Services

callbacks = typer.Typer(no_args_is_help=True, help="Callbacks that the upstream made.")


@callbacks.command("replay")
def replay_callbacks(
    task: Annotated[str | None, typer.Option(metavar="ID", help="Those of one task.")] = None,
    since: Annotated[str | None, typer.Option(metavar="T", help="Those since a time, as RFC 3339 writes it.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only tell what would change.")] = False,
) -> None:
    """Read kept callbacks again: all of them, unless told which."""
    if task is not None and since is not None:
        fail("Give --task ID or --since T, not both.")
    from_ = None if since is None else _moment(since)

    async def run(services: Services) -> tuple[int, int]:
        found = await find_callbacks(services.database, task, from_)
        applied = [await replay(services.database, services.lifecycle, one, keeps=not dry_run) for one in found]
        return len(found), sum(applied)

    found, applied = with_services(run)
    typer.echo(f"{found} callbacks read, {applied} {'would be' if dry_run else 'were'} news.")


def _moment(text: str) -> datetime:
    """A time that says no zone is in UTC, like all that we print."""
    try:
        read = datetime.fromisoformat(text)
    except ValueError:
        fail(f"--since cannot be read: {text!r} is no time such as 2026-01-31T08:00:00Z.")
    return read if read.tzinfo else read.replace(tzinfo=UTC)
