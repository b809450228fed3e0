"""Runs the migrations on the one database that the settings name; sync drivers, since nothing else runs then."""

from alembic import context
from sqlalchemy import create_engine, pool
from sqlalchemy.engine import make_url

from app.config import Settings
from app.models import Base

DRIVERS = {"sqlite+aiosqlite": "sqlite", "postgresql+asyncpg": "postgresql+psycopg"}

url = make_url(context.config.attributes.get("url") or Settings().database_url)
url = url.set(drivername=DRIVERS.get(url.drivername, url.drivername))
engine = create_engine(url, poolclass=pool.NullPool)

with engine.connect() as connection:
    is_sqlite = connection.dialect.name == "sqlite"
    # Batch mode makes SQLite, which cannot alter most of a table, copy it instead.
    context.configure(connection=connection, target_metadata=Base.metadata, render_as_batch=is_sqlite)
    if is_sqlite:
        # Several processes may start on one file at once: the first migrates, the others wait for it.
        connection.connection.dbapi_connection.isolation_level = None
        connection.exec_driver_sql("PRAGMA busy_timeout = 30000")
        connection.exec_driver_sql("PRAGMA journal_mode = WAL")
        connection.exec_driver_sql("BEGIN IMMEDIATE")
        context.run_migrations()
        connection.exec_driver_sql("COMMIT")
    else:
        with context.begin_transaction():
            # One migrator at a time; the others find nothing left to do.
            connection.exec_driver_sql("SELECT pg_advisory_xact_lock(7264001)")
            connection.exec_driver_sql("SET LOCAL lock_timeout = '5s'")
            context.run_migrations()
