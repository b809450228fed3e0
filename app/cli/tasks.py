"""What an operator looks at and settles by hand: tasks, and callbacks that were kept."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Annotated, Any

import typer

from app.callbacks.replay import find_callbacks, replay
from app.cli.context import fail, load_settings, with_database
from app.database.engine import Database
from app.enums import TaskStatus
from app.main import make_lifecycle
from app.models import Task
from app.signed_urls import load_signed_urls
from app.tasks import repository
from app.tasks.resolution import CannotResolve, resolve
from app.tasks.schemas import EventRead, read_task

tasks = typer.Typer(no_args_is_help=True, help="What callers asked for.")
callbacks = typer.Typer(no_args_is_help=True, help="What the upstream told us.")

NO_SUCH_TASK = "No task has this id; `soundpost tasks list` shows them."
TaskId = Annotated[str, typer.Argument(metavar="ID")]


@tasks.command("list")
def list_tasks(
    status: Annotated[TaskStatus | None, typer.Option(help="Only those in this state.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=10_000)] = 50,
    as_json: Annotated[bool, typer.Option("--json")] = False,
) -> None:
    """Show every caller's tasks, newest first."""
    signed_urls = load_signed_urls(load_settings())

    async def read(database: Database) -> list[dict[str, Any]]:
        where = [] if status is None else [Task.status == status]
        async with database.reads() as session:
            found = await repository.list_tasks(session, where, None, limit)
            return [read_task(task, {}, signed_urls).model_dump(mode="json") for task in found]

    found = with_database(read)
    if as_json:
        typer.echo(json.dumps(found, indent=2))
        return
    for task in found:
        typer.echo(f"{task['id']}  {task['status']:<12} {task['created_at']}  {task['prompt'][:60]}")


@tasks.command("show")
def show_task(task_id: TaskId) -> None:
    """Show one task and its events as JSON."""
    signed_urls = load_signed_urls(load_settings())

    async def read(database: Database) -> dict[str, Any] | None:
        async with database.reads() as session:
            task = await repository.find_task(session, task_id)
            if task is None:
                return None
            events = await repository.list_events(session, task_id, 0, 1_000)
            told = [EventRead.model_validate(event).model_dump(mode="json") for event in events]
            return {**read_task(task, {}, signed_urls).model_dump(mode="json"), "posts": task.posts, "events": told}

    found = with_database(read)
    if found is None:
        fail(NO_SUCH_TASK)
    typer.echo(json.dumps(found, indent=2))


@tasks.command("resolve")
def resolve_task(
    task_id: TaskId,
    status: Annotated[TaskStatus, typer.Option(help="generating, succeeded, failed or canceled.")],
    upstream_task_id: Annotated[
        str | None, typer.Option(help="With generating: what the upstream calls it.", metavar="ID")
    ] = None,
) -> None:
    """Settle by hand a task of which the upstream's account page tells more than the upstream told us."""
    settings = load_settings()

    async def work(database: Database) -> bool:
        async with database.writes.begin() as session:
            task = await repository.lock_task(session, task_id)
            if task is not None:
                now = await database.now(session)
                await resolve(make_lifecycle(settings), session, task, status, upstream_task_id, now)
            return task is not None

    try:
        if not with_database(work):
            fail(NO_SUCH_TASK)
    except CannotResolve as error:
        fail(str(error))
    typer.echo(f"{task_id} is {status}.")


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
    lifecycle = make_lifecycle(load_settings())

    async def run(database: Database) -> tuple[int, int]:
        found = await find_callbacks(database, task, from_)
        news = [await replay(database, lifecycle, one, keeps=not dry_run) for one in found]
        return len(found), sum(news)

    found, news = with_database(run)
    typer.echo(f"{found} callbacks read, {news} {'would be' if dry_run else 'were'} news.")


def _moment(text: str) -> datetime:
    """A time that says no zone is in UTC, like all that we print."""
    try:
        read = datetime.fromisoformat(text)
    except ValueError:
        fail(f"--since cannot be read: {text!r} is no time such as 2026-01-31T08:00:00Z.")
    return read if read.tzinfo else read.replace(tzinfo=UTC)
