"""Each test gets a database of its own, on SQLite and on PostgreSQL alike."""

import logging
import os
import shutil
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import psycopg
import pytest
from sqlalchemy import URL, make_url

from app.database.engine import Database
from app.database.migrations import migrate
from app.observability.logging import FoldRepeats
from tests.support.postgres import postgres
from tests.support.service import Service, serve


@pytest.fixture(scope="session", autouse=True)
def _settings_of_the_environment_are_ignored() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("SOUNDPOST_")]:
            patch.delenv(name)
        yield


@pytest.fixture(autouse=True)
def _log_goes_nowhere_after_the_test() -> Iterator[None]:
    yield
    # A command that ran in this process has left a handler for a standard error that is closed by now.
    root = logging.getLogger()
    root.handlers = [each for each in root.handlers if not any(isinstance(one, FoldRepeats) for one in each.filters)]


@pytest.fixture
def measured(record_property: Callable[[str, object], None]) -> Callable[[str], None]:
    """Call it with a line of measurements, which is shown at the end of the run."""
    return partial(record_property, "measured")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    passed = terminalreporter.stats.get("passed", [])
    lines = [line for report in passed for name, line in report.user_properties if name == "measured"]
    if lines:
        terminalreporter.section("measured")
    for line in lines:
        terminalreporter.write_line(line)


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """The URL of a migrated database without rows."""
    if request.param == "sqlite":
        file = tmp_path / "soundpost.db"
        shutil.copyfile(request.getfixturevalue("migrated_sqlite"), file)
        yield _sqlite_url(file)
    else:
        server, template = request.getfixturevalue("postgres_server"), request.getfixturevalue("migrated_postgres")
        with _database(server, template) as url:
            yield _text(url)


@pytest.fixture
async def database(database_url: str) -> AsyncIterator[Database]:
    """A migrated database without rows, open."""
    database = Database(database_url)
    yield database
    await database.close()


@pytest.fixture
async def service(database_url: str) -> AsyncIterator[Service]:
    """The service without its workers, and clients of it."""
    async with serve(database_url) as service:
        yield service


@pytest.fixture(params=["sqlite", "postgresql"])
def empty_database_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """The URL of a database without tables."""
    if request.param == "sqlite":
        yield _sqlite_url(tmp_path / "soundpost.db")
    else:
        with _database(request.getfixturevalue("postgres_server")) as url:
            yield _text(url)


@pytest.fixture(scope="session")
def migrated_sqlite(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("migrated") / "soundpost.db"
    migrate(_sqlite_url(file))
    return file


@pytest.fixture(scope="session")
def migrated_postgres(postgres_server: URL) -> Iterator[str]:
    """The name of a database to copy, which takes a fraction of the time of migrating."""
    with _database(postgres_server) as url:
        migrate(_text(url))
        assert url.database
        yield url.database


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[URL]:
    """The server that TEST_DATABASE_URL names, or else one that ends with this process."""
    given = os.environ.get("TEST_DATABASE_URL")
    if given:
        url = make_url(given)
        yield url if "+" in url.drivername else url.set(drivername="postgresql+asyncpg")
        return
    with postgres() as server:
        url = make_url(server.get_uri(driver="asyncpg"))
        _execute(url, "ALTER SYSTEM SET fsync = off", "SELECT pg_reload_conf()")
        yield url


@contextmanager
def _database(server: URL, template: str = "template0") -> Iterator[URL]:
    """A new database, a copy of the template, dropped afterwards even if something is still connected."""
    name = f"soundpost_{uuid.uuid4().hex}"
    _execute(server, f"CREATE DATABASE {name} TEMPLATE {template}")
    try:
        yield server.set(database=name)
    finally:
        _execute(server, f"DROP DATABASE {name} WITH (FORCE)")


def _execute(server: URL, *statements: str) -> None:
    with psycopg.connect(_text(server.set(drivername="postgresql")), autocommit=True) as connection:
        for statement in statements:
            connection.execute(statement.encode())


def _sqlite_url(file: Path) -> str:
    return f"sqlite+aiosqlite:///{file}"


def _text(url: URL) -> str:
    return url.render_as_string(hide_password=False)
