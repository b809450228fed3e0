"""The command line: `soundpost`."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Annotated, Any

import typer
from sqlalchemy.exc import SQLAlchemyError

from app import auth, demo
from app.callbacks.replay import find_callbacks, replay
from app.clips.storage import Storage
from app.config import parse_rate
from app.console import fail, load_settings, prepare, require_upstream_key, why, with_database
from app.db import Database
from app.db import migrate as run_migrations
from app.doctor import Finding, examine
from app.errors import StorageUnavailable
from app.links import load_links
from app.log import configure_logging
from app.main import make_life, run_worker
from app.models import Task
from app.retention import Retention, remove_due_files
from app.sandbox import FaultRefused, SandboxOptions, run_sandbox
from app.server import PortTaken
from app.server import serve as run_server
from app.tasks import repository
from app.tasks.operator import CannotResolve, resolve
from app.tasks.schemas import EventRead, read_task
from app.words import TaskStatus

main = typer.Typer(
    name="soundpost", no_args_is_help=True, add_completion=False, help=__doc__, pretty_exceptions_enable=False
)
keys = typer.Typer(no_args_is_help=True, help="Callers' keys.")
tasks = typer.Typer(no_args_is_help=True, help="What callers asked for.")
callbacks = typer.Typer(no_args_is_help=True, help="What the upstream told us.")
for name, group in (("keys", keys), ("tasks", tasks), ("callbacks", callbacks)):
    main.add_typer(group, name=name)

NO_SUCH_TASK = "No task has this id; `soundpost tasks list` shows them."
TaskId = Annotated[str, typer.Argument(metavar="ID")]

Host = Annotated[str, typer.Option(help="The address to listen on.")]


@main.command("demo")
def demo_command(prompt: Annotated[str, typer.Argument()] = "soft rain on a tin roof") -> None:
    """The main job with nothing set up: a sandbox as upstream, one task, from submit to playable files."""
    raise typer.Exit(demo.run(prompt))


@main.command()
def serve(
    host: Host = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535)] = 8000,
    workers: Annotated[int, typer.Option(min=1, help="Processes that share the port.")] = 1,
    no_loops: Annotated[bool, typer.Option("--no-loops", help="Leave the loops to `soundpost worker`.")] = False,
) -> None:
    """Take orders, callbacks and questions; run the loops too."""
    settings = load_settings()
    require_upstream_key(settings)
    prepare(settings)
    try:
        run_server(settings, host, port, workers, runs_loops=not no_loops)
    except PortTaken as error:
        fail(str(error))


@main.command()
def worker() -> None:
    """Run the loops alone."""
    settings = load_settings()
    require_upstream_key(settings)
    prepare(settings)
    configure_logging(settings)
    asyncio.run(run_worker(settings))


@main.command()
def migrate() -> None:
    """Bring the database's schema to this release's."""
    settings = load_settings()
    try:
        run_migrations(settings.database_url)
    except (SQLAlchemyError, OSError) as error:
        fail(f"The database cannot be migrated ({why(error)}): check SOUNDPOST_DATABASE_URL and try again.")
    typer.echo("The schema is up to date.")


@keys.command("create")
def create_key(name: str, admin: Annotated[bool, typer.Option("--admin", help="May read all tasks.")] = False) -> None:
    """Make a key and print it; it is shown this once."""
    if not 1 <= len(name) <= 100:
        fail("NAME must be 1 to 100 characters.")

    async def create(database: Database) -> str:
        async with database.writes.begin() as session:
            return await auth.create_key(session, name, await database.now(session), is_admin=admin)

    typer.echo(with_database(create))


@keys.command("list")
def list_keys(as_json: Annotated[bool, typer.Option("--json")] = False) -> None:
    """Show who has a key, but no key."""

    async def read(database: Database) -> list[dict[str, Any]]:
        async with database.reads() as session:
            return [
                {
                    "id": key.id,
                    "name": key.name,
                    "admin": key.is_admin,
                    "created_at": key.created_at.isoformat(),
                    "revoked_at": key.revoked_at and key.revoked_at.isoformat(),
                }
                for key in await auth.list_keys(session)
            ]

    found = with_database(read)
    if as_json:
        typer.echo(json.dumps(found, indent=2))
        return
    for key in found:
        state = f"revoked {key['revoked_at']}" if key["revoked_at"] else "active"
        typer.echo(f"{key['id']}  {key['name']}{' (admin)' if key['admin'] else ''}  {state}")


@keys.command("revoke")
def revoke_key(key_id: Annotated[str, typer.Argument(metavar="ID")]) -> None:
    """Refuse a key from now on, on every replica."""

    async def revoke(database: Database) -> bool:
        async with database.writes.begin() as session:
            return await auth.revoke_key(session, key_id, await database.now(session))

    if not with_database(revoke):
        fail("No active key has this id; `soundpost keys list` shows them.")
    typer.echo("Revoked.")


@tasks.command("list")
def list_tasks(
    status: Annotated[TaskStatus | None, typer.Option(help="Only those in this state.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=10_000)] = 50,
    as_json: Annotated[bool, typer.Option("--json")] = False,
) -> None:
    """Show every caller's tasks, newest first."""
    links = load_links(load_settings())

    async def read(database: Database) -> list[dict[str, Any]]:
        where = [] if status is None else [Task.status == status]
        async with database.reads() as session:
            found = await repository.list_tasks(session, where, None, limit)
            return [read_task(task, {}, links).model_dump(mode="json") for task in found]

    found = with_database(read)
    if as_json:
        typer.echo(json.dumps(found, indent=2))
        return
    for task in found:
        typer.echo(f"{task['id']}  {task['status']:<12} {task['created_at']}  {task['prompt'][:60]}")


