"""What commands share: the settings, the services, and how to fail with a sentence that says what to do."""

from __future__ import annotations

import asyncio
import gc
import signal
import socket
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, NoReturn, TypeVar

import typer

from app.observability.redaction import printable

if TYPE_CHECKING:
    from app.auth.callers import Caller
    from app.config import Settings
    from app.services import Services

# Commands import what they run with when they run: a help text, or a command that needs no database, starts at once.
Value = TypeVar("Value")
# The exit codes, of which docs/operations.md has the table; 0 is for all that was done, 130 for Ctrl-C.
FAILED, REFUSED, NO_SOUND, UNDER_WAY, INTERRUPTED = 1, 2, 3, 4, 130
EXIT_CODES = (
    "Exit codes: 0 done; 1 a problem, which standard error explains; 2 the command cannot be understood or taken; "
    "130 interrupted."
)
LOCKED = "Others have locked in the database what this needs, and not released it in time. Run it again."
NO_SUCH_TASK = "No task has this id; `soundpost tasks list` shows them."


def read_task_id(text: str | None) -> str | None:
    """The id of a task, from a UUID that is written in any way."""
    from app.web.fields import canonical_id

    return text and canonical_id(text)


@contextmanager
def importing() -> Iterator[None]:
    """Import the service in this block: the collector of garbage looks at no module, then or later."""
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


def block_hangups() -> None:
    """Keep SIGHUP, which ends a process by default, until this one is able to heed it; its children too."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP})


def load_settings() -> Settings:
    """Read the settings, or fail with a sentence for each invalid one."""
    from app.config import PREFIX, SettingsUnusable, read_settings
    from app.config.database_url import ignored_parameters

    try:
        settings = read_settings()
    except SettingsUnusable as error:
        fail(str(error))
    if ignored := ignored_parameters(settings.database_url):
        typer.echo(f"{PREFIX}DATABASE_URL has parameters that have no effect: {', '.join(ignored)}", err=True)
    return settings


def warn_of_unknown_settings() -> None:
    """Log each SOUNDPOST_ variable that no setting has: it may be a typo, and has no effect."""
    import structlog

    from app.config import Settings, unknown_settings

    log = structlog.get_logger()
    for name, nearest in unknown_settings(Settings).items():
        log.warning("unknown_setting", name=name, did_you_mean=nearest)


def require_upstream_key(settings: Settings) -> None:
    """Fail if the upstream key is not set."""
    from app.upstream.hold import NO_KEY

    if settings.upstream_api_key is None:
        fail(
            f"{NO_KEY}: set it to the upstream's key. Or start `soundpost sandbox`, and set "
            "SOUNDPOST_UPSTREAM_URL=http://127.0.0.1:8001 and SOUNDPOST_UPSTREAM_API_KEY=sandbox."
        )


def listen(host: str, port: int, choice: str = "--port or --host") -> socket.socket:
    """Return a socket that listens on this address, for this process and its children, or fail: `choice` is another."""
    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, proto=socket.IPPROTO_TCP)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(2048)
    except (OSError, UnicodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is no name of a host"
        fail(f"Cannot listen on {host} port {port}: {why}. Choose another with {choice}.")
    listener.set_inheritable(True)
    return listener


def prepare(settings: Settings) -> None:
    """Check the secret keys and migrate an SQLite database, for which nothing else runs `soundpost migrate`."""
    from app.keyring import KeyringUnusable, load_or_create_keyring

    try:
        load_or_create_keyring(settings)
    except KeyringUnusable as error:
        fail(str(error))
    if settings.is_sqlite:
        upgrade_schema(settings, accepts_newer=True)


def upgrade_schema(settings: Settings, *, accepts_newer: bool = False) -> None:
    """Upgrade the database to this release's schema, or fail with a sentence that says why not."""
    from sqlalchemy.exc import SQLAlchemyError

    from app.database.failures import reason
    from app.database.migrations import UnknownSchema, migrate

    try:
        migrate(settings.database_url, accepts_newer=accepts_newer)
    except UnknownSchema as error:
        fail(str(error))
    except (SQLAlchemyError, OSError) as error:
        why = reason(error, settings.database_url)
        fail(f"The database cannot be migrated ({why}): check SOUNDPOST_DATABASE_URL and try again.")


def with_services(work: Callable[[Services], Awaitable[Value]]) -> Value:
    """Run `work` with the services of a process, or fail if the database does not answer."""
    from sqlalchemy.exc import SQLAlchemyError

    from app.database.failures import is_locked, reason
    from app.database.migrations import is_not_migrated
    from app.errors import DatabaseUnavailable
    from app.observability.logging import configure_logging
    from app.services import build_services

    settings = load_settings()
    # The log goes to standard error, so that standard output holds the result alone.
    configure_logging(settings)
    prepare(settings)

    async def run() -> Value:
        services = build_services(settings)
        try:
            return await work(services)
        finally:
            await services.close()

    try:
        return asyncio.run(run())
    except BrokenPipeError:
        raise
    except DatabaseUnavailable:
        fail(LOCKED)
    except (SQLAlchemyError, OSError) as error:
        if is_locked(error) or getattr(getattr(error, "orig", None), "sqlite_errorname", None) == "SQLITE_BUSY":
            fail(LOCKED)
        if is_not_migrated(error):
            fail("The database's schema is not this release's: run `soundpost migrate`.")
        why = reason(error, settings.database_url)
        fail(f"The database does not answer ({why}): check SOUNDPOST_DATABASE_URL.")


def fail(message: str, code: int = FAILED) -> NoReturn:
    """Print a message to standard error and exit with this code."""
    typer.echo(printable(message, kept="\n"), err=True)
    raise typer.Exit(code)


def acting_for(key_id: str) -> Caller:
    """The caller with this id, in whose name the operator acts."""
    from app.auth.audit import OPERATOR
    from app.auth.callers import Caller

    return Caller(key_id, is_admin=False, acting_key_id=OPERATOR)
