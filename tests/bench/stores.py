"""The databases of a run: files of SQLite, or a PostgreSQL server that ends with it."""

from __future__ import annotations

import re
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psycopg
from sqlalchemy import NullPool, create_engine, make_url

from app.database.migrations import migrate
from tests.bench.accounting import cpu_seconds
from tests.support.postgres import postgres

# As on a server that somebody set up; the log's prefix names the database and the session.
POSTGRESQL_SETTINGS = (
    "shared_buffers = '512MB'",
    "max_wal_size = '8GB'",
    "max_connections = '200'",
    "log_line_prefix = '%d|%c|'",
)
DRIVERS = {"sqlite+aiosqlite": "sqlite", "postgresql+asyncpg": "postgresql+psycopg"}
LOGGED = re.compile(r"(\w+)\|([\w.]+)\|LOG:  (?:statement|execute [^:]*): ((\w+).*(?:\n\t.*)*)")
COLUMNS = re.compile(r"(SELECT) .*?(?= FROM )|(?<=\().*?(?=\) VALUES)")
WRITES = frozenset({"INSERT", "UPDATE", "DELETE", "WITH", "MERGE"})


@dataclass(frozen=True)
class Counts:
    """Statements that a database got, with BEGIN and COMMIT, and the commits among them."""

    statements: int
    commits: int
    texts: Counter[str] = field(default_factory=Counter)

    def show(self, requests: int, what: str) -> None:
        """Print what the statements were, if that is known, and how many of each a request had."""
        for text, count in self.texts.most_common():
            print(f"    {count / requests:7.2f} a {what}  {text}")


@dataclass
class Store:
    """One kind of database: `folder` is for files of the run, `server` for PostgreSQL."""

    name: str
    folder: Path
    server: Any = None

    @property
    def is_sqlite(self) -> bool:
        return self.server is None

    def create(self, name: str, *, is_migrated: bool = True) -> str:
        """Make a database; return its URL for the service."""
        if self.is_sqlite:
            url = f"sqlite+aiosqlite:///{self.folder}/{name}.db"
        else:
            base = make_url(self.server.get_uri(driver="asyncpg"))
            _execute_plainly(base.render_as_string(hide_password=False), f"CREATE DATABASE {name}")
            url = base.set(database=name).render_as_string(hide_password=False)
        if is_migrated:
            migrate(url)
        return url

    def cpu(self) -> float:
        """The seconds that the database's own processes have used."""
        return 0.0 if self.is_sqlite else cpu_seconds(self.server.get_pid())

    @contextmanager
    def logged(self, url: str) -> Iterator[list[Counts]]:
        """Count what a PostgreSQL database gets until the block ends; the list has the counts then."""
        found: list[Counts] = []
        begins = self.server.log.stat().st_size
        self._log_statements("all")
        yield found
        self._log_statements("none")
        with open(self.server.log, "rb") as log:
            log.seek(begins)
            found.append(_read_log(log.read().decode(errors="replace"), make_url(url).database or ""))

    def _log_statements(self, which: str) -> None:
        url = self.server.get_uri(driver="asyncpg")
        _execute_plainly(url, f"ALTER SYSTEM SET log_statement = '{which}'", "SELECT pg_reload_conf()")

    @property
    def pgbench(self) -> Path:
        """The program, of the same version as the server."""
        return Path(self.server.bin_path) / "pgbench"


def execute(url: str, sql: str) -> list[tuple[Any, ...]]:
    """Run one statement on a connection of its own; return its rows, if it has any."""
    parsed = make_url(url)
    parsed = parsed.set(drivername=DRIVERS[parsed.drivername])
    engine = create_engine(parsed, poolclass=NullPool, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        result = connection.execution_options(no_parameters=True).exec_driver_sql(sql)
        return [tuple(row) for row in result] if result.returns_rows else []


def plain_url(url: str) -> str:
    """A PostgreSQL URL for drivers that are not SQLAlchemy's."""
    return make_url(url).set(drivername="postgresql").render_as_string(hide_password=False)


@contextmanager
def opened(name: str) -> Iterator[Store]:
    """A store of this kind, gone when the block ends."""
    with tempfile.TemporaryDirectory(prefix="soundpost-bench-") as folder:
        if name == "sqlite":
            yield Store(name, Path(folder))
            return
        with postgres() as server:
            url = server.get_uri(driver="asyncpg")
            _execute_plainly(url, *(f"ALTER SYSTEM SET {setting}" for setting in POSTGRESQL_SETTINGS))
            server.stop()
            server.start()
            yield Store(name, Path(folder), server)


def _execute_plainly(url: str, *statements: str) -> None:
    with psycopg.connect(plain_url(url), autocommit=True) as connection:
        for statement in statements:
            connection.execute(statement.encode())


def _read_log(text: str, database: str) -> Counts:
    statements = commits = 0
    texts: Counter[str] = Counter()
    inside: set[str] = set()
    for name, session, statement, word in LOGGED.findall(text):
        if name != database:
            continue
        statements += 1
        texts[COLUMNS.sub(r"\1 …", " ".join(statement.split()))[:120]] += 1
        if word in ("BEGIN", "START"):
            inside.add(session)
        elif word in ("COMMIT", "ROLLBACK"):
            commits += word == "COMMIT"
            inside.discard(session)
        elif session not in inside:
            # A write by itself commits by itself.
            commits += word in WRITES
    return Counts(statements, commits, texts)
