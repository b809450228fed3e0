"""`soundpost tasks`: every caller's tasks, to read and to resolve by hand."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer

from app.cli.context import EXIT_CODES, NO_SUCH_TASK, fail, read_task_id, with_services
from app.cli.keys import key_of
from app.cli.output import (
    TIME_HELP,
    WIDE,
    age,
    console,
    is_terminal,
    note,
    note_more,
    parse_moment,
    print_json,
    print_table,
)
from app.enums import TaskStatus
from app.errors import NotFound
from app.observability.redaction import printable

if TYPE_CHECKING:
    from app.database.engine import Session
    from app.services import Services
    from app.tasks.schemas import TaskRead

tasks = typer.Typer(no_args_is_help=True, help="Tasks of all callers.", epilog=EXIT_CODES)

# Tasks that one statement reads: their lyrics are read with them.
PAGE = 50
TaskId = Annotated[str, typer.Argument(metavar="ID", help="The id of the task.", callback=read_task_id)]


@tasks.command("list", epilog=EXIT_CODES)
def list_tasks(
    status: Annotated[TaskStatus | None, typer.Option(help="Only tasks with this status.")] = None,
    model: Annotated[str | None, typer.Option(help="Only tasks for this model.")] = None,
    key: Annotated[str | None, typer.Option(metavar="NAME|ID", help="Only tasks of this caller.")] = None,
    since: Annotated[str | None, typer.Option(metavar="T", help=f"Only tasks created after T: {TIME_HELP}.")] = None,
    until: Annotated[str | None, typer.Option(metavar="T", help="Only tasks created before T.")] = None,
    after: Annotated[
        str | None, typer.Option(metavar="ID", help="Begin behind this task of the list.", callback=read_task_id)
    ] = None,
    limit: Annotated[int, typer.Option(min=1, max=10_000, help="List at most this many tasks.")] = 50,
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON list.")] = False,
) -> None:
    """List the tasks of all callers, newest first."""
    earliest, latest = parse_moment(since, "--since"), parse_moment(until, "--until")
    from app.tasks.schemas import TaskFilters

    times = {"created_after": earliest and earliest.isoformat(), "created_before": latest and latest.isoformat()}
    filters = TaskFilters.model_validate({"status": status, "model": model, **times})

    async def read(services: Services) -> tuple[list[tuple[TaskRead, str]], bool]:
        return await _read_tasks(services, key, filters, after, limit)

    try:
        found, is_more = with_services(read)
    except NotFound:
        fail(NO_SUCH_TASK)
    if as_json:
        print_json([{**task.model_dump(mode="json"), "key": name} for task, name in found])
    elif is_terminal():
        _print_tasks(found)
    else:
        for task, _ in found:
            shown = task.model_dump(mode="json")
            typer.echo(f"{task.id}  {task.status:<12} {shown['created_at']}  {printable(task.prompt[:60])}")
    if is_more:
        note_more(found[-1][0].id)


async def _read_tasks(
    services: Services, key: str | None, filters: Any, after: str | None, limit: int
) -> tuple[list[tuple[TaskRead, str]], bool]:
    """Up to `limit` tasks with the names of their callers, and whether more follow. Raises NotFound for `after`."""
    from app.auth.api_keys import list_keys
    from app.tasks import repository
    from app.tasks.schemas import read_task

    found: list[tuple[TaskRead, str]] = []
    async with services.database.reads() as session:
        keys = await list_keys(session)
        names, key_id = {each.id: each.name for each in keys}, key_of(keys, key).id if key else None
        position = await _position_of(session, after) if after else None
        while True:
            count = min(PAGE, limit - len(found)) + 1
            rows = await repository.list_tasks(session, key_id, filters, {}, position, count)
            page = rows[: count - 1]
            places = await services.waiters.positions.read(session, page)
            found += [(read_task(row, places, services.signed_urls), names[row.api_key_id]) for row in page]
            if len(rows) < count or len(found) == limit:
                return found, len(rows) == count
            position = (page[-1].created_at, page[-1].id)
            session.expunge_all()


async def _position_of(session: Session, task_id: str) -> tuple[datetime, str]:
    from app.tasks.repository import find_task

    if (task := await find_task(session, task_id)) is None:
        raise NotFound
    return task.created_at, task.id


def _print_tasks(found: Sequence[tuple[TaskRead, str]]) -> None:
    now = datetime.now(UTC)
    if console().width < WIDE:
        rows = ((task.id, task.status, age(task.created_at, now), name, task.prompt) for task, name in found)
        print_table(("ID", "STATUS", "AGE", "KEY", "PROMPT"), rows)
        return
    wide = (
        (
            task.id,
            task.status,
            age(task.created_at, now),
            task.charge,
            task.error.code if task.error else "",
            name,
            task.prompt,
        )
        for task, name in found
    )
    print_table(("ID", "STATUS", "AGE", "CHARGE", "ERROR", "KEY", "PROMPT"), wide)


@tasks.command("show", epilog=EXIT_CODES)
def show_task(
    task_id: TaskId,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON on a terminal too.")] = False,
) -> None:
    """Print one task with all that belongs to it: for people on a terminal, else as JSON."""
    from app.cli.show import MAX_DELIVERIES, print_task, read_details

    try:
        found = with_services(lambda services: read_details(services, task_id))
    except NotFound:
        fail(NO_SUCH_TASK)
    if as_json or not is_terminal():
        print_json(found.as_json())
    else:
        print_task(found)
    if len(found.deliveries) == MAX_DELIVERIES:
        note(f"These are the latest deliveries; `soundpost deliveries list --task {task_id}` lists all.")


@tasks.command("resolve", epilog=EXIT_CODES)
def resolve_task(
    task_id: TaskId,
    status: Annotated[TaskStatus, typer.Option(help="The new status: generating, succeeded, failed or canceled.")],
    upstream_task_id: Annotated[
        str | None, typer.Option(help="The upstream's id of the task; needed for generating.", metavar="ID")
    ] = None,
) -> None:
    """Set the status of a task by hand, with what you found out elsewhere, for example on the upstream's website."""

    from app.auth.audit import OPERATOR
    from app.tasks.transitions import CannotResolve

    async def resolve(services: Services) -> None:
        await services.tasks.resolve(OPERATOR, task_id, status, upstream_task_id)

    try:
        with_services(resolve)
    except NotFound:
        fail(NO_SUCH_TASK)
    except CannotResolve as error:
        fail(str(error))
    typer.echo(f"{task_id} is {status}.")
