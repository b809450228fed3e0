"""A database that answers may still be unusable: read-only, on standby, removed, full, or held by somebody else."""

import os
import re
import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest
from sqlalchemy import make_url

from app.database.engine import Database
from app.health.database import check_database
from app.health.routes import ReadinessProbe
from tests.support.service import Service, serve

sqlite = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
postgresql = pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)


@pytest.fixture(autouse=True)
def _no_result_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ReadinessProbe, "fresh_for", timedelta())


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that every user may enter."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)


@pytest.fixture
async def service_in_the_open(migrated_sqlite: Path, open_folder: Path) -> AsyncIterator[tuple[Service, Path]]:
    """A service, and its SQLite file in this folder."""
    file = shutil.copyfile(migrated_sqlite, open_folder / "soundpost.db")
    async with serve(f"sqlite+aiosqlite:///{file}", storage_url=f"file:{open_folder}/audio") as service:
        yield service, file


async def test_sqlite_file_that_was_removed_is_down(service_in_the_open: tuple[Service, Path]) -> None:
    service, file = service_in_the_open
    assert (await service.client.get("/readyz")).status_code == 200
    file.unlink()

    assert await _database_of(service) == (
        503,
        "its file was removed while it is open, and what is written is lost: put the file of SOUNDPOST_DATABASE_URL "
        "back, or a copy of it, and restart every process",
    )


@pytest.mark.parametrize("is_folder", [False, True])
async def test_sqlite_file_or_folder_that_is_read_only_is_down(
    service_in_the_open: tuple[Service, Path], is_folder: bool
) -> None:
    service, file = service_in_the_open
    (await service.client.get("/readyz")).raise_for_status()
    file.chmod(0o666 if is_folder else 0o444)
    file.parent.chmod(0o555 if is_folder else 0o777)
    with _without_privileges():
        found = await _database_of(service)
    file.parent.chmod(0o755)

    assert found == (
        503,
        "its file or folder is read-only, so nothing can be stored: let the user of this process write the file of "
        "SOUNDPOST_DATABASE_URL and its folder",
    )


@sqlite
async def test_sqlite_whose_disk_is_nearly_full_is_degraded(database: Database) -> None:
    enough, nearly_full = await check_database(database), await check_database(database, 10**18)

    assert (enough.status, nearly_full.status) == ("ok", "degraded")
    assert re.fullmatch(
        r"it answers, but only \d+ MB are free on its disk, less than 1000000000000 MB: make room there",
        nearly_full.detail,
    )


@postgresql
async def test_postgresql_that_is_read_only_is_down(database_url: str) -> None:
    name = make_url(database_url).database
    with another_session(database_url) as other:
        other.execute(f"ALTER DATABASE {name} SET default_transaction_read_only = on".encode())
    async with serve(database_url) as service:
        found = await _database_of(service)

    assert found == (
        503,
        "it is read-only, so nothing can be stored: set default_transaction_read_only to off for its role and database,"
        " or name another server",
    )


@postgresql
async def test_role_without_the_right_to_write_is_down(database_url: str) -> None:
    url = make_url(database_url)
    with another_session(database_url) as other:
        other.execute(b"CREATE ROLE reader LOGIN")
        other.execute(b"GRANT SELECT ON ALL TABLES IN SCHEMA public TO reader")
        reading = url.set(username="reader").render_as_string(hide_password=False)
        async with serve(reading) as service:
            found = await _database_of(service)
        other.execute(b"DROP OWNED BY reader")
        other.execute(b"DROP ROLE reader")

    assert found == (
        503,
        "its role may not write the tables, so nothing can be stored: GRANT it SELECT, INSERT, UPDATE, DELETE ON ALL "
        "TABLES, or name the role that ran `soundpost migrate`",
    )


@postgresql
async def test_standby_is_down(database_url: str) -> None:
    # A server says so by a function, whose name this session finds elsewhere first.
    with another_session(database_url) as other:
        other.execute(b"CREATE SCHEMA standby")
        other.execute(b"CREATE FUNCTION standby.pg_is_in_recovery() RETURNS bool LANGUAGE sql AS 'SELECT true'")
    async with serve(f"{database_url}&options=-csearch_path=standby,pg_catalog,public") as service:
        found = await _database_of(service)

    assert found == (
        503,
        "it is a standby: let SOUNDPOST_DATABASE_URL name the primary, or all servers with "
        "target_session_attrs=read-write",
    )


@postgresql
@pytest.mark.parametrize(
    ("table", "check", "code"), [("alembic_version", "migrations", 503), ("periodic_jobs", "queue", 200)]
)
async def test_database_that_hangs_delays_no_probe(
    database_url: str, monkeypatch: pytest.MonkeyPatch, table: str, check: str, code: int
) -> None:
    monkeypatch.setattr(ReadinessProbe, "answer_within", timedelta(seconds=0.3))
    monkeypatch.setattr(ReadinessProbe, "stale_for", timedelta())
    async with serve(database_url) as service:
        with another_session(database_url, autocommit=False) as other:
            other.execute(f"LOCK TABLE {table} IN ACCESS EXCLUSIVE MODE".encode())
            answer = await service.client.get("/readyz")
            other.rollback()
        after = await service.client.get("/readyz")

    found = answer.json()["checks"]
    assert (answer.status_code, after.status_code) == (code, 200)
    assert answer.elapsed < timedelta(seconds=2)
    assert found[check]["detail"] == (
        "no answer within 0.3 seconds: look at the load and the locks of the database, and at SOUNDPOST_DATABASE_URL"
    )
    assert list(found)[-1] == check


@postgresql
async def test_last_result_counts_while_a_busy_database_does_not_answer_in_time(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ReadinessProbe, "answer_within", timedelta(seconds=0.1))
    monkeypatch.setattr(ReadinessProbe, "stale_for", timedelta(minutes=1))
    async with serve(database_url) as service:
        probe = ReadinessProbe(service.services)
        monkeypatch.setattr(probe, "answer_within", timedelta(seconds=10))
        before = await probe.read()
        monkeypatch.setattr(probe, "answer_within", timedelta(seconds=0.1))
        with another_session(database_url, autocommit=False) as other:
            other.execute(b"LOCK TABLE alembic_version IN ACCESS EXCLUSIVE MODE")
            during = await probe.read()
            monkeypatch.setattr(probe, "stale_for", timedelta())
            later = await probe.read()
            other.rollback()

    assert (before.status, later.status) == ("ok", "down")
    assert during is before


async def _database_of(service: Service) -> tuple[int, str]:
    answer = await service.client.get("/readyz")
    return answer.status_code, answer.json()["checks"]["database"]["detail"]


def another_session(database_url: str, *, autocommit: bool = True) -> Any:
    url = make_url(database_url).set(drivername="postgresql").render_as_string(hide_password=False)
    return psycopg.connect(url, autocommit=autocommit)


@contextmanager
def _without_privileges() -> Iterator[None]:
    """Be an ordinary user: modes of files bind neither root nor its containers."""
    user = os.geteuid()
    if user == 0:
        os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(user)
