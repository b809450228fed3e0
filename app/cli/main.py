"""The command line: `soundpost`."""

from __future__ import annotations

import asyncio
import os
import shutil
import sys
import traceback
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from app import __version__
from app.cli import audit, callbacks, deliveries, keys, orders, tasks
from app.cli.context import (
    EXIT_CODES,
    REFUSED,
    block_hangups,
    fail,
    importing,
    listen,
    load_settings,
    prepare,
    require_upstream_key,
    upgrade_schema,
    warn_of_unknown_settings,
    with_services,
)
from app.cli.output import print_json

if TYPE_CHECKING:
    from app.database.engine import Database
    from app.retention import Retention
    from app.services import Services

main = typer.Typer(
    name="soundpost", no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, epilog=EXIT_CODES
)
main.add_typer(keys.keys, name="keys")
tasks.tasks.add_typer(orders.orders)
main.add_typer(tasks.tasks, name="tasks")
main.add_typer(callbacks.callbacks, name="callbacks")
main.add_typer(deliveries.deliveries, name="deliveries")
main.add_typer(audit.audit)

Host = Annotated[str, typer.Option(help="The address to listen on.")]
Port = Annotated[int, typer.Option(min=0, max=65535, help="The port to listen on; 0 chooses a free one.")]


def _print_version(is_wanted: bool) -> None:
    if is_wanted:
        typer.echo(f"soundpost {__version__}")
        raise typer.Exit


@main.callback()
def soundpost(
    _: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_print_version, help="Print the version and exit.")
    ] = False,
) -> None:
    """Soundpost stands between your backends and a paid, asynchronous sound API, and loses nothing."""


@main.command()
def demo(
    prompt: Annotated[str, typer.Argument(metavar="PROMPT", help="The sound to generate.")] = "soft rain on a tin roof",
) -> None:
    """Generate one sound with nothing set up: a sandbox as upstream, one task, from submit to playable files."""
    from app.cli.demo import run as run_demo

    raise typer.Exit(run_demo(prompt))


@main.command()
def serve(
    host: Host = "127.0.0.1",
    port: Port = 8000,
    workers: Annotated[int, typer.Option(min=1, help="Number of server processes that share the port.")] = 1,
    no_loops: Annotated[
        bool, typer.Option("--no-loops", help="Run no workers here, but in `soundpost worker`.")
    ] = False,
) -> None:
    """Serve the REST API and the callbacks, and run the workers."""
    block_hangups()
    with importing():
        from app.observability.logging import configure_logging
        from app.server import serve as run_server

    settings = load_settings()
    configure_logging(settings)
    warn_of_unknown_settings()
    require_upstream_key(settings)
    # First: where another service holds the port, its database must not be migrated.
    listener = listen(host, port)
    prepare(settings)
    run_server(settings, listener, workers, runs_workers=not no_loops)


@main.command()
def worker() -> None:
    """Run the workers without the REST API; SOUNDPOST_WORKER_PORT is for probes and metrics."""
    block_hangups()
    with importing():
        from app.observability.logging import configure_logging

        settings = load_settings()
        if settings.worker_port is None:
            from app.lifecycle import run_worker
        else:
            from app import server

    configure_logging(settings)
    warn_of_unknown_settings()
    require_upstream_key(settings)
    # On every address: those who probe and scrape are elsewhere.
    bound = listen("0.0.0.0", settings.worker_port, "SOUNDPOST_WORKER_PORT") if settings.worker_port else None  # noqa: S104
    prepare(settings)
    if bound is None:
        asyncio.run(run_worker(settings))
    else:
        server.run_worker(settings, bound)


@main.command(epilog=EXIT_CODES)
def migrate() -> None:
    """Upgrade the database to this release's schema."""
    upgrade_schema(load_settings())
    typer.echo("The schema is up to date.")


@main.command(epilog=EXIT_CODES)
def backup(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The file to write; it must not exist yet.")],
) -> None:
    """Write a consistent copy of the SQLite database to a file, while the service runs."""
    import sqlite3

    from app.database.sqlite import back_up

    settings = load_settings()
    if not settings.is_sqlite:
        fail("This backs up SQLite alone. For PostgreSQL run pg_dump, as docs/operations.md shows.")
    try:
        back_up(settings.database_url, file)
    except (OSError, sqlite3.Error) as error:
        fail(f"No backup was written: {error}.")
    typer.echo(str(file.absolute()))


