"""Backups of an SQLite database; PostgreSQL has `pg_dump`."""

from __future__ import annotations

import os
import sqlite3
from contextlib import closing
from pathlib import Path

from sqlalchemy.engine import make_url


def back_up(url: str, file: Path) -> None:
    """
    Write a consistent copy of an SQLite database to a new file, while processes use it.

    Copying the file itself misses what is still in its write-ahead log. The copy appears whole or not at all.
    Raises OSError, sqlite3.Error.
    """
    source = Path(str(make_url(url).database))
    if not source.exists():
        raise FileNotFoundError(f"{source} does not exist")
    if file.exists():
        raise FileExistsError(f"{file} exists already")
    if not file.parent.is_dir():
        raise FileNotFoundError(f"there is no folder {file.parent.absolute()}")
    draft = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        with closing(sqlite3.connect(f"{source.absolute().as_uri()}?mode=rw", uri=True, timeout=30)) as connection:
            try:
                connection.execute("VACUUM INTO ?", (str(draft),))
            except sqlite3.Error as error:
                # It names the draft, of which nobody has heard.
                raise OSError(str(error).replace(str(draft), str(file))) from error
        with draft.open("rb") as copy:
            os.fsync(copy.fileno())
        draft.rename(file)
    finally:
        draft.unlink(missing_ok=True)
