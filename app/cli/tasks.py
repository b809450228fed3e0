"""`soundpost tasks`: every caller's tasks, to read and to resolve by hand."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Any

import typer

from app.cli.context import NO_SUCH_TASK, fail, with_services
from app.enums import TaskStatus
from app.errors import NotFound
from app.observability.redaction import printable

if TYPE_CHECKING:
    from app.services import Services

tasks = typer.Typer(no_args_is_help=True, help="Tasks of all callers.")

MAX_EVENTS = 1_000
TaskId = Annotated[str, typer.Argument(metavar="ID", help="The id of the task.")]


@tasks.command("list")
def list_tasks(
    status: Annotated[TaskStatus | None, typer.Option(help="Only list tasks with this status.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=10_000, help="List at most this many tasks.")] = 50,
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON list.")] = False,
) -> None:
    """List the tasks of all callers, newest first."""

    from app.auth.api_keys import OPERATOR
    from app.tasks.schemas import TaskFilters, TaskRead

    async def read(services: Services) -> list[dict[str, Any]]:
        found, after, is_more = list[TaskRead](), None, True
        while is_more and len(found) < limit:
            page, is_more = await services.tasks.list(
                OPERATOR, TaskFilters(status=status), {}, after, limit - len(found)
            )
            found += page
            after = (page[-1].created_at, page[-1].id) if page else None
        return [task.model_dump(mode="json") for task in found]

    found = with_services(read)
    if as_json:
        typer.echo(json.dumps(found, indent=2))
        return
    for task in found:
        typer.echo(f"{task['id']}  {task['status']:<12} {task['created_at']}  {printable(task['prompt'][:60])}")


@tasks.command("show")
def show_task(task_id: TaskId) -> None:
    """Print one task and its events as JSON."""

    from app.auth.api_keys import OPERATOR
    from app.tasks.event_schemas import EventRead

    async def read(services: Services) -> dict[str, Any]:
        task = await services.tasks.get(OPERATOR, task_id)
        posts = (await services.tasks.get_row(OPERATOR, task_id)).posts
        events = await services.tasks.list_events(OPERATOR, task_id, 0, MAX_EVENTS)
        shown = [EventRead.model_validate(event).model_dump(mode="json") for event in events]
        return {**task.model_dump(mode="json"), "posts": posts, "events": shown}

    try:
        found = with_services(read)
    except NotFound:
        fail(NO_SUCH_TASK)
    typer.echo(json.dumps(found, indent=2))


@tasks.command("resolve")
def resolve_task(
    task_id: TaskId,
    status: Annotated[TaskStatus, typer.Option(help="The new status: generating, succeeded, failed or canceled.")],
    upstream_task_id: Annotated[
        str | None, typer.Option(help="The upstream's id of the task; needed for generating.", metavar="ID")
    ] = None,
) -> None:
    """Set the status of a task by hand, with what you found out elsewhere, for example on the upstream's website."""

    from app.tasks.service import CannotResolve

    async def resolve(services: Services) -> None:
        await services.tasks.resolve(task_id, status, upstream_task_id)

    try:
        with_services(resolve)
    except NotFound:
        fail(NO_SUCH_TASK)
    except CannotResolve as error:
        fail(str(error))
    typer.echo(f"{task_id} is {status}.")