@tasks.command("show")
def show_task(task_id: TaskId) -> None:
    """Show one task and its events as JSON."""
    links = load_links(load_settings())

    async def read(database: Database) -> dict[str, Any] | None:
        async with database.reads() as session:
            task = await repository.find_task(session, task_id)
            if task is None:
                return None
            events = await repository.list_events(session, task_id, 0, 1_000)
            told = [EventRead.model_validate(event).model_dump(mode="json") for event in events]
            return {**read_task(task, {}, links).model_dump(mode="json"), "posts": task.posts, "events": told}

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
                await resolve(make_life(settings), session, task, status, upstream_task_id, now)
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
    since: Annotated[datetime | None, typer.Option(metavar="T", help="Those since a time, in UTC.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only tell what would change.")] = False,
) -> None:
    """Read kept callbacks again."""
    if (task is None) == (since is None):
        fail("Give either --task ID or --since T.")
    settings, from_ = load_settings(), since and since.replace(tzinfo=UTC)

    life = make_life(settings)

    async def run(database: Database) -> tuple[int, int]:
        found = await find_callbacks(database, task, from_)
        news = [await replay(database, life, one, keeps=not dry_run) for one in found]
        return len(found), sum(news)

    found, news = with_database(run)
    typer.echo(f"{found} callbacks read, {news} {'would be' if dry_run else 'were'} news.")


@main.command()
def doctor(as_json: Annotated[bool, typer.Option("--json")] = False) -> None:
    """Look at everything that the service needs; ends with 1 on any problem."""
    settings = load_settings()

    async def look() -> list[Finding]:
        findings = []
        async for finding in examine(settings):
            findings.append(finding)
            if not as_json:
                typer.echo(f"{'ok     ' if finding.ok else 'PROBLEM'}  {finding.check}: {finding.detail}")
        return findings

    findings = asyncio.run(look())
    if as_json:
        typer.echo(json.dumps([asdict(finding) for finding in findings], indent=2))
    raise typer.Exit(0 if all(finding.ok for finding in findings) else 1)


@main.command()
def prune(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only tell what would go.")] = False,
) -> None:
    """Erase what was kept for SOUNDPOST_RETENTION_DAYS; a running service does the same by itself."""
    settings = load_settings()
    retention = Retention(make_life(settings), settings.retention_days)

    async def work(database: Database) -> Mapping[str, int]:
        async with database.reads() as session:
            counts = await retention.count(session, await database.now(session))
        if not dry_run:
            await _erase_expired(database, retention)
            await remove_due_files(database, Storage(settings.storage_url))
        return counts

    try:
        counts = with_database(work)
    except StorageUnavailable:
        fail("The rows are erased, but the storage does not answer: check SOUNDPOST_STORAGE_URL and run this again.")
    for name, count in counts.items():
        typer.echo(f"{count} {name} {'would go' if dry_run else 'erased'}")


async def _erase_expired(database: Database, retention: Retention) -> None:
    is_more = True
    while is_more:
        async with database.writes.begin() as session:
            is_more = await retention.erase_batch(session, await database.now(session))


@main.command()
def sandbox(
    host: Host = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535)] = 8001,
    api_key: Annotated[str, typer.Option(help="The key that submits must show.")] = "sandbox",
    delay: Annotated[float, typer.Option(min=0, help="Seconds from submit to complete.")] = 3.0,
    rate: Annotated[str, typer.Option(help="Requests/seconds that are let through.")] = "20/10",
    credits_: Annotated[float, typer.Option("--credits", min=0, help="What is on the account.")] = 1000.0,
    fault: Annotated[str | None, typer.Option(help="For every task, as in drop-callbacks:0.2,code-500:0.1.")] = None,
    seed: Annotated[int, typer.Option(help="Decides which tasks a fault with a probability meets.")] = 0,
    callback_retries: Annotated[str, typer.Option(help="Seconds before each retry of a callback.")] = "60,300,900",
    callback_hmac_key: Annotated[str | None, typer.Option(help="Signs callbacks.")] = None,
) -> None:
    """A stand-in upstream, for callers' development and for tests; README lists its faults."""
    try:
        pace = parse_rate(rate)
        options = SandboxOptions(
            api_key=api_key,
            delay=delay,
            rate=pace.requests,
            period=pace.period.total_seconds(),
            credits=credits_,
            fault=fault,
            seed=seed,
            callback_retry_delays=tuple(float(word) for word in callback_retries.split(",") if word),
            callback_hmac_key=callback_hmac_key,
        )
    except (ValueError, FaultRefused) as error:
        fail(f"The sandbox cannot be started like this: {error}")
    run_sandbox(options, host, port)


if __name__ == "__main__":
    main()
