"""One history of the schema, the same on both databases."""

import asyncio
from pathlib import Path
from typing import Any

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, Engine, create_engine, inspect, text
from sqlalchemy.engine import make_url

from app.database.base import Base
from app.database.engine import Database
from app.database.migrations import ROOT, alembic_config, compatible_with, heads, migrate
from tests.support.processes import Processes

SYNC = {"sqlite+aiosqlite": "sqlite", "postgresql+asyncpg": "postgresql+psycopg"}


def test_history_has_one_head() -> None:
    assert heads() == set(ScriptDirectory(str(ROOT / "migrations")).get_heads())
    assert len(heads()) == 1


def test_every_migration_says_which_releases_work_with_it() -> None:
    scripts = ScriptDirectory(str(ROOT / "migrations"))
    for script in scripts.walk_revisions():
        assert script.module.oldest_compatible in compatible_with(scripts, script.revision)


def test_releases_that_work_with_the_schema_are_noted(database_url: str) -> None:
    engine = _engine(database_url)
    with engine.connect() as connection:
        noted = set(connection.scalars(text("SELECT revision FROM compatible_revisions")))
    engine.dispose()

    assert noted >= heads()


def test_migrated_schema_is_that_of_the_models(database_url: str) -> None:
    engine = _engine(database_url)
    with engine.connect() as connection:
        difference = compare_metadata(MigrationContext.configure(connection), Base.metadata)
    engine.dispose()

    assert difference == []


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
def test_storage_parameters_are_those_of_the_models(database_url: str) -> None:
    engine = _engine(database_url)
    with engine.connect() as connection:
        rows = connection.execute(text("SELECT relname, reloptions FROM pg_class WHERE relkind = 'r'")).all()
    engine.dispose()

    stored = {name: set(options) for name, options in rows if options}
    wanted = {
        table.name: {f"{name}={value}" for name, value in table.dialect_options["postgresql"]["with"].items()}
        for table in Base.metadata.sorted_tables
        if table.dialect_options["postgresql"]["with"]
    }
    assert stored == wanted
    assert set(wanted) == {"tasks", "deliveries", "pace_slots", "periodic_jobs", "budgets", "queue_tags"}


def test_schema_comes_back_the_same_after_going_down(database_url: str) -> None:
    before = _schema(database_url)

    command.downgrade(alembic_config(database_url), "base")
    emptied = _schema(database_url)
    migrate(database_url)

    assert set(emptied) == {"alembic_version"}
    assert _schema(database_url) == before


def test_migrating_again_changes_nothing(database_url: str) -> None:
    before = _schema(database_url)

    migrate(database_url)

    assert _schema(database_url) == before


async def test_several_processes_may_migrate_at_once(empty_database_url: str, tmp_path: Path) -> None:
    with Processes(tmp_path, database_url=empty_database_url) as processes:
        ended = await asyncio.gather(*(processes.run("migrate") for _ in range(3)))

    database = Database(empty_database_url)
    assert [(each.code, each.stdout) for each in ended] == [(0, "The schema is up to date.\n")] * 3
    assert await database.is_migrated()
    await database.close()


async def test_database_without_tables_is_not_migrated(empty_database_url: str) -> None:
    database = Database(empty_database_url)

    assert not await database.is_migrated()
    await database.close()


def test_sqlite_file_is_made_with_its_folder(tmp_path: Path) -> None:
    migrate(f"sqlite+aiosqlite:///{tmp_path}/a/b/soundpost.db")

    assert (tmp_path / "a/b/soundpost.db").exists()


async def test_schema_of_an_unknown_revision_is_refused_with_what_to_do(database_url: str, tmp_path: Path) -> None:
    engine = _engine(database_url)
    with engine.begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '0001'"))
    engine.dispose()

    with Processes(tmp_path, database_url=database_url) as processes:
        ended = await processes.run("migrate")

    assert (ended.code, ended.stdout) == (1, "")
    assert "'0001'" in ended.stderr
    assert "must be created anew" in ended.stderr


def _engine(url: str) -> Engine:
    parsed = make_url(url)
    return create_engine(parsed.set(drivername=SYNC[parsed.drivername]))


def _schema(url: str) -> dict[str, Any]:
    engine = _engine(url)
    with engine.connect() as connection:
        schema = {name: _table(connection, name) for name in inspect(connection).get_table_names()}
    engine.dispose()
    return schema


def _table(connection: Connection, name: str) -> Any:
    found = inspect(connection)
    columns = [{**column, "type": str(column["type"])} for column in found.get_columns(name)]
    indexes = {index["name"]: (index["column_names"], index["unique"]) for index in found.get_indexes(name)}
    constraints = found.get_foreign_keys(name), found.get_unique_constraints(name), found.get_pk_constraint(name)
    return columns, indexes, constraints
