"""`soundpost callbacks`: the stored callbacks, to apply again."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncGenerator
from contextlib import aclosing
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer

from app.cli.context import EXIT_CODES, NO_SUCH_TASK, REFUSED, fail, read_task_id, with_services
from app.cli.output import TIME_HELP, parse_moment, print_json, timestamp
from app.errors import NotFound
from app.observability.redaction import printable

if TYPE_CHECKING:
    from app.callbacks.service import Replayed
    from app.services import Services

callbacks = typer.Typer(no_args_is_help=True, help="Callbacks of the upstream.", epilog=EXIT_CODES)


@callbacks.command("replay", epilog=EXIT_CODES)
def replay_callbacks(
    task: Annotated[
        str | None, typer.Option(metavar="ID", help="Only callbacks of this task.", callback=read_task_id)
    ] = None,
    since: Annotated[
        str | None, typer.Option(metavar="T", help=f"Only callbacks received since T: {TIME_HELP}.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only print what would change; nothing is sent.")] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print a JSON list of the callbacks that change a task.")
    ] = False,
) -> None:
    """Apply stored callbacks again, all, those of one task, or those since a time, and print what that changes."""
    if task is not None and since is not None:
        fail("Give --task ID or --since T, not both.", REFUSED)
    earliest, counts, changed = parse_moment(since, "--since"), Counter[str](), list[dict[str, Any]]()

    async def run(services: Services) -> None:
        async with aclosing(_replay(services, task, earliest, commits=not dry_run)) as replayed:
            async for each in replayed:
                counts["read"] += 1
                if each.outcome != "applied":
                    continue
                counts["changed"] += 1
                if as_json:
                    changed.append(_as_json(each))
                else:
                    _print(each)

    try:
        with_services(run)
    except NotFound:
        fail(NO_SUCH_TASK)
    if as_json:
        print_json(changed)
    else:
        what = "would change" if dry_run else "changed"
        typer.echo(f"{counts['read']} callbacks read, {counts['changed']} {what} a task.")


async def _replay(
    services: Services, task_id: str | None, since: datetime | None, *, commits: bool
) -> AsyncGenerator[Replayed]:
    """Each callback once it is replayed, task by task. Raises NotFound for an unknown task."""
    from app.auth.callers import OPERATOR

    if task_id is not None:
        await services.tasks.get_row(OPERATOR, task_id)
        for each in await services.callbacks.replay(task_id, None, commits=commits):
            yield each
        return
    async for found in services.callbacks.tasks_to_replay(since):
        for each in await services.callbacks.replay(found, since, commits=commits):
            yield each


def _print(replayed: Replayed) -> None:
    """Print what a callback changes, a line for each field."""
    typer.echo(f"{replayed.callback_id}  task {replayed.task_id}  received {timestamp(replayed.received_at)}")
    for name, (before, after) in replayed.changes.items():
        typer.echo(printable(f"  {name}: {_text(before)} → {_text(after)}"))


def _as_json(replayed: Replayed) -> dict[str, Any]:
    changes = {
        name: {"before": _value(before), "after": _value(after)} for name, (before, after) in replayed.changes.items()
    }
    ids = {"id": replayed.callback_id, "task_id": replayed.task_id}
    return {**ids, "received_at": timestamp(replayed.received_at), "changes": changes}


def _value(value: object) -> object:
    return timestamp(value) if isinstance(value, datetime) else value


def _text(value: object) -> str:
    return "none" if value is None else str(_value(value))
