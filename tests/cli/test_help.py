"""What the command line says about itself."""

import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import typer
from typer.testing import CliRunner

from app import __version__
from app.cli.main import main


def test_version_is_printed() -> None:
    ended = CliRunner().invoke(main, ["--version"])

    assert (ended.exit_code, ended.stdout) == (0, f"soundpost {__version__}\n")


def test_help_and_version_load_no_library_of_the_service() -> None:
    loaded = _loaded_by("app.cli.main")

    assert "typer" in loaded
    assert {"sqlalchemy", "alembic", "fastapi", "httpx", "obstore", "pydantic", "uvicorn"} & loaded == set()


def test_server_on_sqlite_loads_no_migrations_no_other_driver_and_nothing_for_a_terminal() -> None:
    loaded = _loaded_by("app.cli, app.server")

    assert {"sqlalchemy", "fastapi", "httpx", "uvicorn"} <= loaded
    assert {"alembic", "mako", "psycopg", "asyncpg", "rich", "pygments", "tinytag", "watchfiles"} & loaded == set()


def test_every_command_argument_and_option_has_a_help_sentence() -> None:
    helps = dict(_helps("soundpost", typer.main.get_command(main)))

    assert len(helps) > 40
    assert [name for name, text in helps.items() if not (text and text.endswith("."))] == []


def _loaded_by(modules: str) -> set[str]:
    """The libraries that importing modules loads."""
    listed = f"import {modules}, sys; print(*{{name.partition('.')[0] for name in sys.modules if sys.modules[name]}})"
    return {*subprocess.run([sys.executable, "-c", listed], capture_output=True, text=True, check=True).stdout.split()}


def _helps(name: str, command: Any) -> Iterator[tuple[str, str | None]]:
    """The help of a command, its parameters and its subcommands, by name."""
    yield name, command.help
    for parameter in command.params:
        yield f"{name} {parameter.name}", parameter.help
    for subcommand in getattr(command, "commands", {}).values():
        yield from _helps(f"{name} {subcommand.name}", subcommand)
