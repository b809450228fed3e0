"""The command line: `soundpost`."""

from __future__ import annotations

import asyncio
import json
from typing import Annotated, Any, NoReturn

import typer
from pydantic import ValidationError
from sqlalchemy.exc import SQLAlchemyError

from app import auth, demo
from app.config import PREFIX, Settings
from app.db import Database
from app.db import migrate as run_migrations
from app.log import configure_logging
from app.main import run_worker
from app.sandbox import SandboxOptions, run_sandbox
from app.secrets import SecretsUnusable, load_secrets
from app.server import PortTaken
from app.server import serve as run_server

main = typer.Typer(
    name="soundpost", no_args_is_help=True, add_completion=False, help=__doc__, pretty_exceptions_enable=False
)
keys = typer.Typer(no_args_is_help=True, help="Callers' keys.")
main.add_typer(keys, name="keys")

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


@main.command()
def sandbox(
    host: Host = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535)] = 8001,
) -> None:
    """A stand-in upstream, for callers' development and for tests."""
    run_sandbox(SandboxOptions(), host, port)


def load_settings() -> Settings:
    """Read the settings, or end with a sentence for each one that is wrong."""
    try:
        settings = Settings()
        if settings.api_keys:
            auth.parse_configured_keys(settings.api_keys.get_secret_value())
    except ValidationError as error:
        lines = [f"{PREFIX}{'_'.join(map(str, e['loc'][:1])).upper()} {e['msg']}" for e in error.errors()]
        fail("\n".join(line.replace("Value error, ", "").replace(f"{PREFIX} ", "") for line in lines))
    except ValueError as error:
        fail(str(error))
    return settings


def require_upstream_key(settings: Settings) -> None:
    """End with a sentence where nothing could be ordered."""
    if settings.upstream_api_key is None:
        fail(
            "SOUNDPOST_UPSTREAM_API_KEY is not set: nothing could be ordered. Set it to the upstream's key; or start "
            "`soundpost sandbox`, set SOUNDPOST_UPSTREAM_URL=http://127.0.0.1:8001 and the key to `sandbox`."
        )


def prepare(settings: Settings) -> None:
    """Check what would fail later; an SQLite database is migrated, since nobody else will do it."""
    try:
        load_secrets(settings)
        if settings.is_sqlite:
            run_migrations(settings.database_url)
    except SecretsUnusable as error:
        fail(str(error))
    except (SQLAlchemyError, OSError) as error:
        fail(f"The database cannot be opened ({why(error)}): check SOUNDPOST_DATABASE_URL.")


def with_database(work: Any) -> Any:
    """Run one piece of work on the database, or end with a sentence that says why not."""
    settings = load_settings()
    prepare(settings)

    async def run() -> Any:
        database = Database(settings.database_url)
        try:
            return await work(database)
        finally:
            await database.close()

    try:
        return asyncio.run(run())
    except (SQLAlchemyError, OSError) as error:
        fail(f"The database does not answer ({why(error)}): check SOUNDPOST_DATABASE_URL; is it migrated?")


def why(error: Exception) -> str:
    """The first line of what the driver said, without the statement around it."""
    return str(getattr(error, "orig", None) or error).partition("\n")[0]


def fail(message: str) -> NoReturn:
    """Say why on standard error and end with 1."""
    typer.echo(message, err=True)
    raise typer.Exit(1)


if __name__ == "__main__":
    main()