@main.command(epilog=EXIT_CODES)
def after_restore(
    yes: Annotated[
        bool, typer.Option("--yes", help="No service runs on this database, and a copy was restored.")
    ] = False,
) -> None:
    """Keep a restored database from submitting again what was submitted since its copy; run it before the service."""
    from app.tasks.service import distrust_queue

    if not yes:
        fail(
            "Every queued task becomes unconfirmed, and fails at its deadline unless a callback comes: stop every"
            " service on this database, restore the copy, then run this once with --yes.",
            REFUSED,
        )

    count = with_services(lambda services: distrust_queue(services.database, services.lifecycle))
    typer.echo(f"{count} queued tasks are unconfirmed now; `soundpost tasks list --status unconfirmed` shows them.")


@main.command()
def doctor(as_json: Annotated[bool, typer.Option("--json", help="Print a JSON list.")] = False) -> None:
    """
    Check everything that the service needs, and say what to do.

    The exit code is 0 if all is well, and 1 on any problem.
    """
    from app.cli.doctor import run as examine

    raise typer.Exit(0 if examine(as_json=as_json) else 1)


@main.command(epilog=EXIT_CODES)
def prune(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only print what would be deleted.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the counts as a JSON object.")] = False,
) -> None:
    """Delete what is older than SOUNDPOST_RETENTION_DAYS, as a running service does every five minutes."""
    from app.errors import StorageUnavailable
    from app.retention import Retention, remove_due_files

    settings = load_settings()
    retention = Retention(settings.retention_days, settings.audit_days)

    async def work(services: Services) -> Mapping[str, int]:
        database = services.database
        async with database.reads() as session:
            counts = await retention.count(session, await database.now(session))
        if not dry_run:
            await _delete_expired(database, retention, counts)
            await remove_due_files(database, services.storage)
        return counts

    try:
        counts = with_services(work)
    except StorageUnavailable:
        fail("The rows are deleted, but the storage does not answer: check SOUNDPOST_STORAGE_URL and run this again.")
    if as_json:
        print_json({name.replace(" ", "_"): count for name, count in counts.items()})
        return
    for name, count in counts.items():
        typer.echo(f"{count} {name} {'would be deleted' if dry_run else 'deleted'}")


async def _delete_expired(database: Database, retention: Retention, counts: Mapping[str, int]) -> None:
    from app.auth.audit import OPERATOR, record

    async with database.transaction() as (session, now):
        record(session, now, OPERATOR, "retention.applied", deleted=dict(counts))
        is_more = await retention.erase_batch(session, now)
    while is_more:
        async with database.transaction() as (session, now):
            is_more = await retention.erase_batch(session, now)


@main.command()
def sandbox(
    host: Host = "127.0.0.1",
    port: Port = 8001,
    api_key: Annotated[str, typer.Option(help="The key that callers must send.")] = "sandbox",
    delay: Annotated[float, typer.Option(min=0, help="Seconds from submit to complete.")] = 3.0,
    rate: Annotated[str, typer.Option(help="The limit of submits and polls, as REQUESTS/SECONDS.")] = "20/10",
    credits_: Annotated[float, typer.Option("--credits", min=0, help="The account's credits.")] = 1000.0,
    fault: Annotated[
        str | None, typer.Option(help="Faults of tasks without a tag, as in drop-callbacks:0.2,code-500:0.1.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Seeds the draws for faults with a probability.")] = 0,
    callback_retries: Annotated[str, typer.Option(help="Seconds before each retry of a callback.")] = "60,300,900",
    callback_hmac_key: Annotated[str | None, typer.Option(help="Sign callbacks with this key.")] = None,
    lists_faults: Annotated[
        bool, typer.Option("--list-faults", help="Print all faults and how to select them.")
    ] = False,
) -> None:
    """Run a stand-in for the upstream, with faults on demand, for development and tests."""
    from app.config import parse_rate
    from app.sandbox import ROUTES_HELP, InvalidFault, SandboxOptions, list_faults, run_sandbox

    if lists_faults:
        width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
        typer.echo(f"{list_faults(width)}\n\n{ROUTES_HELP}")
        return
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
    except (ValueError, InvalidFault) as error:
        fail(f"The sandbox cannot be started like this: {error}")
    run_sandbox(options, listen(host, port))


def run() -> NoReturn:
    """
    Run one command and exit with its code.

    Exits by `os._exit`: in a normal exit of Python, a thread of the storage's library
    that is still running would abort the process, whatever the exit code.
    """
    code: object = 1
    try:
        main()
    except SystemExit as ended:
        code = ended.code
    except BaseException:
        traceback.print_exc()
    with suppress(OSError):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code if isinstance(code, int) else int(code is not None))


if __name__ == "__main__":
    run()
