"""Runs the migrations on the database at the configured URL, with synchronous drivers."""

from typing import Any

from alembic import context
from sqlalchemy import Connection, create_engine, event, pool
from sqlalchemy.engine import make_url

from app.config import Settings
from app.config.database_url import is_sqlite
from app.database.connections import migration_engine
from app.database.migrations import note_compatible
from app.models import Task


def _prepare_sqlite(connection: Any, _record: object) -> None:
    # The driver would begin and commit on its own; the listener below begins instead.
    connection.isolation_level = None
    connection.execute("PRAGMA busy_timeout = 30000")
    connection.execute("PRAGMA journal_mode = WAL")


def _begin_sqlite(connection: Connection) -> None:
    # Several processes may start on one file at once: the first one migrates, the others wait and find nothing to do.
    connection.exec_driver_sql("BEGIN IMMEDIATE")


url = context.config.attributes.get("url") or Settings().database_url
is_file = is_sqlite(url)
if is_file:
    engine = create_engine(make_url(url).set(drivername="sqlite"), poolclass=pool.NullPool)
    event.listen(engine, "connect", _prepare_sqlite)
    event.listen(engine, "begin", _begin_sqlite)
else:
    engine = migration_engine(url)

with engine.connect() as connection:
    # SQLite cannot alter most of a table: batch mode copies the table instead.
    context.configure(
        connection=connection, target_metadata=Task.metadata, render_as_batch=is_file, transactional_ddl=True
    )
    with context.begin_transaction():
        if not is_file:
            # One migration at a time, and none that waits long for a locked table.
            connection.exec_driver_sql("SELECT pg_advisory_xact_lock(7264001)")
            connection.exec_driver_sql("SET LOCAL lock_timeout = '2s'")
        context.run_migrations()
        note_compatible(connection, context.script)
