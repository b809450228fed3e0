"""The schema's revision, which every start compares, and the migrations, for which alone alembic is imported."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from sqlalchemy import Connection, create_engine, text
from sqlalchemy.engine import make_url
from sqlalchemy.exc import DBAPIError
from sqlalchemy.pool import NullPool

from app.config.database_url import is_sqlite

if TYPE_CHECKING:
    from alembic.config import Config

# The folder of migrations/, which stands beside the package: in a checkout, in the image and in the wheel.
ROOT = Path(__file__).resolve().parents[2]
# SQLSTATE: undefined table, undefined column, invalid schema name.
_NOT_MIGRATED = frozenset({"42P01", "42703", "3F000"})
# What alembic writes; its own look at it takes 50 ms and 7 MiB of imports.
_CURRENT = text("SELECT version_num FROM alembic_version")
_REVISION, _BEFORE = (re.compile(rf"^{name} = ['\"](.+)['\"]", re.MULTILINE) for name in ("revision", "down_revision"))


class UnknownSchema(Exception):
    """The database is at a revision that this release does not know."""


def is_not_migrated(error: Exception) -> bool:
    """Whether a statement met a table or column that is not there."""
    driver_error = getattr(error, "orig", None)
    return getattr(driver_error, "sqlstate", None) in _NOT_MIGRATED or str(driver_error).startswith("no such ")


def is_at_head(connection: Connection) -> bool:
    """Whether the schema is that of this release. Raises what the driver raises if the database does not answer."""
    try:
        return set(connection.scalars(_CURRENT)) == heads()
    except DBAPIError as error:
        if is_not_migrated(error):
            return False
        raise


@cache
def heads() -> frozenset[str]:
    """The revisions of this release, on which no other migration builds; they are read from the scripts once."""
    scripts = [path.read_text() for path in (ROOT / "migrations" / "versions").glob("*.py")]
    revisions, before = ({name for script in scripts for name in each.findall(script)} for each in (_REVISION, _BEFORE))
    return frozenset(revisions - before)


def migrate(url: str) -> None:
    """
    Upgrade the schema of the database at this URL to this release's; creates an SQLite file and its folder.

    Raises UnknownSchema.
    """
    if is_sqlite(url) and _is_file_at_head(url):
        return
    from alembic import command
    from alembic.util.exc import CommandError

    try:
        command.upgrade(alembic_config(url), "head")
    except CommandError as error:
        raise UnknownSchema(
            f"The schema is not of a release that this one can upgrade ({error}): a newer release made it, or "
            "one before 1.0, whose databases must be created anew."
        ) from error


def alembic_config(url: str) -> Config:
    """Alembic's configuration for the database at this URL. Does not depend on the current folder."""
    from alembic.config import Config

    # alembic.ini is for writing new migrations. In its values a single % would begin an interpolation.
    config = Config()
    config.set_main_option("script_location", str(ROOT / "migrations").replace("%", "%%"))
    config.attributes["url"] = url
    return config


def _is_file_at_head(url: str) -> bool:
    """Whether an SQLite file has this release's schema, as at nearly every start; creates its folder."""
    file = make_url(url).set(drivername="sqlite")
    Path(str(file.database)).parent.mkdir(parents=True, exist_ok=True)
    with create_engine(file, poolclass=NullPool).connect() as connection:
        return is_at_head(connection)
