"""The schema's revision, which every start compares, and the migrations, for which alone alembic is imported."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
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
    from alembic.script import ScriptDirectory

# The folder of migrations/, which stands beside the package: in a checkout, in the image and in the wheel.
ROOT = Path(__file__).resolve().parents[2]
# SQLSTATE: undefined table, undefined column, invalid schema name.
_NOT_MIGRATED = frozenset({"42P01", "42703", "3F000"})
# What alembic writes; its own look at it takes 50 ms and 7 MiB of imports.
_CURRENT = text("SELECT version_num FROM alembic_version")
_COMPATIBLE = text("SELECT revision FROM compatible_revisions")
_LOCK_NOT_HAD = "55P03"
# A migration that waits for a table's lock holds up everybody who comes after it: it waits briefly, and comes again.
LOCK_TRIES, LOCK_PAUSE = 20, 1.0
_REVISION, _BEFORE = (re.compile(rf"^{name} = ['\"](.+)['\"]", re.MULTILINE) for name in ("revision", "down_revision"))


class UnknownSchema(Exception):
    """The database is at a revision that this release does not know."""


def is_not_migrated(error: Exception) -> bool:
    """Whether a statement met a table or column that is not there."""
    driver_error = getattr(error, "orig", None)
    return getattr(driver_error, "sqlstate", None) in _NOT_MIGRATED or str(driver_error).startswith("no such ")


def is_at_head(connection: Connection) -> bool:
    """Whether the schema is that of this release. Raises what the driver raises if the database does not answer."""
    return _is_there(lambda: _has_head(connection))


def is_usable(connection: Connection) -> bool:
    """
    Whether this release works on the schema: it is its own, or a newer one whose migrations say so.

    While a new release is rolled out, the one before runs on the new schema. That a revision
    is unknown does not tell how new it is, nor that the database is ours. Raises like `is_at_head`.
    """
    return _is_there(lambda: _has_head(connection) or heads() <= set(connection.scalars(_COMPATIBLE)))


def _has_head(connection: Connection) -> bool:
    return set(connection.scalars(_CURRENT)) == heads()


def _is_there(look: Callable[[], bool]) -> bool:
    try:
        return look()
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


def migrate(url: str, *, accepts_newer: bool = False) -> None:
    """
    Upgrade the schema of the database at this URL to this release's; creates an SQLite file and its folder.

    `accepts_newer`: an SQLite file with a newer schema, on which this release works, is left as it is.
    Raises UnknownSchema.
    """
    if is_sqlite(url) and _of_file(url, is_usable if accepts_newer else is_at_head):
        return
    from alembic.util.exc import CommandError

    try:
        _upgrade(url)
    except CommandError as error:
        raise UnknownSchema(
            f"The schema is not of a release that this one can upgrade ({error}): a newer release made it, or "
            "one before 1.0, whose databases must be created anew."
        ) from error


def note_compatible(connection: Connection, script: ScriptDirectory) -> None:
    """Store which releases work on the schema that a migration has just made, by their revisions."""
    current = list(connection.scalars(_CURRENT))
    compatible = [revision for head in current for revision in compatible_with(script, head)]
    if compatible and set(connection.scalars(_COMPATIBLE)) != set(compatible):
        connection.execute(text("DELETE FROM compatible_revisions"))
        rows = [{"revision": revision} for revision in compatible]
        connection.execute(text("INSERT INTO compatible_revisions (revision) VALUES (:revision)"), rows)


def compatible_with(script: ScriptDirectory, head: str) -> Iterator[str]:
    """The revision, and those before it down to the oldest whose release works on its schema."""
    oldest = script.get_revision(head).module.oldest_compatible
    for revision in script.iterate_revisions(head, "base"):
        yield revision.revision
        if revision.revision == oldest:
            return


def _upgrade(url: str) -> None:
    from alembic import command

    for left in reversed(range(LOCK_TRIES)):
        try:
            command.upgrade(alembic_config(url), "head")
        except DBAPIError as error:
            if not left or getattr(error.orig, "sqlstate", None) != _LOCK_NOT_HAD:
                raise
            time.sleep(LOCK_PAUSE)
        else:
            return


def alembic_config(url: str) -> Config:
    """Alembic's configuration for the database at this URL. Does not depend on the current folder."""
    from alembic.config import Config

    # alembic.ini is for writing new migrations. In its values a single % would begin an interpolation.
    config = Config()
    config.set_main_option("script_location", str(ROOT / "migrations").replace("%", "%%"))
    config.attributes["url"] = url
    return config


def _of_file(url: str, look: Callable[[Connection], bool]) -> bool:
    """Look at the schema of an SQLite file, which is right at nearly every start; creates its folder."""
    file = make_url(url).set(drivername="sqlite")
    Path(str(file.database)).parent.mkdir(parents=True, exist_ok=True)
    with create_engine(file, poolclass=NullPool).connect() as connection:
        return look(connection)
