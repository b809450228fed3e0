"""`soundpost callbacks`: the stored callbacks, to apply again."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated

import typer

from app.cli.context import NO_SUCH_TASK, fail, with_services
from app.errors import NotFound

if TYPE_CHECKING:
    from app.services import Services

callbacks = typer.Typer(no_args_is_help=True, help="Callbacks of the upstream.")


@callbacks.command("replay")
def replay_callbacks(
    task: Annotated[str | None, typer.Option(metavar="ID", help="Only callbacks of this task.")] = None,
    since: Annotated[
        str | None,
        typer.Option(metavar="T", help="Only callbacks received since this time (RFC 3339; UTC if it has no zone)."),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only print how many callbacks would change a task.")
    ] = False,
) -> None:
    """Apply stored callbacks again: all, those of one task, or those since a time."""
    if task is not None and since is not None:
        fail("Give --task ID or --since T, not both.")
    earliest = None if since is None else _parse_time(since)
    from app.auth.api_keys import OPERATOR

    async def run(services: Services) -> tuple[int, int]:
        if task is not None:
            await services.tasks.get_row(OPERATOR, task)
        found = await services.callbacks.find(task, earliest)
        applied = [await services.callbacks.replay(one, commits=not dry_run) for one in found]
        return len(found), sum(applied)

    try:
        found, applied = with_services(run)
    except NotFound:
        fail(NO_SUCH_TASK)
    typer.echo(f"{found} callbacks read, {applied} {'would change' if dry_run else 'changed'} a task.")


def _parse_time(text: str) -> datetime:
    """Parse an RFC 3339 time, or fail. A time without a zone is in UTC, like those that we print."""
    try:
        read = datetime.fromisoformat(text)
    except ValueError:
        fail(f"--since cannot be read: {text!r} is not a time such as 2026-01-31T08:00:00Z.")
    return read if read.tzinfo else read.replace(tzinfo=UTC)
